"""What the course does on a device, on the pretended one: `python tests/pretend_parts.py RESULTS`, a process of its
own (see pretend.py).

Each part raises where a device mistake is; then the mistakes that were once in the code are put back one at a time,
and have to be seen. A line of JSON for each is added to RESULTS: `name`, `error`, `mistakes`, `seconds`.
"""
import contextlib, json, os, sys, tempfile, time, warnings
from pathlib import Path
import pretend
DEV = pretend.install()
import numpy as np, torch
from fastai.vision.all import *
from fastai.vision.all import test_eq as same
from tlcourse.all import *
from tlcourse.runs import Heads, picture_seconds, task
import pretend_plants as plants

digits = target('digits')
PARTS = {}
def part(f): PARTS[f.__name__.replace('_', ' ')] = f; return f

def dls(device=DEV, shots=2, bs=10, **kw): return digits.dls(shots=shots, bs=bs, device=device, **kw)
def there(learn): return {p.device.type for p in (*learn.model.parameters(), *learn.model.buffers())} == {pretend.NAME}
def state(learn): return {k: v.detach().clone() for k,v in learn.model.state_dict().items()}

def quick(learn, n=1, lr=1e-2):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr)
    return learn

def on_both(f):
    "What `f(device)` gives, which has to be the same on a CPU"
    a,b = f(DEV),f(torch.device('cpu'))
    same(a, b)
    return a

# --- what a user calls

@part
def all_strategies():
    "The losses, the weights and the score are those of a CPU, bit for bit"
    for name,fit in STRATEGIES.items():
        def run(device, augment):
            learn = fit(dls(device, augment=augment), 'glyphnet', steps=4, progress=False)
            assert device.type == 'cpu' or there(learn), name
            return [float(o) for o in learn.recorder.losses], weights_hash(learn.model)
        for augment in (True, False) if name in ('gradual', 'last-layers') else (True,):
            on_both(partial(run, augment=augment))

@part
def true_freeze_and_audit():
    "What is cloned after `true_freeze` can be compared after the fit, and the audit says what moves"
    for learn in true_freeze(learner(dls(), 'glyphnet')), true_freeze(vision_learner(dls(), glyphnet)):
        audit, was = freeze_audit(learn), state(learn)
        now = state(quick(learn))
        moved = {k for k in was if not torch.equal(was[k], now[k])}
        assert moved == set(audit.changes) and not any(k.startswith('0.') for k in moved) and moved

@part
def activations_stored():
    "Whatever device the model was on; and the weights are those of a CPU"
    def run(device):
        learn = true_freeze(learner(dls(device, augment=False), 'glyphnet', opt_func=fused_adam), -2)
        learn.model.cpu()
        set_seed(0, reproducible=True)
        with stored_activations(learn): quick(learn)
        assert device.type == 'cpu' or there(learn)
        return weights_hash(learn.model)
    on_both(run)

@part
def features_and_probes():
    "Extracted, adapted, augmented, from a Learner; heads fitted together; a head on its body; the test"
    few, ids = Part('few', digits.train.x[:60], digits.train.y[:60], digits.classes), np.arange(40)
    for kw in dict(layer=range(5)), dict(bn='adapt'), dict(views=2, augment='affine'):
        on_both(lambda d: [f.x.tobytes() for f in L(extract('glyphnet', few, device=d, ids=ids, cache=False, **kw))])
    z = extract('glyphnet', digits.train)
    assert extract('glyphnet', digits.train).cached
    extract(quick(learner(dls(), 'glyphnet')), few), layers(learner(dls(), 'glyphnet'))
    heads = [fit_probes(z, [np.arange(len(z))], wds=(1e-2, 1e-1), device=d) for d in ('cpu', DEV)]
    for h in heads: h.table(), h.choose(z)
    assert np.array_equal(*(h.predict(z) for h in heads))
    for layer,bn in ((-1, 'eval'), (2, 'eval'), (-1, few)):
        f = extract('glyphnet', few, layer=layer, bn=bn)
        learn = head_learner(dls(), 'glyphnet', fit_probes(f, [np.arange(len(f))], wds=.1).head(), layer=layer, bn=bn)
        assert there(learn)
        digits.unopened().score(learn)

