"""The stored grid of lesson 12: a zoo of bodies on five targets, heads on each, and what would have ranked them before.

    python grids/which_backbone.py [TARGET...]
        # about 12 minutes of one core, the targets named first; goes on where it was stopped

Rows of three kinds. `source`: a small network pretrained here, its weights and its accuracy on the source. `head`: a
head on frozen features of a body, on 5 or 20 labels per class (five draws) or all; five validation pictures per class
choose its weight decay by their mean loss, and it opens the sealed test once. `scores`: what the labelled training
pictures of the same draw say of the body before: scores of transferability, k-NN, a probe on a tenth; no test picture.
"""
import sys, time
from functools import lru_cache
import numpy as np, torch
from torch import nn
from tlcourse.backbones import arch, GlyphNet
from tlcourse.base import package_assets
from tlcourse.data import kshot, target
from tlcourse.features import extract
from tlcourse.pretrain import _one_cycle, _source_accuracy, _source_loss
from tlcourse.probes import fit_probes
from tlcourse.records import Records
from tlcourse.sweep import sweep
from tlcourse.transferability import h_score, knn_accuracy, leep, logme, nce
from tlcourse.world import SourceDrawer

TARGETS = ['digits', 'letters', 'textures', 'hues', 'emoji']
WDS, V, SHOTS, DRAWS = [1e-4, 1e-3, 1e-2, 1e-1, 1.], 5, [5, 20, 'all'], 5
HALF, QUARTER = [12, 16, 32, 48, 96], [6, 8, 16, 24, 48]
# Name: source task, channels, glyphs (None: all), steps of the whole training, steps that this one has had
SOURCES = {'half': ('glyph', HALF, None, 700, 700), 'half early': ('glyph', HALF, None, 700, 150),
           'half few': ('glyph', HALF, 40, 300, 300), 'half multi': ('multi', HALF, None, 500, 500),
           'quarter': ('glyph', QUARTER, None, 600, 600), 'quarter early': ('glyph', QUARTER, None, 600, 150)}
# Name: backbone, and how many children of its body are kept (None: all)
CUTS = {'glyphnet': ('glyphnet', None), 'glyphnet 3': ('glyphnet', 4), 'glyphnet 2': ('glyphnet', 3),
        'glyphnet 1': ('glyphnet', 2), 'multi': ('glyphnet_multi', None), 'multi 3': ('glyphnet_multi', 4),
        'multi 2': ('glyphnet_multi', 3), 'lite0': ('tf_efficientnet_lite0', None),
        'lite0 half': ('tf_efficientnet_lite0', 7)}
RANDOM = {'random': 'glyphnet'}
BODIES = [*CUTS, *SOURCES, *RANDOM]
stored = package_assets()/'which_backbone.db'

@lru_cache
def get(name): return target(name, size=64) if name == 'emoji' else target(name)

def source_spec(name):
    kind, nfs, n, of, steps = SOURCES[name]
    return dict(kind='source', body=name, task=kind, nfs=nfs, n_glyphs=n, of=of, steps=steps, bs=128, lr=4e-3, seed=0)

@lru_cache(maxsize=1)
def pretrained(spec):
    "A small network after `steps` of the `of` steps of its training, as float16; and its row"
    o = dict(spec)
    drawer, t0 = SourceDrawer(o['task'], o['seed'], o['n_glyphs']), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o['seed'])
        net = GlyphNet(sum(drawer.n_outs), o['nfs']).to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(net.parameters(), weight_decay=.02)
    for i in range(o['steps']):
        for g in opt.param_groups: g['lr'] = _one_cycle(i, o['of'], o['lr'])
        x,y = drawer.batch(o['bs'])
        opt.zero_grad()
        _source_loss(net((x - .5)/.25), y, drawer.n_outs).backward()
        opt.step()
    sd = {k: v.half().contiguous() for k,v in net.state_dict().items() if v.is_floating_point()}
    net.load_state_dict({k: v.float() for k,v in sd.items()}, strict=False)
    seconds = time.process_time() - t0
    acc = _source_accuracy(net.eval(), drawer)['glyph']['accuracy']
    return {**{k: v.numpy() for k,v in sd.items()}, 'source_accuracy': acc, 'seconds': seconds}

def source_net(name):
    "The network of a `source` row: stored, or trained now"
    spec = source_spec(name)
    # Where the grid is being made its own file has it, elsewhere the one that ships
    kept = Records(out) if out.exists() else Records(stored, readonly=True)
    found = kept.get(spec) or run(spec)
    sd = {k: torch.from_numpy(v).float() for k,v in found.items() if isinstance(v, np.ndarray)}
    net = GlyphNet(len(sd['fc.weight']), spec['nfs'])
    net.load_state_dict(sd, strict=False)
    return net

def counted(body, x, stats):
    "The body with BatchNorm statistics of 500 training pictures"
    bns = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in bns: m.momentum = None # The mean over all batches
    body.train()
    with torch.no_grad():
        for ids in np.array_split(np.random.RandomState(0).permutation(len(x))[:500], 5):
            body((x[ids].float()/255 - stats[0][0])/stats[1][0])
    return body.eval()

