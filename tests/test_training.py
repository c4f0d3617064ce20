"The fast ways to train against the slow ones."
from contextlib import nullcontext
import numpy as np, pytest, torch
from fastai.callback.schedule import *
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from tlcourse import activations, finetune, training
from tlcourse.backbones import arch
from tlcourse.learner import learner
from tlcourse.base import BadInput
from tlcourse.cli import main
from tlcourse.compare import compare
from tlcourse.runs import CODE, run_spec, task
from tlcourse.data import target
from tlcourse.activations import stored_activations
from tlcourse.features import extract
from tlcourse.strategy import STRATEGIES
from tlcourse.audit import depth_split
from tlcourse.layers import true_freeze
from tlcourse.stats import paired_ci
from tlcourse.store import entries
from tlcourse.study import Study
from tlcourse.training import Bf16, NoSync, bf16_units, fused_adam, pick_precision

digits = target('digits')

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def losses(learn): return torch.stack([o.reshape(()) for o in learn.recorder.losses])

def fit(epochs=2, lr=5e-3, freeze=None, cbs=(), backbone='glyphnet', dls=None, seed=0, **kwargs):
    dls = dls or digits.dls(shots=5, bs=16, device='cpu')
    set_seed(seed, reproducible=True)
    learn = learner(dls, backbone, **kwargs)
    learn.unfreeze() if freeze is None else true_freeze(learn, freeze)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=list(cbs))
    return learn

# the optimiser

def test_fused_is_fastais_adam():
    a, b = fit(6, slice(2e-4, 5e-3), opt_func=fused_adam), fit(6, slice(2e-4, 5e-3), opt_func=Adam)
    assert (losses(a) - losses(b)).abs().max() < 1e-3 and losses(b)[-1] < losses(b)[0]
    for (k,p),q in zip(a.model.named_parameters(), b.model.parameters()):
        assert (p-q).norm() <= .02*(1e-3 + q.norm()), k

def test_fused_in_float64_to_the_last_digits():
    "One schedule, many steps, in double precision: the formula is the same, not merely near"
    def last(opt_func):
        w = [torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)),
             torch.nn.Parameter(torch.ones(3, dtype=torch.float64))]
        opt = opt_func([[w[0]], [w[1]]], lr=.1, wd=.05)
        opt.state[w[1]]['do_wd'] = False
        for i in range(200):
            opt.set_hyper('lr', [.1/(1+i), .03/(1+i)]); opt.set_hyper('mom', .95 - .1*(i % 7)/7)
            ((w[0].sum(1) - w[1])**2 + (w[0]**4).sum(1)).sum().backward()
            opt.step(); opt.zero_grad()
        return torch.cat([o.detach().flatten() for o in w])
    assert torch.allclose(last(fused_adam), last(Adam), rtol=0, atol=1e-9)

def test_ten_groups_at_one_rate_are_one_group():
    a, b = (fit(opt_func=fused_adam, splitter=depth_split(k), wd=.01) for k in (2, 6))
    assert (losses(a) - losses(b)).abs().max() < 1e-4
    assert len(b.opt.param_lists) == 6

@pytest.mark.parametrize('n', [-1, -2])
def test_what_is_frozen_stays(n):
    learn = true_freeze(learner(digits.dls(shots=5, device='cpu'), 'glyphnet', opt_func=fused_adam), n)
    before, ids = state(learn), {id(p) for g in learn.opt.param_lists[n:] for p in g}
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    live = {k for k,p in learn.model.named_parameters() if id(p) in ids}
    same = {k for k,v in learn.model.state_dict().items() if torch.equal(v, before[k])}
    assert live and not live & same
    assert all(k in same for k,_ in learn.model.named_parameters() if k not in live)

def test_it_can_be_saved_and_loaded(tmp_path):
    learn = fit(opt_func=fused_adam)
    learn.path = tmp_path
    with_opt = state(learn)
    learn.save('here', with_opt=True)
    again = learner(digits.dls(shots=5, device='cpu'), 'glyphnet', opt_func=fused_adam)
    again.path = tmp_path
    again.load('here', with_opt=True)
    p, q = (next(iter(l.model.parameters())) for l in (learn, again))
    assert torch.equal(learn.opt.state[p]['grad_avg'], again.opt.state[q]['grad_avg'])
    assert all(torch.equal(v, with_opt[k]) for k,v in again.model.state_dict().items())