@part
def scores():
    "A fitted Learner, one that lies on the CPU, fastai's before any fit; and what the widgets show of it"
    def run(device, name, learn=None):
        learn = (vision_learner(dls(device), glyphnet) if name == 'fastai' else learner(dls(device), 'glyphnet'))
        set_seed(0)
        learn.model[1][-1].reset_parameters()
        if name == 'cpu': learn.model.cpu()
        s = digits.unopened().score(learn, shifts=['blur', 'noise', 'contrast'])
        try_pictures(learn, {'one': digits.valid.x[0], 'another': digits.valid.x[1]}).say(digits.valid.x[0])
        return s.pred.tolist(), {k: o.k for k,o in s.shifts.items()}
    on_both(partial(run, name='')), on_both(partial(run, name='cpu')), run(DEV, 'fastai')

@part
def heads_on_the_test():
    "In one pass through the body of a Learner, wherever the heads lie; and as Learners; neighbours too"
    def run(device):
        learn = learner(dls(device), 'glyphnet')
        z = extract(learn, digits.train, device=device, ids=np.arange(60), cache=False)
        heads = [h.to(device) for h in (fit_probes(z, [np.arange(60)], .1).head(),
                                        NearestNeighbours(z.x, z.y, z.classes, 3))]
        got = digits.unopened().score_heads(learn, heads, ['blur'], device=device)
        for h,s in zip(heads, got):
            whole = learner(dls(device), 'glyphnet')
            whole.model[1][-1] = h
            assert device.type == 'cpu' or there(whole)
            same(digits.unopened().score(whole, ['blur']).pred.tolist(), s.pred.tolist())
        return [(s.pred.tolist(), s.prob.tolist(), s.shifts['blur'].k) for s in got]
    on_both(run)

@part
def heads_of_a_study():
    "The losses by which a weight decay is chosen, the test and the shifts of both bodies are those of a CPU"
    spec = dict(strategy='feature-extraction', shots=2, seed=0, wd=.1, shifts=dict(noise=None))
    def run(device, control):
        heads = Heads(task(digits, 'glyphnet', device=str(device)), control, progress=False)
        losses = heads.losses(2, [.1, 1.], [0], 1) + heads.losses('all', [1.], [0], None)
        res = heads.run([spec, {**spec, 'shots': 'all'}, {**spec, 'strategy': 'k-nn', 'wd': None, 'neighbours': 2}])
        return ([o.tolist() for l in losses for o in l],
                [{k: np.array(v).tolist() for k,v in r.items() if k != 'seconds'} for r in res])
    for control in (False, True): on_both(partial(run, control=control))
    assert min(picture_seconds(task(digits, 'glyphnet'))) > 0

@part
def lint_of_learners():
    "It finds what it finds on a CPU, before and after a fit, with and without the target"
    def found(device):
        learns = (learner(dls(device), 'glyphnet'), true_freeze(learner(dls(device), 'glyphnet')),
                  quick(learner(dls(device), 'glyphnet')))
        return [lint(l, t).names for l in learns for t in (None, digits)]
    on_both(found)
    same(lint(vision_learner(dls(), glyphnet), digits).names, ['drifting-batchnorm'])

@part
def comparing():
    "All stages, rates chosen; and runs that come after others on the same device"
    c = compare('digits', strategies='feature-extraction,random-features,last-layers,fine_tune', shots=[2, 5], seeds=3,
                steps=1, V=1, say=None)
    assert c.settings['device'] == str(DEV) and len(c.cells) == 8 and len(c.table) == 8 and c.stage == c.stages == 3
    assert {s['device'] for specs in c.specs.values() for s in specs} == {pretend.NAME}
    assert ({r['strategy'] for r in c.rates if len(r['tried']) > 2}
            == {'feature-extraction', 'random-features', 'last-layers'})

@part
def a_model_to_use():
    "Trained, stored, loaded and asked; the same model on a CPU gives the same answers"
    with tempfile.TemporaryDirectory() as d:
        train(digits, Path(d)/'model', 'last-layers', say=None)
        for i in range(3): Image.fromarray(digits.valid.x[i].permute(1, 2, 0).numpy()).save(Path(d)/f'{i}.png')
        on_both(lambda device: [(p.label, p.probability)
                                for p in load(Path(d)/'model',
                                              device=str(device)).predict(sorted(Path(d).glob('*.png')))])

@part
def pretraining():
    with tempfile.TemporaryDirectory() as d:
        assert pretrain(steps=2, bs=8, out=d, progress=False, n_glyphs=10)['device'] == str(DEV)

