"""One head for every arm: is ours as good as scikit-learn's, and should features have unit length before it?

    python benchmarks/head.py [--parts bound,...] [--smoke] [--seeds N] [--workers N] [--out FILE]   # writes head.json

bound      `feature-extraction` against scikit-learn's LogisticRegression on features of length 1, on flowers17
length     `feature-extraction` on features scaled to length sqrt(d) against plain ones, on flowers17, ants_bees, emoji
tuning     fine-tuning with a head that scales its features so, against the plain head, on flowers17 (12 CPU minutes)

Every picture of a target goes through the frozen body once, and all heads take their rows from there. The arms see
the same labelled pictures. Weight decays are chosen as `compare` chooses them: by the loss on five validation pictures
a class, of three tuning seeds; at `all` of one, on the whole validation part; at one label they are the table's.
scikit-learn's C is the one of smallest loss on the same pictures, from .1 to 10,000, at one label too. The validation
part of the photographs is carved from their training part with five seeds; a row of a matrix of correctness is such a
split, the mean over its draws of the labels. The test part of each target is fixed. Differences are paired, with an
interval over the rows and the test pictures. Fine-tuning has the rate and the steps of `compare`'s table.
Runs are kept in tlcourse-out/head, so a run that was stopped goes on; TLCOURSE_ASSETS names the photographs' folder.
"""
import argparse, tempfile, time
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from torch import nn
from timing import quiet, row, save, show, table
from tlcourse.backbones import arch
from tlcourse.base import BadInput, photo_assets
from tlcourse.data import kshot, target
from tlcourse.loaders import Part
from tlcourse.features import extract
from tlcourse.strategy import STRATEGIES, _as_asked, _learner, fit_steps, seeded
from tlcourse.probes import fit_probes
from tlcourse.records import Records
from tlcourse.runs import TUNE_SEED, Heads, steps_for
from tlcourse.study_stages import _decay
from tlcourse.stats import mean_ci, paired_ci
from tlcourse.sweep import sweep

PARTS, PHOTOS = ('bound', 'length', 'tuning'), ('flowers17', 'ants_bees')
CS = tuple(10.**np.arange(-1, 5)) # scikit-learn's
TABLE_WD, RATE = STRATEGIES['feature-extraction'].wd, STRATEGIES['fine-tuning'].rate
FULL = dict(size=128, splits=5, shots=(1, 5, 20, 'all'), tuning_seeds=3, steps=None,
            targets=dict(bound=['flowers17'], length=['flowers17', 'ants_bees', 'emoji'], tuning=['flowers17']))
SMOKE = dict(size=32, splits=1, shots=(1, 3), tuning_seeds=2, steps=2, targets={p: ['digits'] for p in PARTS})

# --- features ---------------------------------------------------------------------------------------------------------
@lru_cache(None)
def pictures(name, size, split):
    if name in PHOTOS: return target(photo_assets()/'data'/name, size=size, seed=split)
    return target(name, size=size)

@lru_cache(None)
def pool(name, size):
    "Features of all pictures of a target, the test among them, and the place of each picture, by its pixels"
    t = pictures(name, size, 0)
    x, y = (torch.cat([getattr(p, o) for p in (t.train, t.valid, t._sealed)]) for o in 'xy')
    f = extract(arch(t.backbone), Part('all', x, y, t.classes), device='cpu', cache=False, progress=False)
    return f.x, {p.numpy().tobytes(): i for i,p in enumerate(x)}

def unit(x): # (n,d)
    "Rows of length sqrt(d), so that a feature has a mean square of 1"
    return normalize(x)*x.shape[1]**.5

class Pooled(Heads):
    "The library's heads, on rows of a pool"
    def __init__(self, t, x, places):
        self.task, self.views, self.x, self.places = SimpleNamespace(target=t), 1, x, places
    def features(self, part, views=1):
        at = [self.places[p.numpy().tobytes()] for p in part.x]
        return SimpleNamespace(x=self.x[at], y=part.y.numpy(), views=1, classes=part.classes)

# --- heads on a frozen body -------------------------------------------------------------------------------------------
def choosers(k, spec): # As `Study` has them
    "Tuning seeds, and validation pictures a class (None: all)"
    return ([TUNE_SEED], None) if k == 'all' else ([TUNE_SEED + i for i in range(3)], spec['V'])

def decay(heads, k, spec):
    "The weight decay of a cell, as `compare` chooses it"
    if k != 'all' and k <= 2: return TABLE_WD
    return _decay(heads, k, TABLE_WD, *choosers(k, spec)).rate

