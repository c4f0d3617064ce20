"The same code on CUDA: skipped where there is none."
import gc
from copy import deepcopy
from pathlib import Path
import numpy as np, pytest, torch

pytestmark = pytest.mark.gpu
BENCH = Path(__file__).parent.parent/'benchmarks'

@pytest.fixture(scope='module')
def digits():
    from tlcourse.data import target
    return target('digits')

@pytest.fixture
def exact():
    "Convolutions in float32 as on a CPU; torch's default is TF32."
    old, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = old

def quick(learn, epochs=1):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-3)
    return learn

def copied(tensors):
    "name -> the values as they are now, on the CPU: a Learner's model moves to the device when its fit begins"
    return {k: v.detach().cpu().clone() for k,v in tensors}

# --- strategies

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_strategies_train_on_cuda(digits, precision):
    from tlcourse.strategy import STRATEGIES
    for name,fit in STRATEGIES.items():
        learn = fit(digits.dls(shots=20, bs=32, device='cuda'), 'glyphnet', steps=60, progress=False,
                    precision=precision)
        ps = [*learn.model.parameters()]
        assert all(p.is_cuda and p.dtype == torch.float32 and p.isfinite().all() for p in ps), name
        assert digits.unopened().score(learn).accuracy > .5, name

def test_the_same_losses_as_on_a_cpu(digits, exact):
    from fastai.vision.all import Callback, set_seed
    from tlcourse.learner import learner
    from tlcourse.training import NoSync, fused_adam
    class EachLoss(Callback):
        def before_fit(self): self.seen = []
        def after_loss(self):
            if self.training: self.seen.append(self.learn.loss_grad.detach())
    def losses(device, *cbs):
        set_seed(0, reproducible=True)
        learn = learner(digits.dls(shots=5, bs=10, augment=False, device='cpu'), 'glyphnet', opt_func=fused_adam)
        state = learn.model.state_dict()
        learn = learner(digits.dls(shots=5, bs=10, augment=False, device=device), 'glyphnet', opt_func=fused_adam,
                        cbs=[c := EachLoss(), *cbs])
        learn.model.load_state_dict(state)
        learn.unfreeze()
        set_seed(0, reproducible=True)
        quick(learn)
        return torch.stack(c.seen).cpu().numpy(), np.array([float(o) for o in learn.recorder.losses])
    (a, smooth_a), (b, smooth_b) = losses('cpu'), losses('cuda', NoSync())
    np.testing.assert_allclose(b, a, rtol=1e-2)
    np.testing.assert_allclose(smooth_b, smooth_a, rtol=1e-2)

def test_true_freeze_in_mixed_precision(digits):
    from tlcourse.learner import learner
    from tlcourse.layers import true_freeze
    from tlcourse.training import Bf16
    for half in 'fp16', 'bf16':
        learn = true_freeze(learner(digits.dls(shots=5, device='cuda'), 'glyphnet', cbs=[Bf16()]*(half == 'bf16')))
        if half == 'fp16': learn.to_fp16()
        before = copied(learn.model.state_dict().items())
        quick(learn, 2)
        after = copied(learn.model.state_dict().items())
        moved = {k for k in after if not torch.equal(after[k], before[k])}
        assert moved and all(k.startswith('1.') for k in moved), (half, moved)

def test_stored_activations_on_cuda(digits):
    from tlcourse.learner import learner
    from tlcourse.layers import true_freeze
    from tlcourse.activations import stored_activations
    from tlcourse.training import fused_adam
    learn = true_freeze(learner(digits.dls(shots=20, bs=32, augment=False, device='cuda'), 'glyphnet',
                                opt_func=fused_adam), -2)
    before = copied(learn.model.named_parameters())
    with stored_activations(learn): quick(learn, 4)
    moved = {k: not torch.equal(v, before[k]) for k,v in copied(learn.model.named_parameters()).items()}
    assert moved == {k: v.requires_grad for k,v in learn.model.named_parameters()} and any(moved.values())
    assert digits.unopened().score(learn).accuracy > .5

# --- data

def test_pixels_lie_on_the_device():
    "They take their room there, as uint8, and the batches are those of a CPU."
    from fastai.vision.all import set_seed
    from tlcourse.data import target
    digits = target('digits') # a part copies its pixels once: those of the other tests are there already
    def batches(device):
        dls = digits.dls(bs=64, augment=False, device=device)
        set_seed(0)
        return [(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)) for x,y in dls.train] + [*dls.valid]
    gc.collect() # what earlier tests dropped is given back now, not while this one counts
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    dls = digits.dls(bs=64, device='cuda')
    x, y = next(iter(dls.train))
    assert x.is_cuda and y.is_cuda and x.dtype == torch.float32
    del x, y
    gc.collect()
    held = torch.cuda.memory_allocated() - before
    assert digits.train.x.numel() <= held < 4*(digits.train.x.numel() + digits.valid.x.numel())
    assert not digits.train.x.is_cuda, 'the target itself stays where it was'
    for (xa, ya), (xb, yb) in zip(batches('cpu'), batches('cuda'), strict=True):
        # A card divides by 255 as a product with the rounded 1/255: the last bit may differ
        assert xb.is_cuda and (xa - xb.cpu()).abs().max() < 1e-6 and torch.equal(ya, yb.cpu())