@part
def saving_and_loading():
    "`lr_find` does both; a state that was saved here is one on the CPU if asked, and the other way round"
    with tempfile.TemporaryDirectory() as d:
        learn = learner(dls(), 'glyphnet', path=d)
        was = weights_hash(quick(learn).model)
        with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=3, show_plot=False, suggest_funcs=())
        assert weights_hash(learn.model) == was and there(learn)
        learn.load(learn.save('here').stem)
        for place in 'cpu', DEV:
            for f in learn.path/'models'/'here.pth', Path(d)/'cpu.pth':
                if f.stem == 'cpu': torch.save({'model': nn.Linear(1, 1).state_dict()}, f)
                seen = torch.load(f, map_location=place, weights_only=False)['model'].values()
                assert {t.device.type for t in seen} == {torch.device(place).type}
        learn.export('whole.pkl')
        assert next(load_learner(Path(d)/'whole.pkl').model.parameters()).device.type == 'cpu'

@part
def losses_on_the_device():
    "NoSync keeps them there, and they are those of fastai's own recorder"
    def run(*cbs):
        set_seed(0, reproducible=True)
        return [float(o) for o in quick(learner(dls(), 'glyphnet', cbs=cbs)).recorder.losses]
    same(run(NoSync()), run())

@part
def graphs_of_the_benchmark():
    "The model lies on the device when it is graphed; a graph itself needs a card"
    sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
    import gpu
    def graphed(model, x, *_): model(x); return model
    old, gpu.graphed = gpu.graphed, graphed
    try: gpu.train(gpu.mine(digits, 'glyphnet', 32, DEV, 'fp32', graphs=True), 2)
    finally: gpu.graphed = old

# --- the rules of the device itself

@part
def rules_of_the_device():
    "What raises on CUDA raises here, and what passes there passes here"
    x, c, at = torch.ones(3, device=DEV), torch.ones(3), torch.tensor([0, 2])
    for f in (lambda: x + c, lambda: c.add_(x), lambda: torch.equal(x, c),
              lambda: torch.stack([x.sum(), c.sum()]), lambda: x.numpy(),
              lambda: np.asarray(x), lambda: nn.Linear(3, 1)(x), lambda: c[at.to(DEV)], lambda: c.sum().add_(x[0]),
              lambda: plt.plot(x)):
        n = len(pretend.mistakes)
        with contextlib.suppress(RuntimeError, TypeError):
            f()
            assert False, 'this mixes devices, and was not seen'
        assert len(pretend.mistakes) == n + 1
    plt.close('all')
    same((x + c.sum()).tolist(), [4.]*3), same(x[at].tolist(),
                                               [1.]*2), same(torch.where(x > 0, x, c.sum()).cpu().tolist(), [1.]*3)
    image = TensorImage(torch.rand(2, 3, 4, 4)).to(DEV)
    assert isinstance(image, TensorImage) and type(image.cpu()) is TensorImage
    assert isinstance(deepcopy(image) + 1, TensorImage)
    m = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ps, ids = [*m.parameters()], [id(p) for p in m.parameters()]
    assert [id(p) for p in m.to(DEV).parameters()] == ids and all(isinstance(p, nn.Parameter) for p in ps)
    m(torch.rand(4, 3, device=DEV)).sum().backward()
    assert ps[0].grad.device == DEV and [id(p) for p in m.cpu().parameters()] == ids and ps[0].grad.device.type == 'cpu'

# --- all of them, and with mistakes

def tried(f):
    "(error, mistakes, seconds) of a call"
    n, t, error = len(pretend.mistakes), time.process_time(), ''
    try: f()
    except Exception as e: error = f'{type(e).__name__}: {e}'
    return error, pretend.mistakes[n:], round(time.process_time() - t, 1)

def main(out):
    def say(name, error, mistakes, seconds):
        with open(out, 'a') as f:
            print(json.dumps(dict(name=name, error=error, mistakes=mistakes, seconds=seconds)), file=f)
    warnings.filterwarnings('ignore')
    for name,f in PARTS.items(): say(name, *tried(f))
    for p in plants.LIBRARY:
        with plants.planted(p): say(f'planted: {p.name}', *tried(PARTS[p.seen_by]))

if __name__ == '__main__': main(sys.argv[1])
