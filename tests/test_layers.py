"Freezing that freezes, an audit whose predictions come true, and groups by depth, on networks of several families."
import pickle
from copy import deepcopy
from functools import partial
import pytest, torch
import torchvision
from fastai.vision.all import (BnFreeze, Callback, CrossEntropyLossFlat, DataLoaders, Learner, OptimWrapper, SGD,
                               TfmdDL, params, set_seed, vision_learner)
from torch import nn
from tlcourse.backbones import arch
from tlcourse.learner import learner
from tlcourse.base import BadInput
from tlcourse.audit import depth_split, freeze_audit
from tlcourse.layers import true_freeze

SIZES = {'glyphnet': 32, 'resnet18': 32, 'mobilenet_v2': 64, 'timm/convnext_atto': 64, 'convnext_tiny': 32,
         'timm/vit_tiny_patch16_224': 224}

def data(size=32, n=8, bs=4, channels=3):
    "DataLoaders of random pictures in two classes: two batches an epoch"
    set_seed(1)
    items = list(zip(torch.randn(n, channels, size, size), torch.tensor([0, 1]*(n//2))))
    return DataLoaders(*[TfmdDL(items, bs=bs, shuffle=False, device='cpu', n_inp=1) for _ in range(2)])

def net(name, **kwargs):
    "A Learner with random weights, frozen to the head as a pretrained one is"
    set_seed(0)
    dls = data(SIZES[name])
    dls.c = 2
    learn = learner(dls, arch(name, weights='random'), normalize=False, **kwargs)
    nn.init.normal_(learn.model[-1][-1].weight, std=.1) # no gradient comes through a head of zeros
    return learn

def toy(*layers, head=None, **kwargs):
    "A Learner of a body and a linear head, not frozen"
    set_seed(0)
    body = nn.Sequential(*layers)
    nf = body(torch.zeros(2, 3, 8, 8)).shape[1]
    model = nn.Sequential(body, head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nf, 2)))
    kwargs = dict(loss_func=CrossEntropyLossFlat(), splitter=lambda m: [params(m[0]), params(m[1])]) | kwargs
    return Learner(data(8), model, **kwargs)

def conv_bn(**kwargs): return toy(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), **kwargs)

def state(m): return {k: t.detach().clone() for k,t in [*m.named_parameters(), *m.named_buffers()]}
def changed(m, before): return {k for k,t in state(m).items() if not torch.equal(t, before[k])}
def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn

def moved(learn, fit=lambda l: l.fit(1)):
    before = state(learn.model)
    quiet(learn, fit)
    return changed(learn.model, before)

# --- true_freeze

@pytest.mark.parametrize('name', SIZES)
def test_frozen_is_bit_identical(name):
    learn = true_freeze(net(name))
    assert not freeze_audit(learn).moving
    got = moved(learn)
    assert got and not {k for k in got if k.startswith('0.')}

@pytest.mark.parametrize('name', ['mobilenet_v2', 'timm/convnext_atto', 'timm/vit_tiny_patch16_224'])
def test_default_freeze_is_not(name):
    "The test above can fail: without `true_freeze` each of them moves."
    learn = net(name)
    assert freeze_audit(learn).moving and {k for k in moved(learn) if k.startswith('0.')}

@pytest.mark.parametrize('name', ['glyphnet', 'timm/convnext_atto'])
def test_through_fine_tune(name):
    learn,ends = true_freeze(net(name)), []
    class Snap(Callback):
        def after_fit(self): ends.append(changed(self.model, start))
    start = state(learn.model)
    quiet(learn, lambda l: l.fine_tune(1, freeze_epochs=1, cbs=Snap()))
    assert not {k for k in ends[0] if k.startswith('0.')} and {k for k in ends[1] if k.startswith('0.')}
    learn.freeze() # after unfreeze, again
    assert not {k for k in moved(learn, lambda l: l.fit(1, wd=.1)) if k.startswith('0.')}

@pytest.mark.parametrize('name', ['glyphnet', 'mobilenet_v2', 'timm/convnext_atto'])
def test_in_mixed_precision(name):
    learn = true_freeze(net(name))
    with torch.autocast('cpu', dtype=torch.bfloat16): got = moved(learn)
    assert got and not {k for k in got if k.startswith('0.')}

@pytest.mark.parametrize('opt', [partial(OptimWrapper, opt=torch.optim.AdamW), partial(SGD, mom=.9)])
def test_after_a_fit_with_other_optimisers(opt):
    learn = quiet(conv_bn(opt_func=opt), lambda l: l.fit(1, wd=.1))
    true_freeze(learn)
    assert not {k for k in moved(learn, lambda l: l.fit(2, wd=.1)) if k.startswith('0.')}

@pytest.mark.parametrize('n', [-2, -1, 1, 2, 3])
def test_first_groups_only(n):
    learn = true_freeze(net('glyphnet', splitter=depth_split(4)), n)
    groups = depth_split(4)(learn.model)
    still = {id(p) for g in list(groups)[:n] for p in g}
    names = {k for k,p in learn.model.named_parameters() if id(p) in still}
    mods = {k.rpartition('.')[0] for k in names}
    names |= {k for k,_ in learn.model.named_buffers() if k.rpartition('.')[0] in mods}
    got = moved(learn)
    assert names and not got & names and got == set(freeze_audit(learn).changes)

# --- the audit comes true

def off(learn):
    learn.train_bn = False
    learn.create_opt(); learn.freeze()
    return learn

SETTINGS = {'default': lambda l: l.freeze(), 'train_bn=False': off,
            'BnFreeze': lambda l: (l.add_cb(BnFreeze()), l.freeze()),
            'both': lambda l: off(l).add_cb(BnFreeze()), 'true_freeze': true_freeze, 'unfreeze': lambda l: l.unfreeze(),
            'freeze_to(-2)': lambda l: l.freeze_to(-2), 'true_freeze(-2)': lambda l: true_freeze(l, -2)}

PREDICTED = {'glyphnet': SETTINGS, 'resnet18': ('default', 'train_bn=False', 'freeze_to(-2)'),
             'timm/convnext_atto': ('default', 'true_freeze', 'unfreeze'),
             'timm/vit_tiny_patch16_224': ('freeze_to(-2)',)}

@pytest.mark.parametrize('name,setting', [(n, s) for n,ss in PREDICTED.items() for s in ss])
def test_prediction(name, setting):
    learn = net(name)
    SETTINGS[setting](learn)
    a = freeze_audit(learn)
    got = moved(learn)
    # the audit runs nothing, so it cannot know which parameters the forward pass leaves out
    unused = {n for n,p in learn.model.named_parameters() if p.requires_grad and p.grad is None}
    assert got == set(a.changes) - unused and len(unused) < 3

def test_facts():
    "What fastai's four settings leave moving in a resnet18: parameters that train, norms, statistics."
    want = {'default': (9600, 20, 20), 'BnFreeze': (9600, 20, 20), 'train_bn=False': (0, 0, 20), 'both': (0, 0, 0)}
    for k,(n,norms,stats) in want.items():
        learn = net('resnet18')
        SETTINGS[k](learn)
        body = freeze_audit(learn).table[lambda t: t.module.str.startswith('0.')]
        assert (body.trainable.sum(), body.affine_trained.sum(), body.stats_moving.sum()) == (n, norms, stats), k

@pytest.mark.parametrize('lr', [0., [0., 1e-2], slice(1e-2), slice(1e-4, 1e-2), 1e-2])
def test_rates(lr):
    learn = conv_bn()
    a = freeze_audit(learn, lr=lr)
    assert moved(learn, lambda l: l.fit(1, lr=lr)) == set(a.changes)
    slices = {str(slice(1e-2)): [1e-3, 1e-2], str(slice(1e-4, 1e-2)): [1e-4, 1e-2]}
    assert a.groups.lr[:2].tolist() == slices.get(str(lr), lr if isinstance(lr, list) else [lr]*2)

STATS = [f'0.1.{k}' for k in ('running_mean', 'running_var', 'num_batches_tracked')]

def test_a_rate_of_zero_is_not_frozen():
    assert freeze_audit(conv_bn(), lr=0).changes == STATS

@pytest.mark.parametrize('wd', [None, 0., .1])
def test_weight_decay_moves_what_trained_before(wd):
    learn = quiet(conv_bn(), lambda l: l.fit(1))
    learn.freeze()
    a = freeze_audit(learn, wd=wd)
    assert ('0.0.weight' in a.moving) == (wd != 0)
    assert moved(learn, lambda l: l.fit(1, wd=wd)) == set(a.changes)

def test_gradients_and_momentum_left_behind():
    learn = quiet(conv_bn(), lambda l: l.fit(1))
    for p in learn.model[0].parameters(): p.requires_grad_(False)
    a = freeze_audit(learn, wd=0.)
    assert '0.0.weight' in a.moving and moved(learn, lambda l: l.fit(1, wd=0.)) == set(a.changes)
    learn = conv_bn()
    learn.create_opt()
    learn.loss_func(learn.model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 0, 1])).backward()
    learn.freeze()
    a = freeze_audit(learn, wd=0.)
    assert '0.0.weight' in a.moving and moved(learn, lambda l: l.fit(1, wd=0.)) == set(a.changes)

