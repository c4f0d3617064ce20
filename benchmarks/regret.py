"""What the choice of rates costs in test accuracy: the regret of the rate that `tlcourse.rates` chooses, against the
best rate tried.

    python benchmarks/regret.py [--smoke] [--targets T,...] [--shots K,...] [--arms A,...] [--out FILE]
        # writes regret.json

Each cell is a target, a number of labels per class and an arm. The rule chooses on validation losses of three tuning
seeds (at `all` of one, on the whole validation part); five rates around the table's are tried in any case. Then every
rate that was tried trains three other seeds, and each of these is scored on the test part. The regret is the mean
test accuracy of the best of the rates less that of the rate chosen, with the interval of the paired difference. The
best is named with the test part in sight, so regret is never below 0 and a little too high. Nothing here chooses
anything: the rule is fixed before. Runs are kept in tlcourse-out/regret, so a run that was stopped goes on. flowers17
takes part where the photographs are (TLCOURSE_ASSETS); its rates race with a third of the steps. Weight decays are
those of `fit_probes` on unaugmented features.
"""
import argparse, math, tempfile
from functools import lru_cache
from pathlib import Path
import numpy as np, torch
from torch.nn import functional as F
from timing import row, save, show, table
from tlcourse.backbones import arch
from tlcourse.base import BadInput, photo_assets
from tlcourse.data import kshot, target
from tlcourse.features import extract
from tlcourse.heads import head_learner
from tlcourse.strategy import STRATEGIES
from tlcourse.probes import fit_probes
from tlcourse.rates import choose, grid
from tlcourse.records import Records
from tlcourse.stats import mean_ci, paired_ci
from tlcourse.sweep import sweep

TUNE_SEED, LIMIT = 1000, .005 # Reported seeds count from 0; the mean regret that is aimed at
TABLE_WD = 1e-2 # The middle of what `fit_probes` tries by default
BACKBONES = {'digits': 'glyphnet', 'letters': 'glyphnet', 'flowers17': 'tf_efficientnet_lite0'}

@lru_cache(None)
def pictures(name, size):
    return target(photo_assets()/'data'/name if name == 'flowers17' else name, size=size)

def labels(y, shots, seed): return np.arange(len(y)) if shots == 'all' else kshot(y, shots, seed)

def budget(name, shots, t, bs):
    "Steps of a cell: five passes, and not fewer than 150 on glyphs, 80 on photographs"
    n = len(labels(t.train.y, shots, 0))
    return max(80 if name == 'flowers17' else 150, 5*math.ceil(n/bs))

# --- one run --------------------------------------------------------------------------------------------------------
def trained(spec, t):
    "The Learner of a spec"
    few = None if spec['shots'] == 'all' else spec['shots']
    dls = t.dls(shots=few, seed=spec['seed'], bs=spec['bs'], augment=spec['target'] != 'flowers17', device='cpu',
                valid_shots=spec['V'])
    if spec['arm'] != 'feature-extraction':
        how = dict(steps=spec['steps'], lr=spec['rate'], seed=spec['seed'])
        return STRATEGIES[spec['arm']](dls, spec['backbone'], progress=False, **how)
    train = extract(spec['backbone'], t.train, device='cpu', progress=False)
    heads = fit_probes(train, [labels(t.train.y, spec['shots'], spec['seed'])], wds=[spec['rate']])
    return head_learner(dls, spec['backbone'], heads.head())

def run(spec):
    """Validation losses of a tuning run, picture by picture; of a report run which test pictures
    were right: none if diverged"""
    t = pictures(spec['target'], spec['size']).unopened()
    learn = trained(spec, t)
    if spec['kind'] == 'regret report':
        if not all(o.isfinite().all() for o in learn.model.parameters()): return dict(right=np.zeros(len(t.test), bool))
        s = t.score(learn)
        return dict(pred=s.pred, right=s.correct)
    with torch.no_grad(), learn.no_bar(), learn.no_logging():
        learn.model.eval()
        out = [F.cross_entropy(learn.model(x).as_subclass(torch.Tensor), y.as_subclass(torch.Tensor), reduction='none')
               for x,y in learn.dls.valid]
    return dict(losses=torch.cat(out).numpy())

# --- one cell -------------------------------------------------------------------------------------------------------
class Cells:
    "The specs of all cells, and their runs in the store"
    def __init__(self, cells, records, seeds, bs=32, V=5, least=None, size=None):
        self.records, self.seeds, self.least, self.bs, self.V, self.size = records, seeds, least, bs, V, size
        self.tables = {c: TABLE_WD if c[2] == 'feature-extraction' else STRATEGIES[c[2]].rate for c in cells}

    def spec(self, cell, rate, kind, seed, part=1):
        "What a run depends on"
        name, shots, arm = cell
        size = self.size or (128 if name == 'flowers17' else 32)
        steps = self.least or budget(name, shots, pictures(name, size), self.bs)
        return dict(kind=f'regret {kind}', target=name, pixel_hash=pictures(name, size).pixel_hash, size=size,
                    backbone=BACKBONES[name], weights=arch(BACKBONES[name]).weights_id, arm=arm, shots=shots,
                    rate=rate, seed=seed, steps=max(1, round(steps*part)), bs=self.bs,
                    V=None if shots == 'all' else self.V)

    def losses(self, todo):
        "What `choose` asks for"
        n = {c: 1 if c[1] == 'all' else self.seeds for c in self.tables}
        specs = [self.spec(c, r, 'tune', TUNE_SEED + i, p) for c,r,p in todo for i in range(n[c])]
        got = iter(sweep(specs, self.records, run))
        return [[next(got)['losses'] for _ in range(n[c])] for c,*_ in todo]

    def right(self, cell, rates):
        "rate -> (seeds, test pictures)"
        specs = [self.spec(cell, r, 'report', i) for r in rates for i in range(self.seeds)]
        got = iter(sweep(specs, self.records, run))
        return {r: np.stack([next(got)['right'] for _ in range(self.seeds)]) for r in rates}

