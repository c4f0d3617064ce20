"""The stored grid of lesson 15: what each strategy finds of the head and of the tail, and what each remedy changes.

    python grids/imbalance.py [TARGET...]      # about 25 minutes of one core; goes on where it was stopped

Glyphnet, 150 steps, on targets whose training part has 60 pictures of one class down to 2 of another (`long`), or as
many in all and as many of each class (`even`). Ten seeds of fine-tuning, of feature extraction and of the remedies,
and five of them for all else; from one to the next the classes move up the ranks, so that of ten classes each has each
rank once. The test is balanced. The learning rate of fine-tuning and the weight decay of feature extraction are chosen
for each target and set, on three other seeds, by the loss on validation pictures that count as often as their class
does in training; the other two strategies have the rates of the table (lesson 7), and a remedy has those of the plain
run. A run depends on its spec alone: `run(spec)`. Plain runs on the long tail hold the predictions after `adjusted`
with some `tau`, too.

The remedies had five seeds first and ten when these left the tail open, so their page asks for half the level. The same
command goes on where it was stopped, from the folder `out`.
"""
import sys, time
from functools import cache, partial
import numpy as np, torch, torch.nn.functional as F
from fastai.callback.data import WeightedDL
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, ToTensor
from fastai.losses import CrossEntropyLossFlat
from tlcourse.activations import _features
from tlcourse.base import package_assets
from tlcourse.data import long_tail, target
from tlcourse.imbalance import effective_weights, LogitAdjustedLoss
from tlcourse.finetune import _last_third
from tlcourse.layers import true_freeze
from tlcourse.probes import _units
from tlcourse.records import Records
from tlcourse.runs import _measured
from tlcourse.strategy import _as_asked, _learner, fit_steps, seeded, STRATEGIES
from tlcourse.sweep import sweep

out = 'tlcourse-out/imbalance'
MOST, LEAST, SEEDS, BETA, TAUS = 60, 2, 10, .99, (.5, 1, 1.5, 2)
TARGETS = 'digits', 'textures'
SETS, REMEDIES = ('long', 'even'), ('oversampled', 'class-balanced', 'logit-adjusted')
STRATS = 'fine-tuning', 'feature-extraction', 'last-layers', 'scratch'
TUNE = 100, 101, 102
WDS = [.27*3.**i for i in range(-11, 2)]
DOSES, FEW = (1/3, 1, 3, 9), range(0, SEEDS, 2) # Rates besides, as multiples of the table's

@cache
def get(name): return target(name)

def by_rank(n_classes, how):
    "Training pictures of the classes, the most frequent first"
    n = np.geomspace(MOST, LEAST, n_classes).round().astype(int)
    return n if how == 'long' else np.array([len(o) for o in np.array_split(np.arange(n.sum()), n_classes)])

