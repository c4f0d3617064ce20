"Features: what a Learner's head sees, at every stage; and a cache that serves nothing else than what was asked for."
import shutil, warnings
import numpy as np, pytest, torch
from torch import nn
from tlcourse.backbones import arch
from tlcourse.learner import learner
from tlcourse.base import BadInput, photo_assets
from tlcourse.data import SealBroken, kshot, target, weights_hash
from tlcourse.features import extract
from tlcourse.passes import pooled
from tlcourse.stages import layers
from tlcourse.heads import head_learner
from tlcourse.loaders import Part
from tlcourse.probes import NearestNeighbours, fit_probes
from tlcourse.store import _Sink, _card_bytes, _read_card

@pytest.fixture(scope='module')
def digits(): return target('digits')

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path))
    return tmp_path/'features'

def some(n=12, size=32, seed=0, classes=3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
    return Part('train', x, torch.arange(n) % classes, list('abc')[:classes])

def raw(*args, **kwargs): return extract(*args, cache=False, **kwargs).x

STATS = dict(stats=([.5]*3, [.25]*3))

# --- what the features are

def test_are_what_the_linear_head_sees(digits):
    learn = learner(digits.dls(augment=False), 'glyphnet')
    z, y = pooled(learn, learn.dls.valid)
    for backbone in 'glyphnet', arch('glyphnet'), learn:
        f = extract(backbone, digits.valid, cache=False)
        np.testing.assert_allclose(f.x, z.numpy(), atol=2e-5)
        assert f.x.dtype == np.float32 and f.x.shape == (167, 192) and f.layer in ('stage4', '4')
    np.testing.assert_array_equal(f.y, y.numpy())
    np.testing.assert_array_equal(f.ids, np.arange(167))

@pytest.mark.parametrize('layer', [-1, 2])
@pytest.mark.parametrize('bn', ['eval', 'train'])
def test_learner_predicts_as_the_probe(digits, layer, bn):
    "With the head on the body in an ordinary Learner, through fastai's own transforms"
    kw = dict(layer=layer, bn=digits.train if bn == 'train' else 'eval', cache=False)
    f, v = extract('glyphnet', digits.train, **kw), extract('glyphnet', digits.valid, **kw)
    ps = fit_probes(f, [kshot(f.y, 5, 0)], (1e-2,))
    learn = head_learner(digits.dls(shots=5), 'glyphnet', ps.head(), layer, kw['bn'])
    with learn.no_bar(): p, _ = learn.get_preds(dl=learn.dls.valid)
    np.testing.assert_array_equal(p.argmax(1).numpy(), ps.predict(v)[0,0])
    np.testing.assert_allclose(p.numpy(), ps.probs(v)[0,0], atol=1e-4)
    before = weights_hash(learn.model[0])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3) # and it can go on training
    assert weights_hash(learn.model[0]) == before, 'the body is truly frozen'

def test_stages(digits):
    body, x = arch('glyphnet').cut(arch('glyphnet')(pretrained=True)).eval(), (digits.valid.x.float()/255 - .5)/.25
    both = extract('glyphnet', digits.valid, layer=range(5), cache=False)
    assert ([f.layer for f in both] == layers('glyphnet').stage.tolist()
            == ['stem', 'stage1', 'stage2', 'stage3', 'stage4'])
    assert [f.d for f in both] == layers('glyphnet').features.tolist() == [24, 32, 64, 96, 192]
    with torch.no_grad():
        for i,c in enumerate(body):
            x = c(x)
            np.testing.assert_allclose(both[i].x, x.mean((2, 3)), atol=2e-5)
    np.testing.assert_array_equal(raw('glyphnet', digits.valid, layer=-3), both[2].x)

BODIES = {'resnet18': 64, 'mobilenet_v2': 64, 'alexnet': 64, 'squeezenet1_1': 64, 'timm/convnext_atto': 64,
          'timm/resnet10t': 64,
          'timm/vit_tiny_patch16_224': 224, 'timm/mobilenetv2_035': 64}