def regret(cell, chosen, right):
    "One cell's line: chosen and best rate with their accuracies, and the regret with its interval"
    acc = {r: float(x.mean()) for r,x in right.items()}
    best = max(acc, key=lambda r: (acc[r], r == chosen.rate)) # The chosen one, where it is as good as any
    pair = paired_ci(right[best], right[chosen.rate])
    smallest = min(chosen.whole or chosen.tried, key=lambda o: o[1])[0]
    return dict(target=cell[0], shots=cell[1], arm=cell[2], chosen=chosen.rate,
                best=best, edge=chosen.edge, race=chosen.race,
                tried=chosen.tried, whole=list(chosen.whole), accuracy=[[r, a] for r,a in acc.items()],
                regret=pair.mean, low=pair.low, high=pair.high, regret_of_smallest_loss=acc[best] - acc[smallest])

def measure(cells):
    "All cells: the choices first, then every rate that was tried on other seeds and the test"
    lines = []
    for race in (False, True):
        mine = {c: t for c,t in cells.tables.items() if (c[0] == 'flowers17' and c[2] != 'feature-extraction') == race}
        for c,o in choose(cells.losses, mine, race=race).items():
            rates = sorted({*grid(mine[c], -2, 2), *(r for r,*_ in o.tried)})
            lines.append(regret(c, o, cells.right(c, rates)))
            print(said(lines[-1]), flush=True)
    return lines

def said(l):
    "A cell's line in words"
    return (f"{l['target']}, {l['shots']} labels, {l['arm']}: {l['chosen']:g} chosen of {len(l['tried'])}, best "
            f"{l['best']:g}, regret {100*l['regret']:.1f} points [{100*l['low']:.1f}, {100*l['high']:.1f}]"
            + f", edge {l['edge']}"*bool(l['edge']))

def summary(lines):
    "The mean regret over the cells, held against its aim, and that of taking the smallest loss"
    def one(name, key, aim):
        xs = [100*l[key] for l in lines]
        i = mean_ci(xs, unit='') if len(xs) > 1 else None
        low, high = (i.low, i.high) if i else (xs[0], xs[0])
        return row(name, f'<= {100*LIMIT:g}' if aim else '', np.mean(xs), low, high,
                   np.mean(xs) <= 100*LIMIT if aim else None, f'{len(xs)} cells')
    return [one('mean regret of the rule, points', 'regret', True),
            one('mean regret of the smallest loss, points', 'regret_of_smallest_loss', False)]

def names(text, known, what):
    "Words between commas, each one of `known`"
    res = text.split(',')
    for o in res:
        if o not in known: raise BadInput(f"{what} {o!r}: give some of {', '.join(known)}")
    return res

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--smoke', action='store_true',
                   help='tiny sizes, no JSON unless --out: only shows that the script runs')
    p.add_argument('--targets', default=','.join(BACKBONES), help='default: %(default)s')
    p.add_argument('--shots', default='5,20,all', help='default: %(default)s; on digits `all` is 100')
    p.add_argument('--arms', default='fine-tuning,feature-extraction', help='default: %(default)s')
    p.add_argument('--seeds', type=int, default=3, help='tuning seeds, and as many report seeds (default: %(default)s)')
    p.add_argument('--out', type=Path, metavar='FILE', help='the JSON file (default: beside the script)')
    return p.parse_args()

def main():
    args = arguments()
    targets = names(args.targets, BACKBONES, 'target')
    if 'flowers17' in targets and not photo_assets():
        print('flowers17: left out, its photographs are not here (TLCOURSE_ASSETS)')
        targets.remove('flowers17')
    shots = [k if k == 'all' else int(k) for k in args.shots.split(',')]
    if args.smoke: targets, shots, args.seeds = ['digits'], [2], 2
    arms = names(args.arms, ['fine-tuning', 'feature-extraction'], 'arm')
    cells = [(t, 100 if (t, k) == ('digits', 'all') else k, a) for t in targets for k in shots for a in arms]
    with tempfile.TemporaryDirectory() as d:
        records = Records(Path(d if args.smoke else 'tlcourse-out/regret')/'records.db')
        lines = measure(Cells(cells, records, args.seeds, least=2 if args.smoke else None))
        records.close()
    print(table([(l['target'], l['shots'], l['arm'], f"{l['chosen']:g}", f"{l['best']:g}", f"{100*l['regret']:.1f}",
                  f"{100*l['low']:.1f} - {100*l['high']:.1f}", l['edge']) for l in lines],
                ('target', 'labels', 'arm', 'chosen', 'best', 'regret, points', 'interval', 'edge')))
    rows = summary(lines)
    show(rows)
    if args.smoke and not args.out:
        return print('smoke run: sizes are tiny, so the figures mean nothing; nothing written')
    print(f'written: {save(args.out or "regret", rows, smoke=args.smoke, seeds=args.seeds, cells=lines)}')

if __name__ == '__main__': main()