def test_losses_on_the_device():
    a, b = fit(opt_func=fused_adam), fit(opt_func=fused_adam, cbs=[NoSync()])
    assert torch.allclose(losses(a), losses(b), atol=1e-6) and losses(b).device.type == 'cpu'
    assert type(b.recorder.smooth_loss) is type(a.recorder.smooth_loss)

# stored activations

def plain(**kwargs): return digits.dls(shots=5, bs=16, augment=False, device='cpu', **kwargs)

def trained(how, backbone, n):
    set_seed(1, reproducible=True)
    learn = true_freeze(learner(plain(), backbone, opt_func=fused_adam), n)
    with learn.no_bar(), learn.no_logging(), how(learn): learn.fit_one_cycle(2, 5e-3)
    return learn

@pytest.mark.parametrize('n', [-1, -2])
def test_stored_is_the_long_way(n):
    a, b = (trained(how, 'glyphnet', n) for how in (stored_activations, lambda l: nullcontext()))
    assert [*a.model.state_dict()] == [*b.model.state_dict()]
    for (k,p),q in zip(a.model.state_dict().items(), b.model.state_dict().values()):
        assert (p-q).abs().max() <= 1e-3*(1 + q.abs().max()), k
    assert torch.allclose(losses(a), losses(b), atol=1e-4)
    assert np.allclose(a.recorder.values, b.recorder.values, atol=1e-3)

@pytest.mark.parametrize('backbone,n',
                         [('resnet18', -1), ('resnet18', -2), ('mobilenet_v2', -2), ('convnext_tiny', -2)])
def test_stored_in_other_bodies(backbone, n):
    "The loss of the first step is that of the long way; later ones drift by what rounding does to small gradients"
    net = arch(backbone, 'random')
    a, b = (losses(trained(how, net, n)) for how in (stored_activations, lambda l: nullcontext()))
    assert torch.allclose(a[:2], b[:2], atol=1e-4) and torch.allclose(a[:4], b[:4], atol=.02)
    learn = true_freeze(learner(plain(), net), n)
    with stored_activations(learn):
        dl, tail = learn.dls.train.new(shuffle=False), learn.model.eval()
        with torch.no_grad(): got = torch.cat([tail(x) for x,_ in dl])
    with torch.no_grad(): want = torch.cat([learn.model.eval()(x) for x,_ in learn.dls.train.new(shuffle=False)])
    assert torch.allclose(got, want, atol=1e-4)

def test_maps_are_kept_for_the_same_pictures_and_stages(monkeypatch):
    "And for no others: other pixels, other weights, another cut run again"
    monkeypatch.setattr(activations, '_kept', {})
    ran, old = [], activations._maps
    monkeypatch.setattr(activations, '_maps', lambda dl, *args: ran.append(dl.part.name) or old(dl, *args))
    def fit(n=-2, change=lambda learn: None, **kwargs):
        set_seed(0)
        learn = learner(digits.dls(shots=5, bs=16, augment=False, device='cpu', **kwargs), 'glyphnet',
                        opt_func=fused_adam)
        change(learn)
        ran.clear()
        with learn.no_bar(), learn.no_logging(), stored_activations(true_freeze(learn, n)): learn.fit_one_cycle(1, 5e-3)
        return state(learn), len(ran)
    def other(learn): next(learn.model[0].parameters()).data.mul_(1.01)
    def lies(learn): learn.model.to(memory_format=torch.channels_last)
    first, again = fit(), fit()
    assert (first[1], again[1]) == (2, 0) and all(torch.equal(first[0][k], again[0][k]) for k in first[0])
    # The validation part is the same
    assert fit(change=other)[1] == 2 and fit(change=lies)[1] == 2 and fit(n=-1)[1] == 2 and fit(seed=1)[1] == 1
    assert fit()[1] == 0
    monkeypatch.setattr(activations, '_most_kept', 1)
    assert fit(seed=2)[1] == 1 and fit(seed=2)[1] == 1

