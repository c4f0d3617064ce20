"""The stored grid of lesson 4: what a linear probe reads at each stage of glyphnet, and of the same network with
random weights.

    python benchmarks/lesson_inside.py     # a few minutes on 2 cores

Stopped and started again it goes on from tlcourse-out/inside. A `stage` run is one probe for digits, with its own
opening of the sealed test; a `factor` run is one probe for the glyph, the hue or the texture of drawn pictures, of
which there is no end.
"""
from functools import lru_cache
import numpy as np, torch
from torch import nn
from tlcourse.backbones import arch, learner
from tlcourse.base import package_assets, sha256
from tlcourse.data import kshot, target
from tlcourse.loaders import Part
from tlcourse.features import extract
from tlcourse.probes import fit_probes
from tlcourse.records import Records
from tlcourse.sweep import sweep
from tlcourse.world import SourceDrawer

STAGES, SEEDS, SHOTS = range(5), range(5), (5, 20)
FACTORS = 'glyph', 'hue', 'texture'
WDS = [10.**i for i in range(-4, 2)]
N = dict(train=400, valid=400, test=1000) # drawn pictures

@lru_cache(None)
def body(net, seed):
    "`net` a backbone's name, or 'random': glyphnet with the first weights of this seed."
    a = arch('glyphnet' if net == 'random' else net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        return a.cut(a(pretrained=net != 'random')).eval(), a.stats

def of_net(net, seed): return body(net, seed if net == 'random' else 0)

# --- digits ---------------------------------------------------------------------------------------------------------
@lru_cache(None)
def digits(): return target('digits')

@lru_cache(None)
def digit_features(net, seed):
    b, stats = of_net(net, seed)
    t, vids = digits(), kshot(digits().valid.y, 5, 0) # the same validation pictures for every probe
    return [extract(b, part, layer=list(STAGES), stats=stats, cache=False, ids=ids)
            for part,ids in ((t.train, None), (t.valid, vids))]

class Pixels(nn.Module):
    "Pictures (n,3,32,32) as they are, in one channel, for the probe that no network helps."
    def forward(self, x): return x[:,:1].flatten(1)[...,None,None]

def probed(net, stage, shots, seed):
    """The learner of one probe, and its weight decay: the highest accuracy on the 50 validation
    pictures, of equals the largest."""
    t = digits()
    if net == 'pixels':
        b, stats, vids = Pixels(), ([.5]*3, [.25]*3), kshot(t.valid.y, 5, 0)
        ft, fv = (extract(nn.Sequential(b), part, stats=stats, cache=False, ids=ids)
                  for part,ids in ((t.train, None), (t.valid, vids)))
    else:
        (b, stats), (ft, fv) = (of_net(net, seed),
                                (fs[stage] for fs in digit_features(net, seed if net == 'random' else 0)))
        b = b[:stage+1]
    probes = fit_probes(ft, [kshot(t.train.y, shots, seed)], WDS, standardize='each')
    j = int(probes.choose(fv)[0])
    learn = learner(t.dls(shots=shots, seed=seed), 'glyphnet') # normalised as the body was for the features
    learn.model = nn.Sequential(b, nn.AdaptiveAvgPool2d(1), nn.Flatten(), probes.head(0, j)).eval()
    return learn, WDS[j], float(probes.accuracy(fv)[0,j])

# --- drawn pictures ---------------------------------------------------------------------------------------------------
@lru_cache(None)
def drawn(part, seed=0):
    "Pictures (n,3,32,32) uint8 of 20 glyphs in any hue on any texture, and their three labels (n,3)."
    x, y = SourceDrawer('multi', dict(train=100, valid=200, test=300)[part] + seed, n_glyphs=20).batch(N[part])
    return (x*255).round().to(torch.uint8), y

@lru_cache(None)
def drawn_features(net, net_seed, part, seed):
    (b, stats), (x, y) = of_net(net, net_seed), drawn(part, seed)
    return extract(b, Part(part, x, torch.zeros(len(x)), ['any']), layer=list(STAGES), stats=stats, cache=False)

def factor_probe(net, stage, factor, seed):
    "Which of the 1,000 test pictures the probe of one factor gets right."
    fs = {}
    for part in N:
        s = seed if part == 'train' else 0
        f = drawn_features(net, seed if net == 'random' else 0, part, s)[stage]
        f.y = drawn(part, s)[1][:,FACTORS.index(factor)].numpy()
        f.classes = list(range((20, 12, 17)[FACTORS.index(factor)]))
        fs[part] = f
    probes = fit_probes(fs['train'], [np.arange(N['train'])], WDS, standardize='each')
    j = int(probes.choose(fs['valid'])[0])
    return probes.predict(fs['test'])[0,j] == fs['test'].y, WDS[j]

# --- the grid ---------------------------------------------------------------------------------------------------------
def run(spec):
    if spec['kind'] == 'factor':
        right, wd = factor_probe(spec['net'], spec['stage'], spec['factor'], spec['seed'])
        return dict(correct=np.packbits(right), n=len(right), wd=wd)
    learn, wd, va = probed(spec['net'], spec['stage'], spec['shots'], spec['seed'])
    s = digits().unopened().score(learn)
    return dict(pred=s.pred, prob=s.prob, wd=wd, valid=va)

def grid():
    same = dict(wds=WDS, standardize='each', weights={n: arch(n).weights_id for n in ('glyphnet', 'glyphnet_multi')})
    on = dict(same, target='digits', pixel_hash=digits().pixel_hash)
    drew = dict(same, drawn=sha256(b''.join(drawn(p)[0].numpy().tobytes() for p in N)))
    res = [dict(on, kind='stage', net=n, stage=i, shots=k, seed=s) for n in ('glyphnet', 'random') for i in STAGES
           for k in SHOTS for s in SEEDS]
    res += [dict(on, kind='stage', net='pixels', stage=0, shots=k, seed=s) for k in SHOTS for s in SEEDS]
    res += [dict(drew, kind='factor', net=n, stage=i, factor=f, seed=s)
            for n in ('glyphnet', 'glyphnet_multi', 'random') for i in STAGES for f in FACTORS for s in SEEDS]
    return res

if __name__ == '__main__':
    records = Records('tlcourse-out/inside/records.db')
    t = digits()
    records.put_labels(t.pixel_hash, t._test_arrays[1], dict(name='digits', classes=t.classes))
    sweep(grid(), records, run)
    records.export(package_assets()/'inside.db')
