"""Device mistakes that were once in the project, to be put back one at a time: each is text of a function or a cell as it stands, and as it stood."""
import contextlib, importlib, inspect, sys, textwrap
from dataclasses import dataclass

@dataclass
class Change:
    "In the source of `where` ('module:function'), `now` becomes `then`"
    where:str
    now:str
    then:str=''

@dataclass
class Plant:
    name:str
    changes:list # Of library functions
    seen_by:str # A part of pretend_parts.py, or the id of a lesson's cell
    lesson:str='' # Its number
    now:str='' # Text of that cell, if it changes
    then:str=''

unmoved = Change('tlcourse.backbones:learner', '    learn.model.to(learn.dls.device) # where it will train; fastai alone waits for the first fit\n')
unmoved_frozen = Change('tlcourse.layers:true_freeze', '    learn.model.to(learn.dls.device) # what is cloned now can then be compared after a fit\n')
stats_left = Change('tlcourse.data:_batch', 'TensorImage(x.to(dl.device))', "TensorImage(x)")

LIBRARY = [
    Plant('the comparison of buffers after true_freeze', [unmoved, unmoved_frozen], 'true freeze and audit'),
    Plant("the same of fastai's vision_learner alone", [unmoved_frozen], 'true freeze and audit'),
    Plant('the CPU tail of stored_activations', [Change('tlcourse.features:stored_activations', 'learn.model.to(learn.dls.device)', 'learn.model')],
          'activations stored'),
    Plant('the labels of stored_activations on the CPU', [Change('tlcourse.data:Part.on', 'self.x,self.y.to(self.x.device)', 'self.x,self.y')],
          'activations stored'),
    Plant("the benchmark's unmoved model", [unmoved, Change('gpu:mine', '    learn.model.to(dev) #', '    #')], 'graphs of the benchmark'),
    Plant("the score of a model on the CPU, its pictures normalised on the device", [stats_left], 'scores'),
    Plant('features of the test on the device, heads on the CPU', [Change('tlcourse.features:_Frozen.features', 'z.float().cpu()', 'z.float()')],
          'heads of a study'),
    Plant('heads that stay where they lie', [Change('tlcourse.data:Target.score_heads', 'deepcopy(h).cpu().eval()', 'deepcopy(h).eval()')], 'heads on the test'),
    Plant('the votes of neighbours on the CPU', [Change('tlcourse.probes:NearestNeighbours.forward', ', device=self.x.device)', ')')], 'heads on the test'),
    Plant('pictures on the CPU that a random body counts its statistics on',
          [Change('tlcourse.finetune:_count_stats', 'x.as_subclass(torch.Tensor) for', 'x.as_subclass(torch.Tensor).cpu() for')], 'all strategies'),
    Plant('features that numpy gets from the device', [Change('tlcourse.finetune:_converged_head', 'z.view(v*n, d).cpu()', 'z.view(v*n, d)')], 'all strategies'),
    Plant('pictures for a model that was loaded', [Change('tlcourse.model:Model.logits', '.to(self.device)', '')], 'a model to use'),
    Plant("pictures for a widget where the model is not", [Change('tlcourse.widgets:_probs', 'b[0].to(dev)', 'b[0]')], 'scores'),
]
LESSONS = [
    Plant('lesson 2: a head on a body that was not moved is scored', [unmoved, unmoved_frozen, stats_left], '28055baf', '02'),
    Plant('lesson 4: source pictures on the CPU', [], '29ac77e8', '04', 'model(norm(xs))', 'model(norm(xs.cpu()))'),
    Plant('lesson 4: the old head on the CPU', [], '1c679f32', '04', 'fits =', 'old = glyphnet(pretrained=True)\nfits ='),
    Plant('lesson 4: batches of the source on the CPU', [], '4c72f482', '04', 'drifts =', "batches = lambda name: [SourceDrawer('glyph').batch(32)[0]]*4\ndrifts ="),
    Plant("lesson 5: the body before and after somebody's fit", [unmoved], '8e8ef935', '05', 'learn = somebody(0)\n',
          "body = learner(digits.dls(), 'glyphnet').model[0]\nlearn = somebody(0)\n"),
    Plant('lesson 5: a picture on the CPU', [], '1476bffe', '05', '.to(pick_device())', ''),
    Plant('lesson 6: the twin of an unmoved model', [unmoved], '24d93ab0', '06', "digits.dls(shots=5, bs=10, device='cpu')", 'dls'),
    Plant('lesson 6: a batch for an unmoved model', [unmoved], '29d78441', '06'),
    Plant('lesson 6: predictions on the CPU and on the device', [], 'ef15f832', '06', 'p.detach().cpu()', 'p.detach()'),
]

def _changed(c):
    "What holds the function of a change, its name, and the function with the change"
    module, names = c.where.split(':')
    home = module = importlib.import_module(module)
    *path, name = names.split('.')
    for o in path: home = getattr(home, o)
    f = inspect.unwrap(getattr(home, name))
    src, made = textwrap.dedent(inspect.getsource(f)).removeprefix('@patch\n'), {}
    assert src.count(c.now) == 1, f'{c.where} has no longer the text {c.now!r}: plant its mistake anew'
    exec(compile(src.replace(c.now, c.then), inspect.getsourcefile(f), 'exec'), f.__globals__, made)
    return home, name, made[name]

@contextlib.contextmanager
def planted(p, *namespaces):
    "The library with the changes of a plant, in every module that holds the functions, and in these namespaces"
    back = []
    try:
        for home,name,new in map(_changed, p.changes):
            old = vars(home)[name]
            if inspect.isclass(home): back.append((home, name, old)); setattr(home, name, new)
            else:
                for ns in [*namespaces, *(vars(m) for m in list(sys.modules.values()) if hasattr(m, '__dict__'))]:
                    if ns.get(name) is old: back.append((ns, name, old)); ns[name] = new
        yield
    finally:
        for o,name,old in back:
            if isinstance(o, dict): o[name] = old
            else: setattr(o, name, old)