def converged(heads, k, spec, ids):
    "The chosen weight decay, and which test pictures the heads of `fit_probes` get right: (seeds, n)"
    wd, test = decay(heads, k, spec), heads.features(heads.task.target._sealed)
    return wd, fit_probes(heads.train, ids, (wd,)).predict(test)[:,0] == test.y

def scikit(heads, k, spec, ids):
    "The same of LogisticRegression, with its C"
    t = heads.task.target
    train, valid, test = (heads.features(p) for p in (t.train, t.valid, t._sealed))
    def fit(o, C): return LogisticRegression(C=C, max_iter=1000).fit(train.x[o], train.y[o])
    seeds, V = choosers(k, spec)
    def loss(C):
        each = []
        for s in seeds:
            at = np.arange(len(valid.y)) if V is None else kshot(valid.y, V, s, t.classes, 'validation')
            p = fit(heads._ids(k, s), C).predict_proba(valid.x[at])
            each.append(-np.log(p[np.arange(len(at)), valid.y[at]]).mean())
        return np.mean(each)
    C = min(CS, key=loss)
    return C, np.stack([fit(o, C).predict(test.x) == test.y for o in ids])

def frozen(spec):
    "One cell: a head, a size, a split, all seeds"
    t, (x, places) = pictures(spec['target'], spec['size'], spec['split']), pool(spec['target'], spec['size'])
    x = dict(plain=lambda: x, unit=lambda: unit(x), **{'scikit-learn': lambda: normalize(x)})[spec['head']]()
    heads, k = Pooled(t, x, places), spec['shots']
    ids, t0 = [heads._ids(k, s) for s in range(spec['seeds'])], time.process_time()
    with quiet(): chosen, right = (scikit if spec['head'] == 'scikit-learn' else converged)(heads, k, spec, ids)
    return dict(chosen=float(chosen), right=right, seconds=time.process_time() - t0)

# --- fine-tuning ------------------------------------------------------------------------------------------------------
class Unit(nn.Module):
    "`unit` as a layer"
    def forward(self, x): return nn.functional.normalize(x)*x.shape[1]**.5

def tuned(dls, backbone, steps, lr, seed, head):
    "`fine-tuning`, with a layer more between pooling and the linear layer"
    with seeded(seed, dls.device):
        learn = _learner(dls, backbone, seed, progress=False)
        if head == 'unit': learn.model[1] = nn.Sequential(*learn.model[1][:-1], Unit(), learn.model[1][-1])
        learn.unfreeze()
        with _as_asked(learn): fit_steps(learn, steps, slice(lr/25, lr))
    return learn

def tuning(spec):
    t = pictures(spec['target'], spec['size'], 0).unopened()
    few, t0 = None if spec['shots'] == 'all' else spec['shots'], time.process_time()
    dls = t.dls(shots=few, seed=spec['seed'], bs=spec['bs'], augment=False, device='cpu')
    learn = tuned(dls, t.backbone, spec['steps'], spec['rate'], spec['seed'], spec['head'])
    s = time.process_time() - t0
    return dict(right=t.score(learn).correct, seconds=s)

def run(spec): return tuning(spec) if spec['kind'] == 'head tuning' else frozen(spec)

# --- what is run ------------------------------------------------------------------------------------------------------
class Runs:
    "The specs of all cells, and their results in the store"
    def __init__(self, records, k, args):
        self.records, self.k, self.seeds, self.workers = records, k, args.seeds, args.workers

    def about(self, name, split):
        t = pictures(name, self.k['size'], split)
        return dict(target=name, size=self.k['size'], split=split, pixel_hash=t.pixel_hash, backbone=t.backbone,
                    weights=arch(t.backbone).weights_id)

    def splits(self, name): return range(self.k['splits'] if name in PHOTOS else 1)

    def heads(self, name, head, k):
        "Specs of a cell, one for each split"
        n = 1 if k == 'all' else self.seeds
        one = dict(kind='head frozen', head=head, shots=k, seeds=n, V=5)
        return [dict(self.about(name, s), **one) for s in self.splits(name)]

    def tuning(self, name, head, bs=32):
        t, k = pictures(name, self.k['size'], 0), self.k['shots'][-1]
        steps = self.k['steps'] or steps_for(t, len(t.train), bs)
        return [dict(self.about(name, 0), kind='head tuning', head=head, shots=k, seed=s, steps=steps, rate=RATE, bs=bs)
                for s in range(self.k['tuning_seeds'])]

    def get(self, specs): return sweep(specs, self.records, run, workers=self.workers)

