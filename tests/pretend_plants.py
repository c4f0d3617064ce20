"""Device mistakes that were once in the project, to be put back one at a time: each is text of a function or a cell
as it stands, and as it stood."""
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
    lesson:str='' # The name of its page
    now:str='' # Text of that cell, if it changes
    then:str=''

unmoved = Change('tlcourse.learner:learner', '    learn.model.to(learn.dls.device) # where it will train; '
                                               'fastai alone waits for the first fit\n')
unmoved_frozen = Change('tlcourse.layers:true_freeze',
                        '    learn.model.to(learn.dls.device) # what is cloned now can then be compared after a fit\n')
stats_left = Change('tlcourse.data:_batch', 'TensorImage(x.to(dl.device))', "TensorImage(x)")

LIBRARY = [
    Plant('the comparison of buffers after true_freeze', [unmoved, unmoved_frozen], 'true freeze and audit'),
    Plant("the same of fastai's vision_learner alone", [unmoved_frozen], 'true freeze and audit'),
    Plant('the CPU tail of stored_activations',
          [Change('tlcourse.activations:stored_activations', 'learn.model.to(learn.dls.device)', 'learn.model')],
          'activations stored'),
    Plant('the labels of stored_activations on the CPU',
          [Change('tlcourse.loaders:Part.on', 'self.x,self.y.to(self.x.device)', 'self.x,self.y')],
          'activations stored'),
    Plant("the benchmark's unmoved model", [unmoved, Change('gpu:mine', '    learn.model.to(dev) '
                                                                        '#', '    #')], 'graphs of the benchmark'),
    Plant("the score of a model on the CPU, its pictures normalised on the device", [stats_left], 'scores'),
    Plant('features of the test on the device, heads on the CPU',
          [Change('tlcourse.features:_Frozen.features', 'z.float().cpu()', 'z.float()')],
          'heads of a study'),
    Plant('heads that stay where they lie',
          [Change('tlcourse.features:_own_heads', 'deepcopy(h).cpu().eval()', 'deepcopy(h).eval()')],
          'heads on the test'),
    Plant('the votes of neighbours on the CPU',
          [Change('tlcourse.probes:NearestNeighbours.forward', ', device=self.x.device)', ')')], 'heads on the test'),
    Plant('pictures on the CPU that a random body counts its statistics on',
          [Change('tlcourse.finetune:_count_stats', 'x.as_subclass(torch.Tensor) for',
                  'x.as_subclass(torch.Tensor).cpu() for')], 'all strategies'),
    Plant('features that numpy gets from the device', [Change('tlcourse.strategy:_converged_head',
                                                              'z.view(v*n, d).cpu()',
                                                              'z.view(v*n, d)')], 'all strategies'),
    Plant('pictures for a model that was loaded', [Change('tlcourse.model:Model.logits', '.to(self.device)', '')],
          'a model to use'),
    Plant("pictures for a widget where the model is not", [Change('tlcourse.widgets:_probs', 'b[0].to(dev)', 'b[0]')],
          'scores'),
]
LESSONS = [
    Plant('honest_data: a head on a body that was not moved is scored', [unmoved, unmoved_frozen, stats_left],
          '28055baf', 'honest_data'),
    Plant('freezing: source pictures on the CPU', [], '29ac77e8', 'freezing', 'model(norm(xs))',
          'model(norm(xs.cpu()))'),
    Plant('freezing: the old head on the CPU', [], '1c679f32', 'freezing', 'fits =',
          'old = glyphnet(pretrained=True)\nfits ='),
    Plant('freezing: batches of the source on the CPU', [], '4c72f482', 'freezing', 'drifts =',
          "batches = lambda name: [SourceDrawer('glyph').batch(32)[0]]*4\ndrifts ="),
    Plant('feature_extraction: a batch on the CPU', [], 'fx000008', 'feature_extraction', 'maps = body(x)',
          'maps = body(x.cpu())'),
    Plant('feature_extraction: the body on the CPU, batches on the device', [], 'fx000043', 'feature_extraction',
          'nn.Sequential(frozen.model[0], pool)', 'deepcopy(nn.Sequential(frozen.model[0], pool)).cpu()'),
    Plant('fine_tuning: the twin of an unmoved model', [unmoved], '24d93ab0', 'fine_tuning',
          "digits.dls(shots=5, bs=10, device='cpu')", 'dls'),
    Plant('fine_tuning: a batch for an unmoved model', [unmoved], '29d78441', 'fine_tuning'),
    Plant('fine_tuning: predictions on the CPU and on the device', [], '253386d2', 'fine_tuning', 'p.detach().cpu()',
          'p.detach()'),
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
