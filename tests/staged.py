"Stores of made-up studies in stages, with known accuracies."
from types import SimpleNamespace
import numpy as np
from scipy.special import ndtri
from tlcourse.base import versions
from tlcourse.comparison import Comparison
from tlcourse.records import Records

CLASSES = ['daisy', 'iris', 'lily', 'rose', 'tulip', 'Möwe & <b>Co</b>']
PARTS = {c: [n, 30, 50] for c,n in zip(CLASSES, (200, 150, 130, 120, 116, 100))}
ALL = sum(n for n,_,_ in PARTS.values()) # 816
ARMS = ['feature-extraction', 'last-layers', 'fine-tuning', 'fine-tuning+aug']
ASIDE = ['k-nn', 'random-features']
FROZEN = {'feature-extraction', 'random-features'}
ACC = {'feature-extraction': {1: .52, 5: .74, 20: .86, 'all': .92}, 'last-layers': {'all': .945},
       'fine-tuning': {1: .45, 5: .72, 20: .90, 'all': .985}, 'k-nn': {1: .5, 5: .7, 20: .8, 'all': .84},
       'random-features': {1: .2, 5: .24, 20: .3, 'all': .36}, 'scratch': {1: .2, 5: .25, 20: .35, 'all': .6}}
PLAN = {1: [(a, k) for a in ('feature-extraction', 'k-nn') for k in (1, 5, 20, 'all')] + [('random-features', 'all')],
        2: [('last-layers', 'all'), ('fine-tuning', 'all')],
        3: [('fine-tuning', 20), ('fine-tuning', 5), ('fine-tuning', 1)]}
MISSING = [dict(strategy='fine-tuning+aug', shots='all', minutes=6.2)]

def made_staged(d, stage=3, acc=ACC, arms=ARMS, missing=MISSING, edges=(), classes=CLASSES, n=300, parts=PARTS,
                plan=PLAN, seeds=3, stages=3, size=32, tune='valid', shots=(1, 5, 20, 'all'), pictures=True, code=4,
                looks=None, shifts=None):
    """The comparison of a study that has come to `stage`; `edges`: cells whose rate stays at the highest tried;
    `shifts`: name to accuracies under it, as `acc` has them."""
    rng, rng2, shifts = np.random.default_rng(0), np.random.default_rng(1), shifts or {}
    y, effect = np.arange(n) % len(classes), rng.normal(size=n)
    recs = Records(d/'records.db')
    recs.put_labels('px', y, dict(classes=classes))
    cells, rates = [], []
    for s,k in [c for i in range(1, stage+1) for c in plan[i]]:
        m = seeds if s not in FROZEN | {'k-nn'} else 1 if k == 'all' else 20
        base = dict(pixel_hash='px', strategy=s, shots=k, V=5, code=code, device='cpu', backbone='lite0')
        if s in FROZEN: base.update(wd=.01)
        elif s != 'k-nn': base.update(lr=.003, steps=255 if k == 'all' else 80, bs=32)
        under = dict(shifts=dict.fromkeys(shifts)) if shifts else {}
        specs = [dict(base, kind='report', seed=i, **under) for i in range(m)]
        for sp in specs:
            ok = ndtri(acc[s][k])*2**.5 + effect + rng.normal(size=n) > 0
            res = dict(pred=np.where(ok, y, (y+1) % len(classes)).astype(np.uint16), prob=np.full(n, .75, np.float16),
                       seconds=.4 if s in FROZEN else 82., valid_acc=.7)
            for name,there in shifts.items():
                ok = ndtri(there[s][k])*2**.5 + effect + rng2.normal(size=n) > 0
                res[f'pred {name}'] = np.where(ok, y, (y+1) % len(classes)).astype(np.uint16)
            recs.add(sp, {**res, 'train_acc': .97} if s == 'scratch' else res)
        cells.append([s, k, specs])
        if s == 'k-nn': continue
        knob, taken = 'wd' if s in FROZEN else 'lr', s == 'fine-tuning' and k in (5, 20)
        fixed = tune == 'none' or (k != 'all' and k <= 2)
        grid = [.001, .003, .009] if knob == 'lr' else [.001, .01, .1, 1]
        tried = [] if fixed or taken else [[x, .5 + .1*i, .02*i] for i,x in enumerate(grid)]
        if tried: tried[1][1:] = [.51, .02] # Within one standard error of the smallest
        for x,loss,_ in tried:
            recs.add({**base, 'kind': 'tune', 'seed': 1000, knob: x, 'V': None},
                     dict(losses=np.full(30, loss, np.float32), valid_loss=loss, valid_acc=.8, seconds=3.))
        rates.append(dict(strategy=s, shots=k, knob=knob, rate=base[knob],
                          edge=1 if (s, k) in edges else 0, tried=tried, fixed=fixed,
                          at='all' if taken and not fixed else None, race=s == 'fine-tuning' and k == 'all'))
    what = dict(kind='study', pixel_hash='px', target='my photos', size=128, backbone='lite0',
                weights='sha256:ab', head='pool-flatten-linear',
                strategies=list(arms), shots=list(shots), seeds=5, steps=None, bs=32, tune=tune, V=5, augment=[],
                device='cpu', code=code)
    if looks: what['looks'] = looks
    if shifts: what['shifts'] = dict.fromkeys(shifts)
    recs.add(what, dict(cells=cells, rates=rates, beside=ASIDE, stage=stage, stages=stages,
                        missing=list(missing) if stage == stages else [],
                        notes=['6 classes were found.'], parts=parts, versions=versions()), again=True)
    x = rng.integers(0, 256, (n, 3, size, size)).astype(np.uint8)
    return Comparison(recs, what, SimpleNamespace(_test_arrays=(x, y), classes=classes) if pictures else None)
