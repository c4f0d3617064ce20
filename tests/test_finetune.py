"The contract of the strategies: the budget, what is frozen when, seeds, rates; and fastai against plain torch."
import math, random
from contextlib import nullcontext
from copy import deepcopy
from types import SimpleNamespace
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import *
from tlcourse.training import FusedAdam
from fastai.torch_core import set_seed
from torch import nn
from fastai.vision.all import Adam, accuracy, vision_learner
from tlcourse import activations, finetune
from tlcourse.backbones import arch
from tlcourse.learner import learner
from tlcourse.base import BadInput
from tlcourse.data import target, weights_hash
from tlcourse.loaders import Part
from tlcourse.features import extract
from tlcourse.passes import pooled
from tlcourse.finetune import feature_extraction, random_features
from tlcourse.probes import fit_probes
from tlcourse.stored_tables import lesson_records
from tlcourse.runs import _SGD
from tlcourse.strategy import STRATEGIES, recipe, strategy

digits = target('digits')

@pytest.fixture
def count(monkeypatch):
    "Counts what the optimiser is asked to do, whoever asks"
    n, step = [0], FusedAdam.step
    def counted(self, *args, **kwargs): n[0] += 1; return step(self, *args, **kwargs)
    monkeypatch.setattr(FusedAdam, 'step', counted)
    return n

FROZEN = [k for k,f in STRATEGIES.items() if f.rate is None]
TRAINED = [k for k,f in STRATEGIES.items() if f.rate is not None and not f.untuned]

def test_every_strategy_has_a_rate_or_a_weight_decay():
    assert FROZEN == ['feature-extraction', 'random-features'] and {*STRATEGIES} - {*TRAINED, *FROZEN} == {'fine_tune'}
    assert all((f.wd is None) != (f.rate is None) and 0 < (f.wd or f.rate) < 1 for f in STRATEGIES.values())

@pytest.mark.parametrize('k', [1, 2, 5])
@pytest.mark.parametrize('name', TRAINED)
def test_the_budget_is_kept(name, k, count):
    for steps in 1, 2, 7:
        count[0] = 0
        learn = STRATEGIES[name](digits.dls(shots=k, bs=8), 'glyphnet', steps=steps, progress=False)
        assert count[0] == len(learn.recorder.losses) == len(learn.recorder.lrs) == learn.recorder.iters[-1] == steps
    count[0] = 0
    dls = digits.dls(shots=k, bs=8)
    learn = STRATEGIES[name](dls, 'glyphnet', epochs=2, progress=False)
    assert count[0] == 2*len(dls.train) and len(learn.dls.train) == len(dls.train)

@pytest.mark.parametrize('name', STRATEGIES)
def test_bad_budgets(name):
    dls = digits.dls(shots=1)
    for bad,why in [(dict(epochs=1, steps=1), 'exactly one'), (dict(steps=0), 'one step'),
                    (dict(epochs=0), 'one epoch'), *([] if name in FROZEN else [({}, 'exactly one')])]:
        with pytest.raises(BadInput, match=why): STRATEGIES[name](dls, 'glyphnet', progress=False, **bad)

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return [k for k in a if torch.equal(a[k], b[k])]

@pytest.mark.parametrize('name', STRATEGIES)
def test_a_run_depends_on_its_seed_alone(name):
    "Whatever ran before it, on the same data too"
    fit = STRATEGIES[name]
    a = state(fit(digits.dls(shots=2), 'glyphnet', steps=6, progress=False))
    dls = digits.dls(shots=2)
    STRATEGIES['scratch'](dls, 'glyphnet', steps=2, seed=5, progress=False)
    b = state(fit(dls, 'glyphnet', steps=6, progress=False))
    assert len(same(a, b)) == len(a)
    c = state(fit(digits.dls(shots=2), 'glyphnet', steps=6, seed=1, progress=False))
    assert len(same(a, c)) < len(a)

@pytest.mark.parametrize('name', STRATEGIES)
def test_a_run_leaves_nothing_random_changed(name):
    "What Python, numpy and torch draw next, and how cuDNN chooses, is as if the run had not been"
    flags, draw = torch.backends.cudnn, lambda: (random.random(), np.random.rand(), torch.rand(()).item())
    was = flags.deterministic, flags.benchmark
    try:
        flags.deterministic, flags.benchmark = False, True
        dls = digits.dls(shots=1)
        set_seed(11); want = draw()
        set_seed(11); STRATEGIES[name](dls, 'glyphnet', steps=2, progress=False)
        assert draw() == want and (flags.deterministic, flags.benchmark) == (False, True)
        set_seed(12); want = draw()
        set_seed(12)
        with pytest.raises(BadInput): STRATEGIES[name](dls, 'nothing', steps=2)
        assert draw() == want, "a run that fails, too"
    finally: flags.deterministic, flags.benchmark = was

