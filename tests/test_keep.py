"Lesson 14's methods against the same thing computed another way, at their limits, and where they are misused."
import math
import numpy as np, pytest, torch
from copy import deepcopy
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam, SGD
from fastai.torch_core import params
from torch import nn
from tlcourse.backbones import glyphnet
from tlcourse.base import BadInput
from tlcourse.data import target
from tlcourse.keep import (Delta, ema, forgetting, importance, L2SP, lora, LwF, merge_lora, old_network, Replay, swa,
                           wise_ft)
from tlcourse.learner import learner
from tlcourse.world import SourceDrawer

def tiny(opt_func=Adam, nf=5, classes=2, wd=.01, seed=0):
    "A body with BatchNorm and a head, on 24 points"
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(3, nf), nn.BatchNorm1d(nf), nn.ReLU(), nn.Linear(nf, 4))
    xy = list(zip(torch.randn(24, 3) + 1, torch.arange(24) % classes))
    dls = DataLoaders.from_dsets(xy, xy, bs=8, shuffle=False, device='cpu')
    return Learner(dls, nn.Sequential(body, nn.Linear(4, classes)), loss_func=CrossEntropyLossFlat(),
                   opt_func=opt_func, splitter=lambda m: [params(m[0]), params(m[1])], wd=wd)

def fit(learn, *cbs, n=4, lr=slice(1e-2, 3e-2)):
    torch.manual_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, lr, cbs=cbs)
    return learn

def same(a, b):
    return all(torch.equal(x, y) for x,y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

def bits(m): return [v.numpy().tobytes() for v in m.state_dict().values()]

HEAD = nn.Linear(4, 7)
def batch(): return torch.ones(4, 3), torch.tensor([0, 1, 2, 3])
MAKE = {'L2SP': L2SP, 'Delta': Delta, 'LwF': lambda l,a: LwF(l, HEAD, a),
        'Replay': lambda l,a: Replay(l, HEAD, batch, a)}

# --- strength 0 and infinite

@pytest.mark.parametrize('name', MAKE)
def test_strength_zero_is_plain_fine_tuning(name):
    learn = tiny()
    assert bits(fit(learn, MAKE[name](learn, 0)).model) == bits(fit(tiny()).model)
    learn = tiny()
    assert bits(fit(learn, MAKE[name](learn, 1.)).model) != bits(fit(tiny()).model)

@pytest.mark.parametrize('opt', [Adam, SGD])
@pytest.mark.parametrize('cb', [L2SP, Delta])
def test_infinite_strength_is_the_source(cb, opt):
    learn = tiny(opt)
    was = deepcopy(learn.model)
    fit(learn, cb(learn, math.inf))
    assert all(torch.equal(p, q) for p,q in zip(was[0].parameters(), learn.model[0].parameters()))
    assert not torch.equal(was[1].weight, learn.model[1].weight) # the head is free
    assert not torch.equal(was[0][1].running_mean, learn.model[0][1].running_mean) # and so are the statistics

def test_very_strong_l2sp_is_near_the_source():
    "At 1e6, each weight is within 1e-5 of its source; fine-tuned plainly, it is a thousand times as far"
    def far(alpha):
        learn = tiny()
        was = deepcopy(learn.model[0])
        fit(learn, L2SP(learn, alpha))
        return max((p-q).abs().max().item() for p,q in zip(was.parameters(), learn.model[0].parameters()))
    assert far(1e6) < 1e-5 and far(0) > 1e-2 and far(0) > far(1) > far(100) > far(1e6)

def test_very_strong_delta_keeps_the_map():
    """At 1e6 the map of the training pictures stays within 5 % of its spread (Adam's steps have a length of their own,
    whatever the strength); plainly, it moves four times as far and more"""
    def moved(alpha):
        learn = tiny()
        was, x = deepcopy(learn.model[0]).train(), torch.stack([x for x,_ in learn.dls.train_ds])
        a = was(x)
        fit(learn, Delta(learn, alpha))
        return ((learn.model[0].train()(x) - a).pow(2).mean().sqrt()/a.std()).item()
    assert moved(1e6) < .05 and moved(0) > .2 and moved(0) > moved(1) > moved(100)

# --- the formulas

@pytest.mark.parametrize('alpha,beta', [(.3, 0.), (2., .7)])
def test_l2sp_step_is_the_minimum_of_step_and_penalty(alpha, beta):
    "After each step of rate lr, w solves: (w - where the step went)/lr + gradient of the penalty = 0"
    learn, seen = tiny(SGD, wd=0.), []
    cb = L2SP(learn, alpha, beta)
    class Spy(Callback): # the plain step by hand
        def before_step(self): self.went = [(p, p.detach() - h['lr']*p.grad, h['lr']) for ps,h in
                                          zip(self.opt.param_lists, self.opt.hypers) for p in ps]
        order = 5
        def after_step(self):
            for p in self.model.parameters(): p.grad = None
            cb.penalty(self.model).backward()
            for p,to,lr in self.went:
                g = torch.zeros_like(p) if p.grad is None else p.grad
                seen.append(((p.detach() - to)/lr + g).abs().max().item())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, cbs=[cb, Spy()])
    assert len(seen) == 3*8 and max(seen) < 1e-4