def test_no_optimiser_yet_and_none_after():
    learn = conv_bn()
    for p in learn.model[0].parameters(): p.requires_grad_(False)
    a = freeze_audit(learn)
    assert learn.opt is None and a.moving == STATS
    assert moved(learn) == set(a.changes)

@pytest.mark.parametrize('splitter,none', [(lambda m: [params(m[1])], True), (None, False)])
def test_parameters_in_no_group(splitter, none):
    learn = conv_bn(**({'splitter': splitter} if splitter else {}))
    a = freeze_audit(learn)
    assert moved(learn) == set(a.changes)
    assert ('none' in a.groups.index) == none and ('In no group' in a.verdict) == none

CONV = nn.Conv2d(3, 4, 3, bias=False) # a bias before a norm has no gradient

@pytest.mark.parametrize('layers', [
    [CONV, nn.BatchNorm2d(4, affine=False)], [CONV, nn.BatchNorm2d(4, momentum=None)],
    [CONV, nn.BatchNorm2d(4, momentum=0.)], [CONV, nn.BatchNorm2d(4, track_running_stats=False)],
    [CONV, nn.GroupNorm(2, 4)],
    # The mean of what it gives, which is pooled, does not depend on its weights: without a ReLU their gradient is 0
    [CONV, nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.ReLU()],
    [nn.BatchNorm2d(3, affine=False), CONV], [CONV, nn.LayerNorm(6)], [CONV, nn.Tanh()]],
    ids=lambda ls: '-'.join(map(str, ls))[:60])