@pytest.mark.parametrize('name,size', BODIES.items(), ids=BODIES)
def test_any_backbone(name, size):
    "The last stage is what the head sees; every stage gives vectors; layers in place do no harm; nothing is changed"
    torch.manual_seed(0)
    a, part = arch(name, 'random'), some(4, size)
    m = a(pretrained=True)
    body = a.cut(m)
    before, table = weights_hash(body), layers(a, size)
    x = (part.x.float()/255 - torch.tensor(a.stats[0]).view(3, 1, 1))/torch.tensor(a.stats[1]).view(3, 1, 1)
    with torch.no_grad(): want = body.eval()(x).mean((2, 3))
    body.train()
    fs = extract(body, part, layer=range(len(table)), stats=a.stats, cache=False)
    np.testing.assert_allclose(fs[-1].x, want, atol=1e-4, rtol=1e-3)
    assert [f.d for f in fs] == table.features.tolist() and fs[-1].d == a.nf
    assert weights_hash(body) == before
    assert all(c.training for c in body.modules() if type(c) in (nn.BatchNorm2d, nn.Dropout))

def test_channels_last_maps_and_tokens():
    swin, part = arch('swin_t', 'random'), some(2, 64)
    assert layers(swin, 64).features.tolist() == [96, 96, 192, 192, 384, 384, 768, 768, 768, 768]
    last, before = extract(swin, part, layer=[-1, -2], cache=False)
    np.testing.assert_allclose(last.x, before.x, atol=1e-5) # the turn to channels first changes no average
    assert layers('timm/vit_tiny_patch16_224').features.tolist() == [192]*13

def test_shared_modules():
    "A module that is called twice is two stages"
    act, conv = nn.ReLU(), nn.Conv2d(3, 3, 1)
    body, part = nn.Sequential(conv, act, conv, act), some(3, 8)
    x = part.x.float()/255
    fs = extract(body, part, layer=range(4), stats=([0.]*3, [1.]*3), cache=False)
    with torch.no_grad():
        for f,c in zip(fs, body):
            x = c(x)
            np.testing.assert_allclose(f.x, x.mean((2, 3)), atol=1e-5)

def test_views(digits):
    kw = dict(ids=np.arange(40), cache=False)
    plain, two, four = (extract('glyphnet', digits.train, views=v, **kw) for v in (1, 2, 4))
    assert four.x.shape == (160, 192) and len(four) == 40
    np.testing.assert_array_equal(four.x[:80], two.x) # views nest
    for v in range(4): assert (np.abs(four.view(v) - plain.x).max(1) > 1e-3).all()
    assert np.abs(four.view(0) - four.view(1)).max() > 1e-3
    state = torch.random.get_rng_state()
    again = raw('glyphnet', digits.train, views=2, **{'ids': kw['ids']})
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers are left alone"
    np.testing.assert_array_equal(again, two.x)
    assert not np.array_equal(raw('glyphnet', digits.train, views=2, seed=1, ids=kw['ids']), two.x)

# --- BatchNorm

def test_adapt(digits):
    "Statistics of the pictures, on a copy, without labels"
    learn = learner(digits.dls(), 'glyphnet')
    before, modes = weights_hash(learn.model), [m.training for m in learn.model.modules()]
    f = raw(learn, digits.valid, bn='adapt')
    assert weights_hash(learn.model) == before and modes == [m.training for m in learn.model.modules()]
    assert np.abs(f - raw(learn, digits.valid)).max() > .1
    other = Part('valid', digits.valid.x, digits.valid.y.flip(0), digits.classes)
    np.testing.assert_array_equal(raw(learn, other, bn='adapt'), f)
    np.testing.assert_array_equal(raw(learn, digits.valid, bn=digits.valid), f)
    assert np.abs(raw(learn, digits.valid, bn=digits.train) - f).max() > 1e-3