def test_stored_on_the_disk(monkeypatch):
    "Above the limit the activations lie in a file; the training is the same, and the file goes"
    import os, tempfile
    seen = []
    old = tempfile.TemporaryDirectory.__exit__
    def leave(self, *args): seen.append(sorted(os.listdir(self.name))); return old(self, *args)
    def run():
        learn = true_freeze(learner(plain(), 'glyphnet', opt_func=fused_adam), -2)
        with learn.no_bar(), learn.no_logging(), stored_activations(learn): learn.fit_one_cycle(1, 5e-3)
        return state(learn)
    set_seed(0); a = run()
    monkeypatch.setattr(activations, '_most', 0)
    monkeypatch.setattr(activations, '_kept', {})
    monkeypatch.setattr(tempfile.TemporaryDirectory, '__exit__', leave)
    set_seed(0); b = run()
    assert seen == [['0', '1']]
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_stored_says_no():
    from fastai.vision.all import ImageDataLoaders
    frozen = lambda dls: true_freeze(learner(dls, 'glyphnet'))
    with pytest.raises(BadInput, match='change from pass'), stored_activations(frozen(digits.dls(shots=2))): pass
    with pytest.raises(BadInput, match='truly frozen'), stored_activations(learner(plain(), 'glyphnet')): pass
    learn = frozen(plain())
    model, dls = learn.model, learn.dls
    with pytest.raises(BadInput, match='would train now'), stored_activations(learn):
        learn.unfreeze()
        with learn.no_bar(): learn.fit(1)
    assert learn.model is model and learn.dls is dls
    assert not any(cb.name == '_held' for cb in learn.cbs)

def test_stored_takes_pictures_of_a_target(tmp_path):
    from fastai.vision.all import ImageDataLoaders
    from PIL import Image
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(4): Image.fromarray(np.full((32, 32, 3), 40*i, np.uint8)).save(tmp_path/c/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.5, bs=2, num_workers=0, device='cpu')
    learn = true_freeze(learner(dls, 'glyphnet'))
    with pytest.raises(BadInput, match='pictures of a Target'), stored_activations(learn): pass

def test_gradual_runs_frozen_stages_once(monkeypatch):
    used = []
    def spy(learn): used.append(1); return stored_activations(learn)
    monkeypatch.setattr(activations, 'stored_activations', spy)
    fast = STRATEGIES['gradual'](plain(), 'glyphnet', steps=9, progress=False)
    assert len(used) == 2 # of three phases the last has nothing frozen
    STRATEGIES['gradual'](digits.dls(shots=2, device='cpu'), 'glyphnet', steps=3, progress=False)
    assert len(used) == 2, "pictures that change from pass to pass"
    monkeypatch.setattr(activations, 'stored_activations', lambda learn: nullcontext())
    slow = STRATEGIES['gradual'](plain(), 'glyphnet', steps=9, progress=False)
    assert torch.allclose(losses(fast), losses(slow), atol=1e-4)
    for (k,p),q in zip(fast.model.state_dict().items(), slow.model.state_dict().values()):
        assert (p-q).abs().max() <= 1e-3*(1 + q.abs().max()), k

# bfloat16: with units or without, what is computed is the same, only the speed differs

@pytest.fixture
def units(monkeypatch): monkeypatch.setattr(training, 'bf16_units', lambda device='cpu': True)

def test_precision_by_name(monkeypatch):
    assert pick_precision('fp32') == 'fp32'
    with pytest.raises(BadInput, match='precision'): pick_precision('fp16')
    for has,auto in (True, 'bf16'), (False, 'fp32'):
        monkeypatch.setattr(training, 'bf16_units', lambda device='cpu': has)
        assert pick_precision('auto') == auto
    with pytest.raises(BadInput, match='no units'): pick_precision('bf16')
    with pytest.raises(BadInput, match='no units'):
        STRATEGIES['scratch'](plain(), 'glyphnet', steps=1, precision='bf16')
    with pytest.raises(BadInput, match='no units'): extract('glyphnet', digits.valid, precision='bf16')

def test_no_units_is_exit_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(training, 'bf16_units', lambda device='cpu': False)
    assert main(['compare', 'digits', '--precision', 'bf16', '--device', 'cpu', '--out', str(tmp_path/'o')]) == 2
    assert 'no units' in capsys.readouterr().err and not (tmp_path/'o').exists()
    assert main(['compare', 'digits', '--precision', 'half', '--out', str(tmp_path/'o')]) == 2

@pytest.mark.slow
def test_bf16_accuracy_within_the_seed_interval(units):
    def right(seed, precision):
        dls = digits.dls(shots=20, seed=seed, bs=32, device='cpu')
        learn = STRATEGIES['fine-tuning'](dls, 'glyphnet', steps=60, seed=seed, progress=False, precision=precision)
        assert all(p.dtype == torch.float32 for p in learn.model.parameters()) and not torch.is_autocast_enabled('cpu')
        return digits.unopened().score(learn).correct, losses(learn)
    (a, la), (b, lb) = (zip(*(right(s, p) for s in range(3))) for p in ('fp32', 'bf16'))
    assert not torch.equal(la[0], lb[0]), "nothing was computed in bfloat16"
    d = paired_ci(np.stack(a), np.stack(b))
    assert np.stack(a).mean() > .95
    assert d.low <= 0 <= d.high or abs(d.mean) < .005, d

