"""The stored grid of lesson 6: heads on every stage of the trained body, and of random bodies beside it.

    python grids/feature_extraction.py
        # about 8 minutes on one idle core; goes on where it was stopped

Five labels per class, 20 draws. Five validation pictures per class, the same for all draws, choose the weight decay by
their mean loss. Each of ten random bodies belongs to one draw, and its BatchNorm has statistics of 500 training
pictures, as its weights give them; the trained body keeps its own. Each head opens the sealed test once.
"""
from functools import lru_cache
import numpy as np, torch
from torch import nn
from tlcourse.backbones import arch
from tlcourse.base import package_assets
from tlcourse.data import kshot, target
from tlcourse.features import extract
from tlcourse.probes import fit_probes
from tlcourse.records import Records
from tlcourse.sweep import sweep

TARGETS = ['letters', 'letters-stix', 'digits', 'textures', 'hues']
WDS, V, SHOTS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1., 10.], 5, 5
SEEDS = dict(trained=20, random=10)
STATS = [.5]*3, [.25]*3 # glyphnet's, for both bodies
get = lru_cache(target)

@lru_cache(maxsize=1) # The stages of one body follow each other
def random_body(name, seed):
    "A body with random weights whose BatchNorm layers have counted 500 training pictures, as a module"
    x = get(name).train.x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        a = arch('glyphnet', 'random')
        body = a.cut(a(pretrained=False))
    bns = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in bns: m.momentum = None # The mean over all batches
    body.train()
    with torch.no_grad():
        for ids in np.random.RandomState(seed).permutation(len(x))[:500].reshape(2, 250):
            body((x[ids].float()/255 - .5)/.25)
    return body.eval()

def heads(t, body, layer, seeds, wds):
    "For each draw: its head, and what the validation pictures said"
    how = dict(layer=layer, stats=STATS, device='cpu', cache=False)
    draws = [kshot(t.train.y, SHOTS, s) for s in seeds]
    ids, at = np.unique(np.concatenate(draws), return_inverse=True)
    f, v = extract(body, t.train, ids=ids, **how), extract(body, t.valid, ids=kshot(t.valid.y, V, 0), **how)
    ps = fit_probes(f, np.split(at, len(draws)), wds)
    loss, acc = ps.losses(v).mean(2), ps.accuracy(v)
    for i,j in enumerate(loss.argmin(1)):
        yield ps.head(i, j), dict(wd=wds[j], valid_loss=float(loss[i,j]), valid_acc=float(acc[i,j]),
                                  grad_norm=float(ps.grad_norm[i,j]))

@lru_cache(maxsize=1) # One pass over the test for all heads of a stage
def results(name, body, layer, seeds, wds):
    "One result for each seed"
    t = get(name).unopened() # an empty log of openings: the store keeps them
    net = arch('glyphnet') if body == 'trained' else random_body(name, *seeds)
    if body == 'trained': net = net.cut(net(pretrained=True))
    hs, seen = zip(*heads(t, net, layer, seeds, list(wds)))
    scores = t.score_heads(net, hs, layer=layer, stats=STATS, device='cpu')
    return [dict(o, pred=s.pred, prob=s.prob) for o,s in zip(seen, scores)]

def run(spec):
    "One run; it depends on its spec alone"
    seeds = tuple(range(SEEDS['trained'])) if spec['body'] == 'trained' else (spec['seed'],)
    found = results(spec['target'], spec['body'], spec['layer'], seeds, tuple(spec['wds']))
    return found[seeds.index(spec['seed'])]

def grid():
    "Every spec of the lesson, the trained body first"
    def spec(t, body, layer, seed):
        return dict(kind='stage', target=t, pixel_hash=get(t).pixel_hash, backbone='glyphnet', body=body, layer=layer,
                    bn='own' if body == 'trained' else 'counted', shots=SHOTS, wds=WDS, V=V, seed=seed)
    return ([spec(t, 'trained', i, s) for t in TARGETS for i in range(5) for s in range(SEEDS['trained'])]
            + [spec(t, 'random', i, s) for s in range(SEEDS['random']) for t in TARGETS for i in range(5)])

if __name__ == '__main__':
    store = Records('tlcourse-out/feature_extraction/records.db')
    sweep(grid(), store, run, workers=1)
    for n in TARGETS: store.put_labels(get(n).pixel_hash, get(n)._test_arrays[1], dict(name=n, classes=get(n).classes))
    store.export(package_assets()/'feature_extraction.db')