def numerical(f, w, eps=1e-6):
    g = torch.zeros_like(w)
    for i in range(w.numel()):
        d = torch.zeros_like(w).view(-1); d[i] = eps
        d = d.view_as(w)
        g.view(-1)[i] = (f(w+d) - f(w-d))/(2*eps)
    return g

def test_l2sp_gradient_is_the_numerical_one():
    learn = tiny()
    cb, m = L2SP(learn, 1.3, .4), learn.model.double()
    cb.source = {k: v.double() + .1 for k,v in cb.source.items()}
    cb.penalty(m).backward()
    for p in m[0][0].weight, m[0][1].bias, m[1].weight:
        def f(w):
            with torch.no_grad():
                old = p.clone(); p.copy_(w)
                res = cb.penalty(m).item()
                p.copy_(old)
            return res
        assert torch.allclose(p.grad, numerical(f, p.detach().clone()), atol=1e-7)
    w, w0 = m[0][0].weight[0, 0].item(), cb.source['0.weight'][0, 0].item()
    assert m[0][0].weight.grad[0, 0].item() == pytest.approx(1.3*(w - w0)) # by hand

@pytest.mark.parametrize('weights', [None, [1., 2, 0, 5]])
def test_delta_gradient_is_the_numerical_one(weights):
    cb, g = Delta(tiny(), 1., weights), torch.Generator().manual_seed(0)
    z, was = (torch.randn(3, 4, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    z.requires_grad_()
    cb.distance(z, was).backward()
    assert torch.allclose(z.grad, numerical(lambda v: cb.distance(v, was).item(), z.detach()), atol=1e-6)
    w = np.ones(4)/4 if weights is None else np.array(weights)/sum(weights)
    by_hand = sum(w[c]*float((z[i,c] - was[i,c]).detach().pow(2).sum()) for i in range(3) for c in range(4))/3
    assert cb.distance(z, was).item() == pytest.approx(by_hand)

def test_delta_is_zero_at_the_source_in_both_modes():
    "BatchNorm works by batch on both sides, or by its statistics on both; the source's statistics stay as they were"
    learn = tiny()
    cb, x = Delta(learn, 1.), torch.randn(8, 3)*3
    cb.learn = learn
    for mode in False, True:
        z = learn.model[0].train(mode)(x)
        assert cb._term(z, x).item() < 1e-10
    assert torch.equal(cb.source[1].running_mean, torch.zeros(5))

def test_lwf_term_is_cross_entropy_less_entropy():
    learn = tiny()
    cb, x = LwF(learn, HEAD, 1., T=3.), torch.randn(6, 3)
    cb.learn = learn
    learn.model[0][0].weight.data.mul_(1.5)
    z = learn.model[0].eval()(x)
    p, q = ((HEAD(o)/3).softmax(1).detach().numpy() for o in (cb.source.eval()(x), z))
    assert cb._term(z, x).item() == pytest.approx((p*(np.log(p) - np.log(q))).sum(1).mean(), abs=1e-6)

def test_importance_by_hand():
    learn = tiny()
    w = importance(learn)
    x, y = (torch.stack([torch.as_tensor(o[i]) for o in learn.dls.train_ds]) for i in (0, 1))
    body, (W, b) = learn.model[0].eval(), (o.detach() for o in learn.model[1].parameters())
    z = body(x).detach()
    def loss(z): return -(z@W.T + b).log_softmax(1)[range(24), y].mean()
    grow = torch.stack([loss(z*(torch.arange(4) != c)) for c in range(4)]) - loss(z)
    assert torch.allclose(w, grow.exp()/grow.exp().sum(), atol=1e-6)

# --- averages

class Walk(Callback):
    "Keeps the weights after each step"
    def before_fit(self): self.ws = []
    def after_step(self): self.ws.append([p.detach().clone() for p in self.model.parameters()])

def test_ema_is_the_recursion():
    learn, walk = tiny(), Walk()
    e = [p.detach().clone() for p in learn.model.parameters()] # the start is the first
    avg = ema(learn, .8)
    fit(learn, walk)
    for ws in walk.ws: e = [.8*a + .2*w for a,w in zip(e, ws)]
    assert len(walk.ws) == 12
    assert all(torch.allclose(a, p, atol=1e-6) for a,p in zip(e, avg.module.parameters(), strict=True))
    share = .8**12 # of the start: the closed form, as the articles' sum over past steps
    p0, sums = tiny().model[0][0].weight, sum(.2*.8**(11-i)*ws[0] for i,ws in enumerate(walk.ws))
    assert torch.allclose(avg.module[0][0].weight, share*p0 + sums, atol=1e-6)
    assert torch.equal(avg.module[0][1].running_mean, learn.model[0][1].running_mean) # the last step's

def test_swa_is_the_mean_of_the_late_steps():
    learn, walk = tiny(), Walk()
    avg = swa(learn, .5)
    fit(learn, walk)
    mean = [torch.stack(o).mean(0) for o in zip(*walk.ws[6:])]
    assert all(torch.allclose(a, p, atol=1e-6) for a,p in zip(mean, avg.module.parameters(), strict=True))

def test_averages_leave_training_alone():
    learn = tiny()
    ema(learn); swa(learn)
    assert bits(fit(learn).model) == bits(fit(tiny()).model)

# --- WiSE-FT

def test_wise_ft_ends_bit_for_bit():
    a, b = tiny(), fit(tiny())
    a.model[0][0].weight.data[0, 0] = -0. # a sum would lose the sign
    for alpha,end in (0, a), (1, b), (0., a), (1., b):
        assert bits(wise_ft(a, b, alpha)) == bits(end.model)
        assert bits(wise_ft(a.model, b.model, alpha)) == bits(end.model)

def test_wise_ft_between():
    a, b = tiny().model, fit(tiny()).model
    was, now = bits(a), bits(b)
    for alpha in .25, .5, .9:
        m = wise_ft(a, b, alpha)
        for k,v in m.state_dict().items():
            x, y = a.state_dict()[k], b.state_dict()[k]
            if v.is_floating_point(): assert torch.allclose(v, (1-alpha)*x + alpha*y, atol=1e-6), k # statistics too
            else: assert torch.equal(v, x if alpha < .5 else y), k # a counter is the nearer end's
        assert not m.training
    assert (bits(a), bits(b)) == (was, now)

@pytest.mark.parametrize('alpha', [-.1, 1.1, math.nan, math.inf, None, 'half', True])
def test_wise_ft_refuses_a_share(alpha):
    with pytest.raises(BadInput, match=r'alpha=.*from 0 to 1'): wise_ft(tiny(), tiny(), alpha)

def test_wise_ft_refuses_other_networks():
    with pytest.raises(BadInput, match=r'heads have different classes, take the bodies alone'):
        wise_ft(tiny(), tiny(classes=3), .5)
    assert same(wise_ft(tiny().model[0], tiny(classes=3).model[0], 0), tiny().model[0]) # as the message says
    with pytest.raises(BadInput, match='one architecture'): wise_ft(tiny().model, nn.Sequential(nn.Linear(3, 2)), .5)

# --- misuse

@pytest.mark.parametrize('bad', [-1, math.nan, None, '1', True])
@pytest.mark.parametrize('name', MAKE)
def test_strengths(name, bad):
    with pytest.raises(BadInput, match='alpha=.*number from 0'): MAKE[name](tiny(), bad)

def test_more_misuse():
    with pytest.raises(BadInput, match='beta=-1'): L2SP(tiny(), 1, -1)
    for name in 'LwF', 'Replay':
        with pytest.raises(BadInput, match='alpha=inf'): MAKE[name](tiny(), math.inf)
    for w in [-1, 1, 1, 1], [0, 0, 0, 0], [math.nan]*4, [[1.]], [math.inf, 1, 1, 1]:
        with pytest.raises(BadInput, match='weights'): Delta(tiny(), 1, w)
    learn = tiny()
    with pytest.raises(BadInput, match='3 numbers for a map of 4'): fit(learn, Delta(learn, 1, [1, 1, 1]))
    for d in -.1, 1.1, math.nan:
        with pytest.raises(BadInput, match='decay'): ema(tiny(), d)
        with pytest.raises(BadInput, match='start'): swa(tiny(), d)
    with pytest.raises(BadInput, match='start=1'): swa(tiny(), 1)
    for r in 0, 1.5, -1:
        with pytest.raises(BadInput, match='rank'): lora(tiny(), r)
    whole = Learner(tiny().dls, nn.Linear(3, 2), loss_func=CrossEntropyLossFlat())
    for f in (lambda l: L2SP(l, 1)), (lambda l: Delta(l, 1)), lora:
        with pytest.raises(BadInput, match=r'no Sequential\(body, head\)'): f(whole)

@pytest.mark.parametrize('name', MAKE)
def test_made_for_another_body(name):
    cb, other = MAKE[name](tiny(), 1.), tiny(nf=6)
    with pytest.raises(BadInput, match='was made for another body'): fit(other, cb)

# --- LoRA

def test_lora_moves_the_adapters_and_the_head():
    learn = tiny()
    was, x = deepcopy(learn.model), torch.randn(9, 3)
    lora(learn, 1)
    assert torch.equal(learn.model.eval()(x), was.eval()(x)) # starts as the source
    fit(learn)
    now = learn.model.eval()(x)
    merge_lora(learn)
    assert torch.allclose(learn.model.eval()(x), now, atol=1e-6) # merged, it answers the same
    assert learn.model.state_dict().keys() == was.state_dict().keys()
    for i in 0, 3:
        d = learn.model[0][i].weight - was[0][i].weight
        assert torch.linalg.matrix_rank(d, tol=1e-5) == 1
        assert torch.equal(learn.model[0][i].bias, was[0][i].bias)
    assert same(learn.model[0][1], was[0][1]) # BatchNorm rests, its statistics too

# --- the meter

@pytest.fixture(scope='module')
def glyphs(): return learner(target('digits').dls(shots=1, bs=8, device='cpu'), 'glyphnet')

def test_meter_by_hand(glyphs):
    x, y = SourceDrawer('glyph').check(200)
    more = SourceDrawer('glyph', seed=1).batch(200)[0]
    learn = deepcopy(glyphs)
    with torch.no_grad():
        for _ in range(20): learn.model[0].train()(torch.randn(64, 3, 32, 32)) # statistics move, no weight does
        f = forgetting(learn, 'glyphnet', x, y, more)
        net = glyphnet(pretrained=True).eval()
        for v,body in (f.before, glyphs.model[0]), (f.after, learn.model[0]):
            z = body.eval()((x-.5)/.25).mean((2, 3))
            assert np.array_equal(v, (net.fc(z).argmax(1) == y).numpy())
    assert f.before.mean() > .98 and f.lost > .1
    assert f.lost_by_weights < .02 and f.recounted.mean() > f.after.mean() # told apart
    assert 'counted again' in repr(f)
    assert not learn.model[0].training and torch.equal(learn.model[0][0][1].running_mean, # the body is left alone
        old_network(learn)._modules['stem'][1].running_mean)

def test_meter_without_labels_counts_agreement(glyphs):
    x = SourceDrawer('glyph').check(50)[0]
    f = forgetting(glyphs, 'glyphnet', x)
    assert f.before.all() and f.after.all() and f.recounted is None and f.lost_by_weights == f.lost == 0

def test_meter_refuses(glyphs):
    with pytest.raises(BadInput, match='give x'): forgetting(glyphs, 'tf_efficientnet_lite0')
    with pytest.raises(BadInput, match='none of tf_efficientnet_lite0'):
        forgetting(glyphs, 'tf_efficientnet_lite0', torch.rand(2, 3, 32, 32))
    with pytest.raises(BadInput, match='without its classifier'): old_network(glyphs, 'timm/resnet18')