# Frozen arms: a head that is fitted until it is done

@pytest.mark.parametrize('name', FROZEN)
def test_frozen_arms_use_no_budget(name, count):
    "Without one, in steps or in epochs: the same weights, and one row for the recorder"
    runs = [STRATEGIES[name](digits.dls(shots=2), 'glyphnet', progress=False, **b)
            for b in ({}, dict(steps=7), dict(epochs=2))]
    assert len({weights_hash(l.model) for l in runs}) == 1
    for l in runs:
        r = l.recorder
        assert len(r.losses) == len(r.lrs) == len(r.values) == 1 and r.iters == [1] and r.lrs == [0]
        assert r.metric_names == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time'] and len(r.values[0]) == 3
        r.plot_loss()
        row = r.values[0]
        with l.no_bar(): np.testing.assert_allclose(row[1:], l.validate(), atol=1e-5)
    with pytest.raises(BadInput, match='weight decay, as in wd=') as e:
        STRATEGIES[name](digits.dls(shots=2), 'glyphnet', lr=.1)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('augment', [False, True])
def test_feature_extraction_is_the_probe(augment):
    "The converged head on the features of the training pictures, in an ordinary Learner that predicts the same"
    dls = digits.dls(shots=5, bs=32, augment=augment)
    learn = feature_extraction(dls, 'glyphnet', progress=False)
    f, v = (extract('glyphnet', digits.train, ids=dls.train_ids, cache=False),
            extract('glyphnet', digits.valid, cache=False))
    if augment: # the views that this seed drew
        set_seed(0, reproducible=True)
        again = learner(dls, 'glyphnet')
        dl = again.dls.train.new(shuffle=False, drop_last=False)
        f = SimpleNamespace(x=np.concatenate([pooled(again, dl)[0]
                                              for _ in range(4)]), y=f.y, views=4, classes=f.classes)
    probe = fit_probes(f, [np.arange(len(f.y))], feature_extraction.wd)
    assert probe.converged.all()
    with learn.no_bar(): p, _ = learn.get_preds()
    np.testing.assert_allclose(p, probe.probs(v)[0,0], atol=1e-4)
    np.testing.assert_array_equal(p.argmax(1), probe.predict(v)[0,0])
    # the body is as it was loaded
    assert weights_hash(learn.model[0]) == weights_hash(learner(dls, 'glyphnet').model[0])
    other = feature_extraction(dls, 'glyphnet', wd=1e-3, progress=False)
    assert other.model[1][-1].weight.norm() > 2*learn.model[1][-1].weight.norm()

def test_random_features_count_their_statistics():
    "On the training pictures, without labels: as `extract` adapts a body to them"
    dls = digits.dls(shots=5, bs=64, augment=False)
    learn = random_features(dls, 'glyphnet', progress=False)
    set_seed(0, reproducible=True)
    body = learner(dls, 'glyphnet', pretrained=False).model[0]
    some = Part('train', digits.train.x[dls.train_ids], digits.train.y[dls.train_ids], digits.classes)
    kw = dict(stats=arch('glyphnet').stats, cache=False)
    z, _ = pooled(learn, learn.dls.valid)
    np.testing.assert_allclose(z, extract(body, digits.valid, bn=some, **kw).x, atol=1e-3) # the pictures are one batch
    assert np.abs(z.numpy() - extract(body, digits.valid, **kw).x).max() > .1
    weights = [k for k,_ in body.named_parameters()]
    assert same({k: v for k,v in body.state_dict().items()}, learn.model[0].state_dict()) == weights
    random_features(dls, arch('squeezenet1_1', 'random'), progress=False) # no BatchNorm, nothing to count

@pytest.mark.parametrize('name', FROZEN)
def test_stored_runs_by_steps_run_again(name):
    "Records of frozen arms from before say what they said"
    rows = lesson_records('how_much_data').rows(kind='report', strategy=name, shots=20, pixel_hash=digits.pixel_hash)
    r, s = rows[0], rows[0].spec
    dls = digits.dls(shots=s['shots'], seed=s['seed'], bs=s['bs'], augment=s['augment'], device='cpu')
    learn = _SGD[name](dls, s['backbone'], steps=s['steps'], lr=s['lr'], seed=s['seed'], progress=False,
                                opt_func=Adam) # as `run_spec` has it for the oldest
    assert (digits.unopened().score(learn).pred == r.result['pred']).mean() >= .97 and s['code'] <= 3