def test_augmentation_on_cuda_is_that_of_a_cpu(digits):
    from tlcourse.augment import AUGMENTS, BatchAugment
    x = digits.train.x[:8].float()/255
    for name in AUGMENTS:
        torch.manual_seed(0)
        a = BatchAugment(name).change(x.clone())
        torch.manual_seed(0)
        b = BatchAugment(name).change(x.cuda())
        assert b.is_cuda and (b.cpu() - a).abs().max() < 1e-3, name

def test_no_step_waits(digits, monkeypatch):
    "With NoSync; fastai's own recorder asks for the loss in each, so waiting is seen where there is any."
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu
    facts = {}
    rows = gpu.waits(digits, dict(gpu.SMOKE, wait=5), torch.device('cuda'), facts)
    assert rows[0]['value'] == 0, facts['waits']
    assert rows[1]['value'] >= 1, facts['waits']

# --- features and heads

def test_features_on_cuda(digits, exact, tmp_path, monkeypatch):
    from tlcourse.features import extract
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path))
    slow, fast, half = (extract('glyphnet', digits.valid, device=d, precision=how).x
                        for d,how in (('cpu', 'fp32'), ('cuda', 'fp32'), ('cuda', 'bf16')))
    np.testing.assert_allclose(fast, slow, atol=1e-3)
    far = np.linalg.norm(half - slow, axis=1)/np.linalg.norm(slow, axis=1)
    assert 0 < far.mean() < .02
    assert extract('glyphnet', digits.valid, device='cuda', precision='bf16').cached

def test_probes_on_cuda(digits):
    from tlcourse.data import kshot
    from tlcourse.features import extract
    from tlcourse.probes import fit_probes
    f = extract('glyphnet', digits.train, device='cpu', cache=False)
    subsets = [kshot(f.y, k, s) for k in (1, 5) for s in range(2)]
    a, b = (fit_probes(f, subsets, (1e-3, 1e-1), device=d) for d in ('cpu', 'cuda'))
    assert b.weight.is_cuda and b.converged.all()
    np.testing.assert_allclose(b.objective, a.objective, rtol=1e-6)
    assert (a.predict(f) == b.predict(f)).mean() > .999

# --- ImageNet weights, drawings of things

def test_lite0_learns_emoji_on_cuda():
    "fastai's own call, and no more than it"
    from fastai.vision.all import accuracy, vision_learner
    from tlcourse.backbones import tf_efficientnet_lite0
    from tlcourse.data import target
    t = target('emoji')
    learn = quick(vision_learner(t.dls(shots=10, bs=32, device='cuda'), tf_efficientnet_lite0, metrics=accuracy), 3)
    assert all(p.is_cuda and p.isfinite().all() for p in learn.model.parameters())
    assert t.unopened().score(learn).accuracy > 2/len(t.classes)

def test_lite0_features_of_emoji_on_cuda(exact, tmp_path, monkeypatch):
    from tlcourse.data import target
    from tlcourse.features import extract
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path))
    part = target('emoji').valid
    slow, fast = (extract('tf_efficientnet_lite0', part, device=d, ids=np.arange(32)).x for d in ('cpu', 'cuda'))
    np.testing.assert_allclose(fast, slow, atol=1e-3*np.abs(slow).max())

# --- compare, CUDA graphs

@pytest.mark.parametrize('precision,workers', [('fp32', 1), ('bf16', 2)])
def test_compare_on_cuda(precision, workers):
    from tlcourse.compare import compare
    c = compare('digits', shots=[5], seeds=3, steps=10, tune='none', device='cuda', say=None, precision=precision,
                workers=workers)
    assert c.settings['device'] == 'cuda'
    assert {o['strategy'] for o in c.cells} >= {'scratch', 'feature-extraction', 'fine-tuning'}

def test_cuda_graphs(digits, monkeypatch):
    "The graphed arm of the benchmark computes what the other computes, and trains."
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu
    dev = torch.device('cuda')
    torch.manual_seed(0)
    m = gpu.network('glyphnet').to(dev).train()
    torch.nn.init.normal_(m[1][-1].weight, std=.1) # it starts at zero, and so would all that is compared
    x = torch.rand(32, 3, 32, 32, device=dev)
    with torch.no_grad(): want = deepcopy(m)(x)
    got = gpu.graphed(m, x, 'fp32', dev)(x)
    assert want.abs().max() > 0 and (got - want).abs().max() < 1e-2*want.abs().max()
    learn = gpu.mine(digits, 'glyphnet', 32, dev, 'bf16', graphs=True)
    gpu.train(learn, 40)
    losses = [float(o) for o in learn.recorder.losses]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