@pytest.mark.parametrize('setting', ['default', 'true_freeze', 'unfreeze'])
def test_other_norms(layers, setting):
    learn = toy(*deepcopy(layers))
    SETTINGS[setting](learn)
    a = freeze_audit(learn)
    assert moved(learn) == set(a.changes) and a._repr_html_() and repr(a)
    if setting == 'true_freeze': assert not a.moving

class Tied(nn.Module):
    "Two convolutions with one weight, and a scale of its own"
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.b.weight = self.a.weight
    def forward(self, x): return self.scale*self.b(self.a(x).relu())

def test_shared_parameters_count_once():
    learn = toy(Tied(), nn.BatchNorm2d(3))
    a = freeze_audit(learn)
    assert a.groups.params['all'] == sum(p.numel() for p in learn.model.parameters())
    assert a.shared == {'0.0.b.weight': '0.0.a.weight'} and '0.0.b.weight is 0.0.a.weight' in a.verdict
    assert moved(learn) == set(a.changes)
    assert not {k for k in moved(true_freeze(learn), lambda l: l.fit(1, wd=.1)) if k.startswith('0.')}

def fingerprint(learn):
    opt = learn.opt and (deepcopy(list(learn.opt.hypers)), len(learn.opt.state))
    return (learn.lr, learn.wd, learn.train_bn, learn.opt_func, learn.splitter, learn.opt, opt,
            [c.name for c in learn.cbs], [m.training for m in learn.model.modules()],
            [(p.requires_grad, p.grad is None) for p in learn.model.parameters()])

@pytest.mark.parametrize('learn', [conv_bn, lambda: true_freeze(conv_bn()), lambda: net('glyphnet'),
                                   lambda: quiet(conv_bn(), lambda l: l.fit(1)),
                                   lambda: conv_bn(opt_func=partial(OptimWrapper, opt=torch.optim.SGD))])
def test_audit_leaves_the_learner_alone(learn):
    learn = learn()
    learn.model[0].eval() # modes that a fit would change
    before,was = fingerprint(learn), state(learn.model)
    freeze_audit(learn, lr=slice(1e-5, 1e-1), wd=.3)
    assert fingerprint(learn) == before and not changed(learn.model, was)

def test_detail():
    learn = net('glyphnet')
    t1,t2 = freeze_audit(learn, detail=2).table, freeze_audit(learn).table
    assert len(t1) < len(t2) and t1.params.sum() == t2.params.sum() and t1.module.tolist()[0] == '0.0'

@pytest.mark.parametrize('bad', [lambda: freeze_audit(nn.Linear(2, 2)), lambda: freeze_audit(conv_bn(), lr=[1, 2, 3]),
                                 lambda: freeze_audit(conv_bn(), detail=0), lambda: depth_split(1),
                                 lambda: depth_split(2.5), lambda: depth_split('4'),
                                 lambda: depth_split(9)(net('glyphnet').model),
                                 lambda: depth_split(2)(nn.Conv2d(3, 4, 3)),
                                 lambda: depth_split(2)(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())),
                                 lambda: net('glyphnet', splitter=depth_split(7)),
                                 lambda: freeze_audit(toy(CONV, nn.BatchNorm2d(4, affine=False), cbs=BnFreeze()))])
def test_bad_input(bad):
    with pytest.raises(BadInput): bad()

# --- depth_split

