"""The stored grid of lesson 11: heads on near and far targets, and tuning on hues from two sources.

    python grids/near_and_far.py [MINUTES]
        # about 25 minutes of one idle core; begins nothing after MINUTES, and goes on where it was stopped

Five labels per class. `heads` are fitted on frozen features of a trained body and of a random one; five validation
pictures per class choose one weight decay for all five draws by their mean loss. On hues everything is tuned for 150
steps, by the settings of the grid of lesson 9 (first edition), whose runs from scratch stand beside; three tuning seeds
choose the rates on five validation pictures per class: by the loss from glyphnet_multi (`tlcourse.rates`), by the
accuracy from glyphnet. Each run of another five seeds opens the sealed test once.

`copied` (after Yosinski et al. 2014, arXiv:1411.1792): a network is trained from scratch on 20 labels per class; then
new ones are trained on the same labels, whose stem and first stages come from it (`own`) or from the pretrained
glyphnet (`glyphs`), and stay as they are, BatchNorm statistics too, or are trained with the rest, which starts from
random numbers. With no stage copied it is a second network from scratch. All have 150 steps at the rate of `scratch`.
"""
import sys, time
from functools import cache, lru_cache
import numpy as np, torch
from fastai.vision.learner import params
from fastcore.foundation import L
from tlcourse.backbones import arch
from tlcourse.base import package_assets
from tlcourse.data import kshot, Target, target
from tlcourse.distance import shuffle_blocks
from tlcourse.features import extract
from tlcourse.layers import true_freeze
from tlcourse.passes import _adapt
from tlcourse.probes import fit_probes
from tlcourse.rates import choose, grid
from tlcourse.records import Records
from tlcourse.runs import _measured
from tlcourse.strategy import _as_asked, _learner, fit_steps, seeded, STRATEGIES
from tlcourse.sweep import sweep
from tlcourse.world import draw

DIAL = ['letters', 'letters-stix', 'letters-scripts', 'digits', 'textures', 'hues']
BLOCKS = [16, 8, 4]
SHOTS, STEPS, BS, V, SEEDS, TUNE = 5, 150, 32, 5, range(5), (100, 101, 102)
WDS = [1e-4, 1e-3, 1e-2, 1e-1, 1., 10.]
PHOTO = ['emoji', 'emoji-lines', 'digits'] # of the body from ImageNet
COPIED, STAGES, MORE = ('digits', 'letters', 'hues'), (1, 2, 3, 4), 20 # Targets, stages copied, labels per class
OTHER = {'letters': 'letters-stix', 'emoji': 'emoji-lines'} # the same classes, looking different
out, stored = 'tlcourse-out/near_and_far', package_assets()/'near_and_far.db'

@cache
def get(name, size=32):
    "A target; 'letters/8' is in shuffled blocks of 8 pixels"
    name, _, block = name.partition('/')
    if not block: return target(name, size=size)
    d = draw(name)
    x = shuffle_blocks(torch.from_numpy(d.x), int(block)).numpy()
    return Target(f'{name}/{block}', d.classes, x, d.y, d.split, d.augment, backbone='glyphnet')

def dls(name, shots, seed):
    return get(name).unopened().dls(shots=shots, seed=seed, bs=BS, device='cpu', valid_shots=V)

# Training
def trained(spec):
    "Tuned, or from scratch; measured on validation, and in a report on training and sealed test pictures"
    data = dls(spec['target'], spec['shots'], spec['seed'])
    t0 = time.process_time()
    learn = STRATEGIES[spec['strategy']](data, spec['backbone'], steps=spec['steps'], lr=spec['lr'], seed=spec['seed'],
                                         progress=False)
    return measured(learn, spec, time.process_time() - t0)