def matrix(got):
    "Correctness of a cell: of several splits a row each, the mean over its seeds; of one split a row for each seed"
    right = [np.atleast_2d(r['right']) for r in got]
    return np.stack([r.mean(0) for r in right]) if len(right) > 1 else right[0].astype(float)

def cell(name, k, head, got):
    "A cell's line"
    i = mean_ci(m := matrix(got))
    return dict(target=name, shots=k, head=head, mean=i.mean, low=i.low, high=i.high, n_test=m.shape[1], rows=len(m),
                chosen=[r['chosen'] for r in got if 'chosen' in r], seconds=sum(r['seconds'] for r in got))

def difference(what, a, b, least=None):
    "A row: a less b in points, held against the least it may be"
    a, b = matrix(a), matrix(b)
    i, aim = paired_ci(a, b), '' if least is None else f'>= {least:g}'
    return row(what, aim, *(100*o for o in (i.mean, i.low, i.high)), None if least is None else 100*i.mean >= least,
               f'{len(a)} rows of {a.shape[1]} pictures')

def labels(k): return 'all labels' if k == 'all' else f"{k} label{'s'*(k > 1)}"

def against(runs, names, heads, words, least):
    "Two heads at all sizes on some targets"
    cells, rows = [], []
    for name in names:
        for k in runs.k['shots']:
            got = [runs.get(runs.heads(name, h, k)) for h in heads]
            cells += [cell(name, k, h, o) for h,o in zip(heads, got)]
            rows.append(difference(f'{name}, {labels(k)}: {words}, points', *got, least(k)))
            show(rows[-1:])
    return rows, cells

def part_bound(runs, names):
    what = 'feature-extraction less scikit-learn'
    return against(runs, names, ('plain', 'scikit-learn'), what, lambda k: -2 if k == 1 else -1)

def part_length(runs, names):
    what = 'feature-extraction on unit length less plain'
    return against(runs, names, ('unit', 'plain'), what, lambda k: None)

def part_tuning(runs, names):
    rows, cells, k, heads = [], [], runs.k['shots'][-1], ('unit', 'plain')
    for name in names:
        a, b = (runs.get(runs.tuning(name, h)) for h in heads) # A result a seed, each of one row
        cells += [cell(name, k, f'fine-tuning, {h}', o) for h,o in zip(heads, (a, b))]
        rows.append(difference(f'{name}, {labels(k)}: fine-tuning on unit length less plain, points', a, b, -1))
    return rows, cells

def there(names):
    "Without the photographs that are not here"
    gone = [n for n in names if n in PHOTOS and not photo_assets()]
    for n in gone: print(f'{n}: left out, its photographs are not here (TLCOURSE_ASSETS)')
    return [n for n in names if n not in gone]

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--smoke', action='store_true', help='tiny sizes, no JSON unless --out: shows that the script runs')
    p.add_argument('--parts', default=','.join(PARTS), help='default: %(default)s')
    p.add_argument('--seeds', type=int, default=20, help='draws of the labels (default: %(default)s)')
    p.add_argument('--workers', type=int, help='processes (default: one a core)')
    p.add_argument('--out', type=Path, metavar='FILE', help='the JSON file (default: beside the script)')
    return p.parse_args()

def main():
    args = arguments()
    k, parts = SMOKE if args.smoke else FULL, args.parts.split(',')
    for o in parts:
        if o not in PARTS: raise BadInput(f"part {o!r}: give some of {', '.join(PARTS)}")
    if args.smoke: args.seeds = 2
    rows, cells = [], []
    with tempfile.TemporaryDirectory() as d:
        records = Records(Path(d if args.smoke else 'tlcourse-out/head')/'records.db')
        for p in parts:
            r, c = globals()[f'part_{p}'](Runs(records, k, args), there(k['targets'][p]))
            rows, cells = rows + r, cells + c
        records.close()
    cells = [c for i,c in enumerate(cells) if c not in cells[:i]] # The plain head stands in two parts
    lines = [(c['target'], c['shots'], c['head'], *(f'{100*c[o]:.1f}' for o in ('mean', 'low', 'high')),
              ' '.join(f'{o:g}' for o in c['chosen'])) for c in cells]
    print(table(lines, ('target', 'labels', 'head', 'accuracy, %', 'low', 'high', 'chosen')))
    show(rows)
    if args.smoke and not args.out: return print('smoke run: the figures mean nothing; nothing written')
    print(f'written: {save(args.out or "head", rows, smoke=args.smoke, seeds=args.seeds, cells=cells)}')

if __name__ == '__main__': main()