def on_meta(name):
    "Body and head of a backbone without memory, and its input"
    a = arch(name)
    with torch.device('meta'): m = a._new(init=False)
    x = torch.empty(1, 3, a.size, a.size, device='meta')
    return nn.Sequential(a.cut(m).to('meta'), nn.Linear(2, 2, device='meta')), x

def fastai(name):
    "The same as `vision_learner` makes them, by a function of torchvision or by a name of timm"
    dls = data(32)
    dls.c = 2
    f = getattr(torchvision.models, name, name)
    learn = vision_learner(dls, f, pretrained=False, normalize=False, loss_func=CrossEntropyLossFlat())
    return learn.model, torch.randn(2, 3, 64, 64)

def run_order(model, x):
    "The parameters of the body in the order in which a forward pass meets the modules that hold them"
    met = []
    hook = lambda m,_: met.extend(id(p) for p in m._parameters.values() if p is not None)
    hooks = [m.register_forward_pre_hook(hook) for m in model[0].modules()]
    with torch.no_grad(): model[0].eval()(x)
    for h in hooks: h.remove()
    return list(dict.fromkeys(met))

def check_split(model, x, ks=(2, 3, 4, 6)):
    finest = next(k for k in range(200, 1, -1) if splits(model, k))
    names = {id(p): n for n,p in model.named_parameters()}
    met = run_order(model, x)
    assert len(met) > .6*len(list(model[0].parameters())) # others are used without a call of the module that holds them
    for k in {*ks, finest}:
        groups = depth_split(k)(model)
        ids = [id(p) for g in groups for p in g]
        assert len(groups) == k and all(len(g) for g in groups)
        assert sorted(ids) == sorted(names), 'every parameter once'
        assert {id(p) for p in groups[-1]} == {id(p) for p in model[1:].parameters()}
        at = {id(p): i for i,g in enumerate(groups) for p in g}
        seq = [at[i] for i in met]
        assert seq == sorted(seq), [names[a] for a,i,j in zip(met[1:], seq, seq[1:]) if j < i][:3]
        body = {n: at[id(p)] for n,p in model[0].named_parameters() if id(p) not in met}
        assert not [n for n,i in body.items() if 'token' in n and i], 'tokens go first'
    return finest

def splits(model, k):
    try: return bool(depth_split(k)(model))
    except BadInput: return False

UNITS = {'glyphnet': 5, 'resnet18': 9, 'mobilenet_v2': 19, 'squeezenet1_0': 9, 'densenet121': 62, 'convnext_tiny': 22,
         'vit_b_16': 13, 'alexnet': 5, 'googlenet': 12, 'swin_t': 16,
         'timm/vit_tiny_patch16_224': 13, 'timm/convnext_atto': 16, 'timm/mobilenetv2_035': 19}

@pytest.mark.parametrize('name', UNITS)
def test_every_parameter_once_in_forward_order(name): assert check_split(*on_meta(name)) == UNITS[name] + 1

@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1', 'alexnet', 'convnext_atto', 'mobilenetv2_035'])
def test_as_fastai_builds_them(name): check_split(*fastai(name))

def test_units_are_dealt_out_evenly():
    def children(name, k):
        model,_ = on_meta(name)
        of = {id(p): n.split('.')[0] for n,p in model[0].named_parameters()}
        return [' '.join(sorted({of[id(p)] for p in g})) for g in depth_split(k)(model)[:-1]]
    assert children('resnet18', 4) == ['0 1 4', '5 6', '6 7'] # stem and eight blocks: 3, 3, 3
    assert children('glyphnet', 4) == ['0 1', '2 3', '4']

def test_shared_parameters_go_to_the_first_group():
    tied = [Tied() for _ in range(3)]
    for t in tied[1:]: t.a.weight = t.b.weight = tied[0].a.weight
    model = toy(*tied).model
    groups = depth_split(4)(model)
    ids = [id(p) for g in groups for p in g]
    assert sorted(ids) == sorted({id(p) for p in model.parameters()})
    assert id(tied[0].a.weight) in {id(p) for p in groups[0]}

NESTED = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))

@pytest.mark.parametrize('body', [nn.Conv2d(3, 4, 3), Tied(), NESTED],
                         ids=['one layer', 'no list', 'nested'])
def test_other_bodies(body):
    model = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 8, 8))
    groups = depth_split(2)(model)
    assert sum(map(len, groups)) == len(list(model.parameters())) and len(groups) == 2

def test_splitter_in_a_learner():
    learn = net('glyphnet', splitter=depth_split(4))
    assert len(learn.opt.param_lists) == 4 and freeze_audit(learn).groups.frozen[:4].tolist() == [True]*3 + [False]
    assert len(pickle.loads(pickle.dumps(learn.splitter))(learn.model)) == 4