def measured(learn, spec, seconds):
    losses, right = _measured(learn, learn.dls.valid)
    res = dict(losses=losses, valid_acc=float(right.mean()), seconds=seconds)
    if spec['kind'] == 'tune': return res
    train = learn.dls.train.new(shuffle=False, drop_last=False)
    return dict(res, pred=get(spec['target']).unopened().score(learn).pred,
                train_acc=float(_measured(learn, train)[1].mean()))

# Heads
@lru_cache(maxsize=2)
def frozen(backbone, body, name):
    "A body, and the statistics of its pictures; a random one has BatchNorm statistics of the training pictures"
    a = arch(backbone, 'random' if body == 'random' else None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = a.cut(a(pretrained=body != 'random').eval())
    t = get(name, size_of(backbone))
    x = t.train.x[np.random.RandomState(0).permutation(len(t.train))[:500]].float()/255
    mean, std = (torch.tensor(o)[:,None,None] for o in a.stats)
    if body == 'random': net = _adapt(net, list(((x - mean)/std).split(100)), 'it')
    return net.eval(), a.stats

def size_of(backbone): return 32 if backbone == 'glyphnet' else 64

@lru_cache(maxsize=1)
def heads(backbone, body, name):
    "Heads on five draws; five validation pictures per class choose the weight decay of all by their mean loss"
    net, stats = frozen(backbone, body, name)
    t, how = get(name, size_of(backbone)).unopened(), dict(stats=stats, device='cpu', cache=False, progress=False)
    draws = [kshot(t.train.y, SHOTS, s) for s in SEEDS]
    ids, at = np.unique(np.concatenate(draws), return_inverse=True)
    f, v = extract(net, t.train, ids=ids, **how), extract(net, t.valid, ids=kshot(t.valid.y, V, 0), **how)
    ps = fit_probes(f, np.split(at, len(draws)), WDS)
    j = ps.losses(v).mean((0, 2)).argmin()
    hs = [ps.head(i, j) for i in range(len(draws))]
    res = [dict(pred=s.pred, wd=WDS[j]) for s in t.score_heads(net, hs, stats=stats, device='cpu')]
    if name in OTHER:
        o = get(OTHER[name], size_of(backbone)).unopened()
        assert o.classes == t.classes
        for r,s in zip(res, o.score_heads(net, hs, stats=stats, device='cpu')): r['pred other'] = s.pred
    return res

# Copied stages
def begun(data, seed, lr, stages=0, body=None, tuned=True):
    "A network whose stem and first stages are those of `body`"
    def groups(m): return L(params(m[0][:stages+1]), params(m[0][stages+1:]) + params(m[1]))
    learn = _learner(data, 'glyphnet', seed, pretrained=False, progress=False, splitter=groups)
    if stages: learn.model[0][:stages+1].load_state_dict(body[:stages+1].state_dict())
    if tuned: learn.unfreeze()
    else: true_freeze(learn, -1)
    with _as_asked(learn): fit_steps(learn, STEPS, lr)
    return learn

@lru_cache(maxsize=1)
def own(name, seed, lr):
    "The body that learned this target itself"
    with seeded(seed): return begun(dls(name, MORE, seed), seed, lr).model[0].eval()

@cache
def glyphs():
    a = arch('glyphnet')
    return a.cut(a(pretrained=True)).eval()

def copied(spec):
    name, seed, lr = spec['target'], spec['seed'], spec['lr']
    body = own(name, seed, lr) if spec['source'] == 'own' else glyphs()
    t0 = time.process_time()
    with seeded(seed + 1000): # Another random rest than that of the first network
        learn = begun(dls(name, MORE, seed), seed + 1000, lr, spec['stages'], body, spec['tuned'])
    res = measured(learn, spec, time.process_time() - t0)
    del res['losses'] # which choose nothing here
    return res

def copied_specs():
    for name in COPIED:
        for s in SEEDS:
            for source,tuned,n in [(None, True, 0), *[(o, t, n) for o in ('own', 'glyphs') for n in STAGES
                                                       for t in (False, True)]]:
                yield dict(kind='copied', target=name, pixel_hash=get(name).pixel_hash, backbone='glyphnet', stages=n,
                           source=source, tuned=tuned, shots=MORE, steps=STEPS, bs=BS, V=V, seed=s,
                           lr=STRATEGIES['scratch'].rate)

def run(spec):
    "One run; it depends on its spec alone"
    if spec['kind'] == 'copied': return copied(spec)
    if spec['kind'] == 'heads': return heads(spec['backbone'], spec['body'], spec['target'])[spec['seed']]
    return trained(spec)

def spec(kind, name, strategy, seed, lr, backbone='glyphnet'):
    return dict(kind=kind, target=name, pixel_hash=get(name).pixel_hash, backbone=backbone, strategy=strategy,
                shots=SHOTS, steps=STEPS, bs=BS, V=V, seed=seed, lr=lr)

def head_specs():
    for b,names in ('glyphnet', [*DIAL, *shuffled()]), ('tf_efficientnet_lite0', PHOTO):
        for name in names:
            for body in 'trained', 'random':
                for s in SEEDS: yield dict(kind='heads', target=name, pixel_hash=get(name, size_of(b)).pixel_hash,
                                           backbone=b, body=body, shots=SHOTS, wds=WDS, V=V, seed=s)

def shuffled(): return [f'letters/{b}' for b in BLOCKS]

def rates(go):
    "The chosen rates on hues, by backbone; `go` runs specs"
    def tuned(b, r): return go([spec('tune', 'hues', 'fine-tuning', s, r, b) for s in TUNE])
    def losses(todo): return [[o['losses'] for o in tuned(b, r)] for b,r,_ in todo]
    table = STRATEGIES['fine-tuning'].rate
    # Where next to nothing can be learned, the loss is smallest at no learning at all: here the accuracy chooses
    tried, rs = {}, grid(table, -1, 7)
    for i,r in enumerate(rs):
        tried[r] = float(np.mean([o['valid_acc'] for o in tuned('glyphnet', r)]))
        best = max(tried, key=tried.get)
        if i > 4 and i - rs.index(best) > 1: break # two higher rates are worse
    edge = int(best == r) - int(best == rs[0])
    c = choose(losses, {'glyphnet_multi': table})['glyphnet_multi']
    return {'glyphnet': dict(rate=best, edge=edge, by='accuracy', tried=[[k, v] for k,v in tried.items()]),
            'glyphnet_multi': dict(rate=c.rate, edge=c.edge, by='loss', tried=[list(map(float, o)) for o in c.tried])}

def main():
    records, t0 = Records(f'{out}/records.db'), time.time()
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 1e9
    def go(specs):
        specs = list(specs)
        if time.time() - t0 < 60*minutes: return sweep(specs, records, run, workers=1, progress=False)
        sys.exit('time is up')
    def some(specs):
        specs = list(specs)
        for i in range(0, len(specs), 5): go(specs[i:i+5])
        print(len(specs), 'runs', round(time.time() - t0), 's', flush=True)
    found = rates(go)
    for b,o in found.items():
        what = dict(kind='chosen', target='hues', pixel_hash=get('hues').pixel_hash, strategy='fine-tuning', backbone=b)
        if not records.has(what): records.add(what, o)
        print(b, o, flush=True)
    def tuned(b): return [spec('report', 'hues', 'fine-tuning', s, found[b]['rate'], b) for s in SEEDS]
    some(tuned('glyphnet'))
    some(head_specs())
    some(tuned('glyphnet_multi'))
    some(copied_specs())

def store():
    records = Records(f'{out}/records.db')
    for name in (*DIAL, *shuffled()): put(records, get(name))
    for name in PHOTO: put(records, get(name, 64))
    print(records.export(stored).stat().st_size, 'bytes')

def put(records, t): records.put_labels(t.pixel_hash, t._test_arrays[1], dict(target=t.name, classes=t.classes))

if __name__ == '__main__':
    if sys.argv[1:] != ['store']: main()
    store()