def test_bf16_ends_with_the_fit(units):
    "Whatever ends it: afterwards the model computes in float32, bit for bit"
    learn = learner(plain(), 'glyphnet', opt_func=fused_adam)
    x = torch.rand(4, 3, 32, 32)
    class Stop(Exception): pass
    def loss(*args): raise Stop
    def forward(*args): raise Stop
    for part,broken in ('loss_func', loss), ('model', learn.model):
        was = getattr(learn, part)
        if part == 'model': hook = learn.model[0].register_forward_pre_hook(forward)
        else: learn.loss_func = broken
        before = [learn.model.eval()(x)] if part != 'model' else before
        with pytest.raises(Stop), learn.no_bar(): learn.fit(1, cbs=Bf16())
        assert not torch.is_autocast_enabled('cpu'), "a fit that broke leaves autocast on"
        setattr(learn, part, was)
        if part == 'model': hook.remove()
    copy = learner(plain(), 'glyphnet')
    copy.model.load_state_dict(learn.model.state_dict())
    assert torch.equal(learn.model.eval()(x), copy.model.eval()(x))

def test_features_in_bf16_have_a_file_of_their_own(units, tmp_path, monkeypatch):
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path))
    ids = np.arange(64)
    kw = dict(ids=ids, device='cpu', progress=False)
    a, b = (extract('glyphnet', digits.train, precision=p, **kw) for p in ('fp32', 'bf16'))
    assert not a.cached and not b.cached and len([e for e in entries() if e.kind == 'features']) == 2
    assert np.linalg.norm(a.x-b.x) < .02*np.linalg.norm(a.x) and not np.array_equal(a.x, b.x)
    assert extract('glyphnet', digits.train, precision='bf16', **kw).cached
    assert not torch.is_autocast_enabled('cpu')

# what is stored says how it was made

def test_records_name_the_precision(units, tmp_path):
    kw = dict(shots=[1], seeds=3, steps=2, tune='none', strategies='fine-tuning', workers=1, device='cpu', say=None,
              out=tmp_path)
    half, full = compare('digits', precision='bf16', **kw), compare('digits', **kw)
    assert half.settings['precision'] == 'bf16' and 'precision' not in full.settings
    assert half.records.run(half.specs['fine-tuning', 1][0]).spec['precision'] == 'bf16'
    assert len(half.records.rows(kind='report')) == 6, "runs of the one are none of the other"

def test_a_run_of_code_1_has_its_optimiser(monkeypatch):
    seen = []
    def spy(*args, **kwargs):
        learn = finetune.fine_tuning(*args, **kwargs)
        seen.append(learn.opt_func)
        return learn
    monkeypatch.setitem(STRATEGIES, 'fine-tuning', spy)
    where = task('digits', 'glyphnet', device='cpu')
    spec = dict(kind='tune', strategy='fine-tuning', backbone='glyphnet', shots=1, seed=0, bs=32, augment=True, V=1,
                lr=.005, steps=1)
    for code in 1, CODE: run_spec(where, {**spec, 'code': code})
    assert seen == [Adam, fused_adam]

def test_runs_go_in_order(tmp_path):
    "Those that are stored are told first, the others as they are asked for; results come in the order of the specs"
    st = Study(task('digits', 'glyphnet', device='cpu'), ['scratch', 'fine-tuning'], [1, 5], seeds=3, steps=3,
               tune='none', V=1, out=tmp_path, workers=1, say=None)
    specs = [st.spec(s, k, .005, 0) for k in (5, 1) for s in st.trained]
    st.sweep(specs[2:3])
    ran = []
    got = st.sweep(specs, on_done=lambda spec, res, fresh: ran.append((spec['strategy'], spec['shots'], fresh)))
    assert ran == [('scratch', 1, False), ('scratch', 5, True), ('fine-tuning', 5, True), ('fine-tuning', 1, True)]
    for s,r in zip(specs, got, strict=True): assert r['valid_loss'] == st.records.get(s)['valid_loss']
    assert len({r['valid_loss'] for r in got}) == 4