@lru_cache(maxsize=1)
def zoo(name, t):
    "(the source's classifier or None where there is none, body, statistics) for a target"
    base = CUTS[name][0] if name in CUTS else RANDOM.get(name, 'glyphnet')
    a = arch(base, 'random' if name in RANDOM else None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = source_net(name) if name in SOURCES else a(pretrained=name not in RANDOM)
    parts = list(a.cut(net.eval()).children())
    kept = CUTS.get(name, (None, None))[1]
    # EfficientNet halves a picture five times: it gets one of 32 pixels twice as large
    wide = [nn.Upsample(scale_factor=2, mode='bilinear')] if 'lite0' in name and get(t).train.x.shape[-1] == 32 else []
    body = nn.Sequential(*wide, *parts[:kept])
    if name in RANDOM: body = counted(body, get(t).train.x, a.stats)
    return None if kept or name in RANDOM else getattr(net, 'fc', None) or net.classifier, body.eval(), a.stats

def subsets(t):
    "Size and draw to the places of the labelled training pictures"
    y = get(t).train.y
    return {(k, s): kshot(y, k, s) if k != 'all' else np.arange(len(y))
            for k in SHOTS for s in range(1 if k == 'all' else DRAWS)}

def tenth(y, seed):
    "A tenth of the labelled pictures of each class, at least one, and the others"
    r = np.random.RandomState(seed)
    a = np.concatenate([(i := r.permutation(np.flatnonzero(y == c)))[:max(1, len(i)//10)] for c in np.unique(y)])
    return a, np.setdiff1d(np.arange(len(y)), a)

class Some:
    "Some rows of features, for `fit_probes`"
    def __init__(self, f, ids): self.x, self.y, self.views, self.classes = f.x[ids], f.y[ids], 1, f.classes

@torch.no_grad()
def source_probs(head, x):
    "The source's classifier on pooled features; of a source with several tasks, its glyphs"
    n = 331 if head.out_features == 331 + 12 + 17 else None
    return head(torch.tensor(x).float())[:,:n].softmax(1).double().numpy()

def timed(f, *args):
    t = time.process_time()
    v = f(*args)
    return float(v), time.process_time() - t

def probe_on_a_tenth(f, ids, seed):
    a, rest = tenth(f.y[ids], seed)
    return fit_probes(Some(f, ids), [a], 1e-2).accuracy(Some(f, ids[rest])).item()

def scores(f, p, ids, seed):
    "What the labelled pictures say, each with its seconds"
    x, y = f.x[ids].astype(np.float64), np.asarray(f.y)[ids]
    res = {'logme': timed(logme, x, y), 'h_score': timed(h_score, x, y, False), 'h_shrunk': timed(h_score, x, y),
           'knn': timed(knn_accuracy, x, y), 'tenth': timed(probe_on_a_tenth, f, ids, seed)}
    if p is not None: res |= {'leep': timed(leep, p[ids], y), 'nce': timed(nce, p[ids].argmax(1), y)}
    return {k: v for k,(v,_) in res.items()} | {f'{k}_seconds': s for k,(_,s) in res.items()}

@lru_cache(maxsize=1) # All of a body on a target in one go
def results(t, name):
    head, body, stats = zoo(name, t)
    data, how = get(t), dict(stats=stats, device='cpu', cache=False, progress=False)
    t0 = time.process_time()
    f = extract(body, data.train, **how)
    each = (time.process_time() - t0)/len(data.train)
    v = extract(body, data.valid, ids=kshot(data.valid.y, V, 0), **how)
    p = None if head is None else source_probs(head, f.x)
    size = dict(features=f.x.shape[1], seconds=each, params=sum(o.numel() for o in body.parameters()))
    found, ps = {}, fit_probes(f, list(subsets(t).values()), WDS)
    loss = ps.losses(v).mean(2)
    heads = [ps.head(i, j) for i,j in enumerate(loss.argmin(1))]
    opened = data.unopened().score_heads(body, heads, stats=stats, device='cpu') # the store keeps the openings
    for i,((k, s), ids) in enumerate(subsets(t).items()):
        found['head', k, s] = dict(pred=opened[i].pred, wd=WDS[loss[i].argmin()], valid_loss=float(loss[i].min()))
        found['scores', k, s] = scores(f, p, ids, s) | size
    return found

def run(spec):
    "One run; it depends on its spec alone"
    if spec['kind'] == 'source':
        return pretrained(tuple((k, tuple(v) if isinstance(v, list) else v) for k,v in spec.items()))
    return results(spec['target'], spec['body'])[spec['kind'], spec['shots'], spec['seed']]

def grid():
    "Every spec of the lesson, the sources first"
    def spec(t, body, kind, k, s):
        settings = dict(wds=WDS, V=V) if kind == 'head' else {}
        return dict(kind=kind, target=t, pixel_hash=get(t).pixel_hash, body=body, shots=k, seed=s, **settings)
    return [source_spec(o) for o in SOURCES] + [spec(t, b, kind, k, s) for t in TARGETS for b in BODIES
                                                for kind in ('head', 'scores') for k,s in subsets(t)]

out = package_assets().parent.parent/'tlcourse-out/which_backbone/records.db'

if __name__ == '__main__':
    store = Records(out)
    first = sys.argv[1:]
    sweep(sorted(grid(), key=lambda s: s.get('target') not in (None, *first)), store, run, workers=1)
    for n in TARGETS: store.put_labels(get(n).pixel_hash, get(n)._test_arrays[1], dict(name=n, classes=get(n).classes))
    print(store.export(stored).stat().st_size, 'bytes')