def ranks(n_classes, seed):
    "The class at each rank"
    return np.roll(np.random.RandomState(0).permutation(n_classes), -seed*n_classes//SEEDS)

def counts(n_classes, how, seed):
    n = np.zeros(n_classes, int)
    n[ranks(n_classes, seed)] = by_rank(n_classes, how)
    return n

def drawn_evenly(dls, y, n):
    "The dls with fastai's WeightedDL, each picture as probable as its class is rare"
    dl = WeightedDL(dls.train.dataset, bs=32, wgts=1/n[y], shuffle=True, after_item=[ToTensor()],
                    after_batch=list(dls.train.after_batch.fs), device=dls.device)
    return DataLoaders(dl, dls.valid, device=dls.device)

def fitted_head(z, y, wd, weights, shift):
    "A linear head, until it is done: weighted cross entropy of logits + shift, and wd/2 |W|^2, as in `fit_probes`"
    mu, sd = _units(z.double()[None], 'all')
    x, w = (z.double() - mu[0])/sd[0], weights.double()
    W, b = (torch.zeros(len(w), n, dtype=torch.float64, requires_grad=True) for n in (z.shape[1], 1))
    opt = torch.optim.LBFGS([W, b], max_iter=1000, tolerance_grad=1e-7, line_search_fn='strong_wolfe')
    def loss():
        opt.zero_grad()
        res = F.cross_entropy(x@W.T + b[:,0] + shift, y, weight=w) + wd/2*W.square().sum()
        res.backward()
        return res
    opt.step(loss)
    W, b = W.detach()/sd[0], b.detach()[:,0]
    return W.float(), (b - W@mu[0,0]).float()

def probe(dls, seed, wd, weights, shift):
    learn = _learner(dls, 'glyphnet', seed, progress=False)
    true_freeze(learn)
    (z,), y, *_ = _features(learn, 1)
    head = learn.model[1][-1]
    with torch.no_grad():
        for p,v in zip((head.weight, head.bias), fitted_head(z.cpu(), y.cpu(), wd, weights, shift)): p.copy_(v)
    return learn

def tuned(dls, spec, loss):
    "A body that trains, as the recipes of lesson 7 have it, with a loss"
    how, lr = spec['strategy'], spec['lr']
    learn = _learner(dls, 'glyphnet', spec['seed'], pretrained=how != 'scratch', progress=False,
                     splitter=_last_third if how == 'last-layers' else None)
    learn.loss_func = loss
    if how == 'last-layers': true_freeze(learn, -2)
    elif how == 'fine-tuning': learn.unfreeze()
    with _as_asked(learn): fit_steps(learn, spec['steps'], lr if how == 'scratch' else slice(lr/25, lr))
    learn.loss_func = CrossEntropyLossFlat()
    return learn

def fitted(t, n, spec):
    remedy, n = spec['remedy'], np.asarray(n)
    dls = t.dls(seed=spec['seed'], bs=spec['bs'], augment=False, device='cpu')
    w = effective_weights(n, {'oversampled': 1, 'class-balanced': BETA}.get(remedy, 0))
    if spec['strategy'] == 'feature-extraction': # What a converged head sees of oversampling is the weights
        shift = LogitAdjustedLoss(n, float(remedy == 'logit-adjusted')).shift
        return probe(dls, spec['seed'], spec['wd'], w, shift)
    if remedy == 'oversampled': dls = drawn_evenly(dls, t.train.y.numpy(), n)
    loss = LogitAdjustedLoss(n) if remedy == 'logit-adjusted' else CrossEntropyLossFlat(
        weight=w if remedy == 'class-balanced' else None)
    return tuned(dls, spec, loss)

def run(spec):
    "What a run of `spec` gives"
    t = get(spec['target']).unopened()
    n = counts(len(t.classes), spec['set'], spec['seed'])
    tail = long_tail(t, n, spec['seed'])
    t0 = time.process_time()
    with seeded(spec['seed']): learn = fitted(tail, n, spec)
    losses, right = _measured(learn, learn.dls.valid)
    res = dict(seconds=time.process_time() - t0, counts=n.tolist(), ranks=ranks(len(n), spec['seed']).tolist(),
               losses=losses, valid_acc=float(right.mean()))
    if spec['kind'] == 'tune': return res
    res['pred'] = t.score(learn).pred.astype(np.uint8)
    if spec['strategy'] == 'scratch':
        res['train_acc'] = float(_measured(learn, learn.dls.train.new(shuffle=False, drop_last=False))[1].mean())
    if spec['remedy'] == 'plain' and spec['set'] == 'long':
        bias, share = learn.model[1][-1].bias, torch.tensor(n/n.sum()).float()
        for tau in TAUS: # `adjusted` divides probabilities; a shift of the head's bias is the same, and can be scored
            with torch.no_grad(): bias -= tau*share.log()
            res[f'pred {tau:g}'] = t.score(learn).pred.astype(np.uint8)
            with torch.no_grad(): bias += tau*share.log()
    return res

def spec(t, strategy, how, seed, remedy='plain', knob=None, kind='report'):
    s = STRATEGIES[strategy]
    if s.rate is None: extra = dict(wd=s.wd if knob is None else knob)
    else: extra = dict(lr=s.rate if knob is None else knob, steps=150)
    return dict(kind=kind, target=t.name, pixel_hash=t.pixel_hash, backbone='glyphnet', set=how, strategy=strategy,
                remedy=remedy, seed=seed, bs=32, **extra)

def shares(t, how, seed):
    "What each validation picture counts: its class as often as in training"
    y, n = t.valid.y.numpy(), counts(len(t.classes), how, seed)
    w = (n/np.bincount(y, minlength=len(n)))[y]
    return w/w.sum()

def near(runs, table):
    "Of the values whose loss is within a standard error of the smallest, the nearest to the table's"
    best = min(runs, key=lambda k: runs[k].sum(1).mean())
    def ok(k):
        d = runs[k] - runs[best] # (seeds, pictures), each times its share
        return d.sum() <= (d.shape[1]*d.var()*len(d))**.5
    return min((k for k in runs if ok(k)), key=lambda k: abs(np.log(k/table)))

def chosen(records, t, strategy, how, go):
    "The knob for a target and set; rates are tried three times apart until the smallest loss is none of the ends"
    table = STRATEGIES[strategy].rate or STRATEGIES[strategy].wd
    tries = WDS if strategy == 'feature-extraction' else [table/3, table, 3*table]
    weights = np.stack([shares(t, how, s) for s in TUNE])
    while True:
        specs = {k: [spec(t, strategy, how, s, knob=k, kind='tune') for s in TUNE] for k in tries}
        go([o for v in specs.values() for o in v])
        runs = {k: np.stack([records.get(o)['losses'] for o in v])*weights for k,v in specs.items()}
        least = min(runs, key=lambda k: runs[k].sum())
        edge = -1 if least == min(tries) else 1 if least == max(tries) else 0
        if not edge or tries is WDS or len(tries) > 4: break
        tries = [min(tries)/3, *tries] if edge < 0 else [*tries, 3*max(tries)]
    return dict(chosen=near(runs, table), edge=edge, losses=[[k, float(v.sum(1).mean())] for k,v in runs.items()])

def go(records, specs): sweep(specs, records, run, workers=1, progress=False)

def both(records, t):
    "Feature extraction and fine-tuning on a target, with knobs chosen for it; the knobs"
    best = {}
    for a in STRATS[:2]:
        for how in SETS:
            what = dict(kind='chosen', target=t.name, pixel_hash=t.pixel_hash, strategy=a, set=how)
            records.add(what, chosen(records, t, a, how, partial(go, records)), again=True)
            best[a, how] = records.get(what)['chosen']
    go(records, [spec(t, a, how, s, knob=best[a, how]) for s in range(SEEDS) for how in SETS for a in STRATS[:2]])
    return best

def main(names):
    records = Records(f'{out}/records.db')
    for t in map(get, TARGETS):
        records.put_labels(t.pixel_hash, t._test_arrays[1], dict(target=t.name, classes=t.classes))
    if 'digits' in names:
        t = get('digits')
        best, lr = both(records, t), STRATEGIES['fine-tuning'].rate
        go(records, [spec(t, STRATS[1], how, s, knob=k) for s in FEW for how in SETS for k in WDS[1::2]])
        go(records, [spec(t, a, 'long', s, r, best[a, 'long'])
                     for a in STRATS[:2] for s in range(SEEDS) for r in REMEDIES])
        go(records, [spec(t, STRATS[0], how, s, knob=d*lr) for s in FEW for how in SETS for d in DOSES])
        go(records, [spec(t, a, how, s) for s in FEW for how in SETS for a in STRATS[2:]])
    for n in names:
        if n != 'digits': both(records, get(n))
    print(records.export(package_assets()/'imbalance.db').stat().st_size, 'bytes')

if __name__ == '__main__': main(sys.argv[1:] or TARGETS)