def test_adapt_in_numbers():
    "One BatchNorm over one batch: afterwards each channel has mean 0 and variance 1 over the pictures"
    body, part = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), some(16, 8)
    z = raw(nn.Sequential(body, nn.Flatten()), part, bn='adapt', **STATS).reshape(16, 4, 64)
    np.testing.assert_allclose(z.mean((0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(z.std((0, 2)), 1, atol=1e-2)

def test_adapt_needs_batchnorm():
    m = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    with pytest.raises(BadInput, match='has no BatchNorm'): raw(m, some(), bn='adapt', **STATS)

# --- heads on the sealed test

def same_score(a, b):
    assert (a.pred != b.pred).sum() <= 1 # two classes with the same probability, to rounding
    np.testing.assert_array_equal(a.y, b.y)
    np.testing.assert_allclose(a.prob.astype(float), b.prob.astype(float), atol=2e-3)
    assert [a.pred.dtype, a.prob.dtype, a.y.dtype] == [b.pred.dtype, b.prob.dtype, b.y.dtype]
    assert [*a.shifts] == [*b.shifts]
    for n in a.shifts: same_score(a.shifts[n], b.shifts[n])

@pytest.mark.parametrize('how', ['plain', 'layer', 'adapted', 'random'])
def test_heads_score_as_learners(digits, how):
    "One pass for several heads, or a Learner for each: the same answers, under shifts too, and one seal for both"
    body = arch('glyphnet', 'random') if how == 'random' else 'glyphnet'
    kw = dict(layer=2 if how == 'layer' else -1, bn=digits.train if how in ('adapted', 'random') else 'eval', seed=3)
    f = extract(body, digits.train, cache=False, **kw)
    ps = fit_probes(f, [kshot(f.y, 5, s) for s in range(2)], (1e-2,))
    t, one, shifts = digits.unopened(), digits.unopened(), ['noise', 'blur']
    scores = t.score_heads(body, [ps.head(0), ps.head(1)], shifts, **kw)
    assert t.openings == 2 and len({s.k for s in scores}) == 2
    for i,s in enumerate(scores):
        learn = head_learner(digits.dls(shots=5), body, ps.head(i), **kw)
        same_score(s, one.score(learn, shifts))
        with pytest.raises(SealBroken, match=f'opening {i+1}'): t.score(learn)
        with pytest.raises(SealBroken, match=f'opening {i+1}'): one.score_heads(body, ps.head(i), **kw)
    assert t.openings == one.openings == 2

def test_heads_of_other_kinds(digits):
    "The body of a Learner; neighbours; and another k, or another body, is another look"
    learn = learner(digits.dls(shots=1), 'glyphnet')
    f = extract(learn, digits.train, cache=False)
    ids, t = kshot(f.y, 5, 0), digits.unopened()
    near = [NearestNeighbours(f.x[ids], f.y[ids], f.classes, k) for k in (1, 5)]
    one, five = t.score_heads(learn, near)
    assert t.openings == 2 and five.accuracy > .8 and (one.prob == 1).all()
    assert set(np.unique((five.prob*5).round())) <= {1, 2, 3, 4, 5}
    with torch.no_grad(): learn.model[0][0][0].weight[0,0,0,0] += 1
    t.score_heads(learn, near[0])
    with pytest.raises(SealBroken, match='opening 3'): t.score_heads(learn, near[:1])
    with pytest.raises(SealBroken, match='heads 0 and 1 are the same'): t.score_heads(learn, near[1:]*2)
    assert t.openings == 3

@pytest.mark.parametrize('head,how,says', [
    (nn.Linear(191, 10), {}, 'head 0 does not take the 192 features'), (nn.Linear(192, 9), {}, '9 outputs.*10 classes'),
    (nn.Sequential(nn.Linear(192, 10), nn.Flatten(0)), {}, '20 outputs|outputs'),
    (nn.Linear(192, 10), dict(bn='adapt'), "bn='adapt'"),
    (nn.Linear(192, 10), dict(shifts='fog'), "shift 'fog'"), (nn.Linear(192, 10), dict(layer=[1]), 'one stage'),
    (nn.Linear(192, 10), dict(layer=0), '24 features'), ([], {}, 'no heads'),
    (NearestNeighbours(np.eye(3), [0, 1, 2], 'abc', 1), {}, '192 columns, the neighbours have 3')])
def test_heads_that_do_not_fit(digits, head, how, says, monkeypatch):
    "Refused before the seal is touched"
    t = digits.unopened()
    class Looked(Exception): pass
    def look(self): raise Looked
    monkeypatch.setattr(type(t), '_test_arrays', property(look))
    with pytest.raises(BadInput, match=says): t.score_heads('glyphnet', head, **how)
    with pytest.raises(Looked): t.score_heads('glyphnet', nn.Linear(192, 10))
    assert not t.openings

def test_heads_that_are_not_finite(digits):
    t, bad = digits.unopened(), nn.Linear(192, 10)
    with torch.no_grad(): bad.bias[0] = np.nan
    with pytest.raises(BadInput, match='head 1 are not numbers'): t.score_heads('glyphnet', [nn.Linear(192, 10), bad])

# --- the cache

def test_second_call_reads(cache, monkeypatch):
    part = some()
    a = extract('glyphnet', part)
    monkeypatch.setattr('tlcourse.features._Job._make', None) # nothing may be made now
    b = extract('glyphnet', part)
    assert b.cached and not a.cached and not b.note
    assert isinstance(b.x, np.memmap) and not b.x.flags.writeable
    np.testing.assert_array_equal(a.x, b.x)
    assert [p.suffix for p in cache.iterdir()] == ['.array']

def net(): # small, with every kind of state: parameters, buffers, one that a state dict leaves out
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3), Scaled())
    return m.eval()

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.power = 1 # neither parameter nor buffer, and not in the repr
        self.register_buffer('hidden', torch.ones(1), persistent=False)
    def forward(self, x): return (x*self.hidden).abs()**self.power

def pixel(m, p, kw): p.x[7,1,3,4] ^= 1
def one_weight(m, p, kw):
    with torch.no_grad(): m[0].weight[0,0,0,0] += 1e-3
def buffer(m, p, kw): m[1].running_mean[2] += 1e-3
def hidden_buffer(m, p, kw): m[4].hidden += 1e-3
def eps(m, p, kw): m[1].eps = 1e-2
def code(m, p, kw): m[4].power = 2
def structure(m, p, kw): m[2] = nn.ELU()
def swapped(m, p, kw): p.x = p.x.flip(0)
def ids(m, p, kw): kw['ids'] = np.array([1, 0, *range(2, 12)])
def stats(m, p, kw): kw['stats'] = [.5]*3, [.26]*3
def layer(m, p, kw): kw['layer'] = -2
def adapted(m, p, kw): kw['bn'] = 'adapt'
def adapted_to(m, p, kw): kw['bn'] = some(8, seed=3)
def other_views(m, p, kw): kw.update(views=3)
def other_augment(m, p, kw): kw.update(augment=('flip',))
def other_seed(m, p, kw): kw.update(seed=1)
def half(m, p, kw): kw.update(dtype='float16')

CHANGES = [pixel, one_weight, buffer, hidden_buffer, eps, code, structure, swapped, ids, stats, layer, adapted,
           adapted_to, half]

CASES = [*((c, 1) for c in [*CHANGES, other_augment]),
         *((c, 2) for c in [*CHANGES, other_views, other_augment, other_seed])]

@pytest.mark.parametrize('change,views', CASES, ids=lambda o: getattr(o, '__name__', o))
def test_every_change_is_seen(change, views, cache):
    "After any change the cache gives what a run without it gives, and not what was stored"
    m, part, kw = net(), some(), dict(STATS, views=views, augment=('affine',) if views > 1 else None)
    old = extract(m, part, **kw)
    assert extract(m, part, **kw).cached
    change(m, part, kw)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        new = extract(m, part, **kw)
    assert not new.cached
    np.testing.assert_array_equal(new.x, raw(m, part, **kw))
    assert new.x.shape != old.x.shape or new.x.dtype != old.x.dtype or not np.array_equal(new.x, old.x)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert extract(m, part, **kw).cached

SIZE = 12*8*4 # bytes of the features of `some()` by `net()`
def cut(f): f.write_bytes(f.read_bytes()[:-8])
def longer(f): f.write_bytes(f.read_bytes() + b'1234')
def flipped(f, at=SIZE-3):
    b = bytearray(f.read_bytes())
    b[at] ^= 64
    f.write_bytes(bytes(b))
def emptied(f): f.write_bytes(b'')
def no_card(f): f.write_bytes(f.read_bytes()[:SIZE])
def broken_card(f): flipped(f, SIZE + 10)
def broken_end(f): flipped(f, -5)
def other_card(f): f.write_bytes(f.read_bytes()[:SIZE] + _card_bytes({**_read_card(open(f, 'rb'))[0], 'key': '0'*64}))
def other_witness(f):
    card = _read_card(open(f, 'rb'))[0]
    card['witness'][0][0] += 1
    f.write_bytes(f.read_bytes()[:SIZE] + _card_bytes(card))

HARM = [cut, longer, flipped, emptied, no_card, broken_card, broken_end, other_card, other_witness]

@pytest.mark.parametrize('harm', HARM, ids=lambda f: f.__name__)
def test_harm_is_noticed_and_mended(harm, cache):
    part = some()
    good = np.array(extract(net(), part, **STATS).x)
    harm(*cache.iterdir())
    with pytest.warns(UserWarning, match='made again') as w: f = extract(net(), part, **STATS)
    assert len(w) == 1 and w[0].filename == __file__ and f.note and not f.cached
    np.testing.assert_array_equal(f.x, good)
    assert extract(net(), part, **STATS).cached

def test_file_of_other_weights_under_this_name(cache):
    part, m = some(), net()
    extract(m, part, **STATS)
    mine, = cache.iterdir()
    one_weight(m, part, {})
    want = np.array(extract(m, part, **STATS).x)
    theirs, = set(cache.iterdir()) - {mine}
    shutil.copy(mine, theirs)
    with pytest.warns(UserWarning, match='holds something else'): f = extract(m, part, **STATS)
    np.testing.assert_array_equal(f.x, want)

def test_nothing_half_written(cache, monkeypatch):
    "Stopped in the middle, or the disk full: no file, one sentence; the next call makes it"
    part, add = some(600), _Sink.add
    def stop(self, z):
        if self.f: raise KeyboardInterrupt
        add(self, z)
    monkeypatch.setattr(_Sink, 'add', stop)
    with pytest.raises(KeyboardInterrupt): extract(net(), part, **STATS)
    def full(self, z):
        if self.f: raise OSError(28, 'No space left on device')
        add(self, z)
    monkeypatch.setattr(_Sink, 'add', full)
    with pytest.raises(BadInput, match='No space left.*cache=False'): extract(net(), part, **STATS)
    assert not list(cache.iterdir())
    monkeypatch.setattr(_Sink, 'add', add)
    assert not extract(net(), part, **STATS).cached and extract(net(), part, **STATS).cached

def test_no_folder_to_write(cache):
    cache.write_text('a file where the folder should be')
    with pytest.raises(BadInput, match='cannot be stored'): extract(net(), some(), **STATS)
    assert extract(net(), some(), cache=False, **STATS).x.shape == (12, 8)

def test_labels_come_from_the_part(cache):
    a, b = some(), some()
    b.y = b.y.flip(0)
    extract(net(), a, **STATS)
    f = extract(net(), b, **STATS)
    assert f.cached
    np.testing.assert_array_equal(f.y, b.y)

# --- bad input

@pytest.mark.parametrize('change,says', [
    (dict(layer=5), '5 stages'), (dict(layer=-6), '5 stages'), (dict(layer=1.5), '5 stages'),
    (dict(layer=[]), 'at least one'), (dict(layer='top'), "layer='top'"),
    (dict(views=0), 'views=0'), (dict(views=2), '2 views'), (dict(augment='blur'), 'augmentation'),
    (dict(bn='train'), "bn='train'"), (dict(dtype='int8'), 'int8'),
    (dict(ids=[]), 'no pictures'), (dict(ids=[12]), '0 to 11'),
    (dict(split=torch.zeros(3)), 'sealed'), (dict(backbone='glyphnett'), "did you mean 'glyphnet'"),
    (dict(backbone=nn.Identity(), stats=None), 'normalised')])
def test_refused(change, says):
    with pytest.raises(BadInput, match=says) as e:
        extract(**(dict(backbone='glyphnet', split=some(), cache=False) | change))
    assert '\n' not in str(e.value)

def test_empty_split():
    empty = Part('valid', torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(0), ['a', 'b'])
    with pytest.raises(BadInput, match='the valid part has no pictures'): extract('glyphnet', empty)

def test_the_test_part_is_sealed(digits):
    with pytest.raises(BadInput, match='sealed'): extract('glyphnet', digits.test)

@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_not_finite(bad, cache):
    m = net()
    with torch.no_grad(): m[3].bias[0] = bad
    with pytest.raises(BadInput, match='not finite'): extract(m, some(), **STATS)
    assert not list(cache.iterdir()), 'no cache of it'

def test_float16(cache):
    class Times(nn.Module):
        def forward(self, x): return x*1e6
    m = nn.Sequential(net(), Times())
    with pytest.raises(BadInput, match='float16 ends at 65,504'): extract(m, some(), dtype='float16', **STATS)
    with pytest.raises(BadInput, match='overflowed in float16'): extract(m.half(), some(), **STATS) # inside the body
    f, g = extract(net(), some(), dtype='float16', **STATS), extract(net(), some(), **STATS)
    assert f.x.dtype == np.float16
    np.testing.assert_allclose(f.x, g.x, rtol=1e-3, atol=1e-3)

# --- photos

@pytest.mark.assets
def test_photos():
    photos = photo_assets()
    a, t = (arch('mobilenet_v2', photos/'weights/mobilenet_v2-imagenet-from-tf2ptq.pth'),
            target(photos/'data/ants_bees', size=64))
    f, v = extract(a, t.train), extract(a, t.valid)
    ps = fit_probes(f, [kshot(f.y, 20, s) for s in range(3)], (1e-2, 1e-1))
    assert ps.accuracy(v).mean() > .6