# The last layers

def plain(learn): return nullcontext()

def test_a_cell_of_the_lesson_beside_its_module(monkeypatch):
    "The lesson makes the strategies anew that the library has; other lines under a name of the course are refused"
    monkeypatch.setattr('tlcourse.strategy.STRATEGIES', dict(STRATEGIES))
    @recipe(rate=5e-3)
    def fine_tuning(learn, epochs, lr):
        "As in the lesson"
        learn.unfreeze()
        learn.fit_one_cycle(epochs, slice(lr/25, lr))
    with pytest.raises(BadInput, match="there is a strategy 'fine-tuning' already"):
        @recipe(rate=5e-3, name='fine-tuning')
        def another(learn, epochs, lr): learn.fit_one_cycle(epochs, slice(lr/25, lr))

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_last_layers_with_and_without_storing(precision, monkeypatch):
    "What is frozen runs once, and nothing else changes by that"
    def run():
        dls = digits.dls(shots=5, bs=10, augment=False)
        return STRATEGIES['last-layers'](dls, 'glyphnet', steps=12, progress=False, precision=precision)
    passes, old = [], activations.stored_activations
    monkeypatch.setattr(activations, 'stored_activations', lambda learn: passes.append(1) or old(learn))
    a = run()
    monkeypatch.setattr(finetune, '_stored', plain)
    b = run()
    assert passes == [1] and isinstance(a.model[0][0], nn.Module) and len(a.dls.train_ids) == 50
    rtol = 1e-5 if precision == 'fp32' else 1e-2
    for k,v in a.model.state_dict().items():
        torch.testing.assert_close(v, b.model.state_dict()[k], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(a.recorder.losses, b.recorder.losses, rtol=rtol)

@pytest.mark.parametrize('name,first',
                         [('glyphnet', '0.4.convs.'), ('resnet18', '0.6.1.'), ('tf_efficientnet_lite0', '0.7.0.')])
def test_last_layers_freeze_two_thirds(name, first):
    "The first stages are as they were, statistics too; from `first` on everything moves"
    size = 32 if name == 'glyphnet' else 48
    a, t = arch(name, 'random'), target('digits', size=size)
    set_seed(0, reproducible=True)
    was = state(SimpleNamespace(model=learner(t.dls(shots=1), a).model))
    learn = STRATEGIES['last-layers'](t.dls(shots=1), a, steps=2, progress=False) # augmented
    keys = [*was]
    i = next(i for i,k in enumerate(keys) if k.startswith(first))
    assert same(was, learn.model.state_dict()) == keys[:i]
    assert [round(h['lr']/learn.opt.hypers[-1]['lr'], 6) for h in learn.opt.hypers] == [.04, .2, 1]

def test_last_layers_of_a_body_in_one_piece():
    "A transformer's frozen blocks are no stages that could be stored: they run each time"
    t = target('digits', size=224)
    vit = arch('timm/vit_tiny_patch16_224', 'random')
    learn = STRATEGIES['last-layers'](t.dls(shots=1, bs=10, valid_shots=1, augment=False), vit, steps=1, progress=False)
    assert len(learn.recorder.losses) == 1

# As fastai does it

def test_fine_tune_is_what_a_user_of_fastai_calls():
    "vision_learner and fine_tune, to the bit"
    ours = STRATEGIES['fine_tune'](digits.dls(shots=2, bs=8), 'glyphnet', epochs=3, progress=False)
    set_seed(0, reproducible=True)
    theirs = vision_learner(digits.dls(shots=2, bs=8), arch('glyphnet'), metrics=accuracy)
    theirs.model.to(memory_format=torch.channels_last)
    with theirs.no_bar(), theirs.no_logging(): theirs.fine_tune(3)
    a, b = state(ours), state(theirs)
    assert same(a, b) == [*a] == [*b] and ours.head_name != learner(digits.dls(shots=2), 'glyphnet').head_name
    assert STRATEGIES['fine_tune'].rate == 2e-3 and STRATEGIES['fine_tune'].untuned

@pytest.mark.parametrize('steps,epochs', [(1, 1), (9, 2), (10, 2), (11, 3), (30, 9)])
def test_fine_tune_turns_steps_into_epochs(steps, epochs):
    "Three batches each; one epoch is the frozen one, which the recorder has forgotten"
    learn = STRATEGIES['fine_tune'](digits.dls(shots=2, bs=8), 'glyphnet', steps=steps, progress=False)
    assert len(learn.recorder.values) == epochs and len(learn.recorder.losses) == 3*epochs

# A strategy of one's own

def test_own_strategies():
    try:
        @strategy(wd=.5)
        def mine(dls, backbone, epochs, steps, wd, seed, more=1): return wd, more
        assert STRATEGIES['mine'] is mine and mine.wd == .5 and mine.rate is None and not mine.untuned
        dls = digits.dls(shots=1)
        assert mine(dls, 'glyphnet') == (.5, 1) and mine(dls, 'glyphnet', None, None, .1, more=2) == (.1, 2)
        with pytest.raises(BadInput, match="wd=0.5, name='my-mine'"):
            strategy(wd=.5, name='mine')(lambda **kwargs: None)
        with pytest.raises(BadInput, match='no learning rate'): mine(dls, 'glyphnet', lr=.1)
        with pytest.raises(BadInput, match='lacks wd'):
            strategy(wd=.5)(lambda dls, backbone, epochs, steps, lr, seed: None)
        for both in {}, dict(rate=.1, wd=.1):
            with pytest.raises(BadInput, match='exactly one'): strategy(**both)
    finally: STRATEGIES.pop('mine', None)

# What stays where it is, phase by phase

def watch(learn_of, monkeypatch):
    "The Learner of a strategy, and its state at the start of each fit and at the end"
    import fastai.learner
    states, fit = [], fastai.learner.Learner.fit
    def watched(self, *args, **kwargs): states.append((self, state(self))); return fit(self, *args, **kwargs)
    monkeypatch.setattr(fastai.learner.Learner, 'fit', watched)
    learn = learn_of()
    return learn, [s for l,s in states if l is learn] + [state(learn)]

def test_gradual_unfreezes_from_the_head_down(monkeypatch):
    "Groups below are untouched, BatchNorm's weights and statistics too"
    dls = digits.dls(shots=2, bs=8)
    learn, s = watch(lambda: STRATEGIES['gradual'](dls, 'glyphnet', steps=9, progress=False), monkeypatch)
    kept = [same(a, b) for a,b in zip(s, s[1:])]
    assert len(kept) == 3 # three layer groups: stem, stages, head
    stem, stages = [[k for k in s[0] if k.startswith('0.') and (k.split('.')[1] in '012') == early]
                    for early in (True, False)]
    assert kept[0] == stem + stages and kept[1] == stem and not kept[2]
    assert all(p.requires_grad for p in learn.model.parameters())
    assert [round(h['lr']/learn.opt.hypers[-1]['lr'], 6) for h in learn.opt.hypers] == [.04, .2, 1]

def test_lp_ft_starts_from_the_probe(monkeypatch):
    "First the head alone, which is then better than nothing; then everything moves"
    dls = digits.dls(shots=5, bs=32)
    learn, s = watch(lambda: STRATEGIES['lp-ft'](dls, 'glyphnet', steps=60, progress=False), monkeypatch)
    probe = _SGD['feature-extraction'](dls, 'glyphnet', steps=20, progress=False)
    assert len(s) == 2 and len(same(s[0], state(probe))) == len(s[0])
    stats = [k for k in s[0] if 'running' in k or 'num_batches' in k]
    assert same(s[0], s[1]) == stats # weights all move, BatchNorm's statistics do not

def test_lp_ft_goes_on_where_the_probe_stopped():
    "With the statistics kept, the first loss of the second phase is near the probe's last; with new ones it is not"
    jump = {}
    for bn in 'eval', 'train':
        dls = target('textures').dls(shots=5, bs=50, augment=False)
        losses = STRATEGIES['lp-ft'](dls, 'glyphnet', steps=60, lr=1e-5, bn=bn, progress=False)
        seen = [float(o) for o in losses.recorder.losses]
        jump[bn] = seen[59] - seen[19]
    assert jump['eval'] < .1 < jump['train'], jump
    with pytest.raises(BadInput, match='bn'): STRATEGIES['lp-ft'](dls, 'glyphnet', steps=5, bn='no')

def test_lp_ft_share(count):
    dls = digits.dls(shots=1)
    with pytest.raises(BadInput, match='share'): STRATEGIES['lp-ft'](dls, 'glyphnet', steps=5, share=1.)
    a = STRATEGIES['lp-ft'](dls, 'glyphnet', steps=5, share=0, lr=.005, bn='train', progress=False)
    b = STRATEGIES['fine-tuning'](dls, 'glyphnet', steps=5, lr=.005, progress=False)
    assert len(same(state(a), state(b))) == len(state(a)) # without a probe it is fine-tuning
    assert count[0] == 10

def test_rates_of_the_groups():
    dls = digits.dls(shots=1)
    for name,want in ('single-rate', [1, 1, 1]), ('fine-tuning',
                                                  [.04, .2, 1]), ('lp-ft', [.04, .2, 1]), ('scratch', [1, 1, 1]):
        learn = STRATEGIES[name](dls, 'glyphnet', steps=3, lr=.01, progress=False)
        assert [round(h['lr']/learn.opt.hypers[-1]['lr'], 6) for h in learn.opt.hypers] == want, name

# fastai against plain torch: the loop of the lesson, on the same batches

def cos(a, b, t): return b + (a - b)*(1 + math.cos(math.pi*t))/2

def cycle(t, start, top, end, turn):
    return cos(start, top, t/turn) if t < turn else cos(top, end, (t - turn)/(1 - turn))

def norm_or_bias(model):
    return {id(p) for m in model.modules()
            for n,p in m.named_parameters(recurse=False) if n == 'bias' or isinstance(m, nn.BatchNorm2d)}

def torch_fit(model, batches, tops, turn, div, loss_func):
    "One cycle of AdamW over `batches`, at the rates `tops` for stem, stages and head"
    plain, groups = norm_or_bias(model), []
    for part,top in zip([model[0][:3], model[0][3:], model[1]], tops):
        for wd in 0, .01:
            ps = [p for p in part.parameters() if p.requires_grad and (id(p) in plain) == (wd == 0)]
            if ps: groups.append(dict(params=ps, top=top, weight_decay=wd))
    opt, losses = torch.optim.AdamW(groups, eps=1e-5), []
    model.train()
    for i,(x,y) in enumerate(batches):
        for g in opt.param_groups:
            g['lr'] = cycle(i/len(batches), g['top']/div, g['top'], g['top']/1e5, turn)
            g['betas'] = cycle(i/len(batches), .95, .85, .95, turn), .99
        loss = loss_func(model(x), y)
        loss.backward(); opt.step(); opt.zero_grad()
        losses.append(loss.item())
    return losses

def torch_fine_tune(model, first, then, base_lr=2e-3):
    bn = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    for p in model[0].parameters(): p.requires_grad_(id(p) in bn)
    losses = torch_fit(model, first, [base_lr/10, base_lr/10, base_lr], .99, 25, F.cross_entropy)
    model.requires_grad_(True)
    top = base_lr/2
    return losses + torch_fit(model, then, [top/100, top/10, top], .3, 5, F.cross_entropy)

class Seen(Callback):
    "Batches and losses of training, one list for each fit; batches are cast to the model's precision"
    def __init__(self): self.fits, self.losses = [], []
    def before_fit(self): self.fits.append([])
    def before_batch(self):
        self.learn.xb = [self.xb[0].as_subclass(torch.Tensor).to(next(self.model.parameters()).dtype)]
        self.learn.yb = [self.yb[0].as_subclass(torch.Tensor)]
        if self.training: self.fits[-1].append((*self.xb, *self.yb))
    def after_loss(self):
        if self.training: self.losses.append(self.loss.item())

@pytest.mark.parametrize('dtype,freeze_epochs,epochs', 
                         [(torch.float32, 2, 8), pytest.param(torch.float64, 3, 13, marks=pytest.mark.slow)])
def test_plain_torch_twin_of_fine_tune(dtype, freeze_epochs, epochs):
    "In fp32 equal to 1e-5 over 50 steps; in float64 over a whole run, weights and running statistics too"
    set_seed(0)
    learn = learner(digits.dls(shots=5, bs=10, device='cpu'), 'glyphnet', loss_func=F.cross_entropy)
    learn.model.to(dtype)
    twin, seen = deepcopy(learn.model), Seen()
    learn.remove_cbs([learn.progress, learn.recorder]) # the recorder holds single precision
    learn.fine_tune(epochs, freeze_epochs=freeze_epochs, cbs=seen)
    losses = torch_fine_tune(twin, *seen.fits)
    assert len(losses) == len(seen.losses) == 5*(freeze_epochs + epochs)
    assert losses[0] > 2*losses[-1]
    assert max(abs(a-b) for a,b in zip(losses, seen.losses)) < (1e-5 if dtype == torch.float32 else 1e-7)
    if dtype == torch.float64:
        for k,v in learn.model.state_dict().items():
            assert torch.allclose(v, twin.state_dict()[k], rtol=0, atol=1e-6), k
