"""How often the intervals of tlcourse.stats hold the truth, over a grid of situations in which the truth is known.

    python benchmarks/coverage.py [--smoke] [--draws N] [--out FILE]   # four minutes of one core; writes coverage.json

Seed j gets picture i right where ndtri(p) + sqrt(q) a_j + sqrt(1-q) (sqrt(r) b_i + sqrt(1-r) e_ij) > 0, with a, b, e
standard normal: q is the share of the seeds in the variance, r that of the pictures in what is left. The two arms of
a pair share nothing but their pictures, whose effects b have the correlation rho. Draws are nested: the cells of fewer
pictures and fewer seeds, and those of another accuracy, look at parts and thresholds of the same draws. Neighbouring
cells err together, therefore, and each cell has the full number of draws.
"""
import argparse, json, math, time
from datetime import date
from pathlib import Path
import numpy as np
from scipy.special import ndtri
from tlcourse.base import versions
from tlcourse.stats import _difference_of, _ends, _mean_of, _pair_ends, _parts

here = Path(__file__).parent
GRID = dict(r=[0, .5, .8, .9, 1], q=[0, .03, .1, .3], rho=[0, .8, .97], p=[.5, .8, .95, .99], gap=[0, .02, .1, .3, .45],
            m=[3, 5, 20], n=[4, 20, 40, 150, 500])
SMOKE = dict(r=[.8], q=[.1], rho=[.8], p=[.95], gap=[0, .1], m=[3, 5], n=[4, 20])
CHUNK = 50 # experiments at a time: stays in the processor's cache

def chunks(draws):
    "Sizes of the chunks that make up `draws`"
    return [min(CHUNK, draws - i) for i in range(0, draws, CHUNK)]

def latent(rng, r, q, b, m):
    "What decides before the threshold, (draws, m, n), for pictures' effects `b` (draws, 1, n)"
    f = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    z = f(len(b), m, b.shape[2]) if r < 1 else 0
    root = lambda o: np.float32(math.sqrt(o))
    return root(q)*f(len(b), m, 1) + root(1-q)*(root(r)*b + root(1-r)*z)

class Right:
    "Which seeds get which pictures right, and the sums that the intervals need"
    def __init__(self, z, p, g):
        x = z > -ndtri(p)
        edges = [0, *g['n'][:-1]]
        # per seed, in the first n pictures
        self.accs = np.add.reduceat(x, edges, axis=2, dtype=np.int16).cumsum(2)/g['n']
        self.images = {m: x[:,:m].sum(1, dtype=np.int16)/np.float32(m) for m in g['m']} # mean over the first m seeds

def sums(x, ns):
    "Sum and sum of squares over the first n pictures, (draws, len(ns)) each"
    edges = [0, *ns[:-1]]
    return [np.add.reduceat(o, edges, axis=1, dtype=np.float64).cumsum(1) for o in (x, x*x)]

def hold_mean(x, p, g):
    "How many of the draws' intervals of a mean hold p: (len(m), len(n))"
    res = []
    for m in g['m']:
        total, squares = sums(x.images[m], g['n'])
        for i,n in enumerate(g['n']):
            low, high = _ends(_parts(x.accs[:,:m,i], total[:,i], squares[:,i], n, _mean_of), .05, 0, 1)
            res.append(((low <= p) & (p <= high)).sum())
    return np.array(res).reshape(len(g['m']), -1)

def hold_pair(x, y, gap, g):
    "How many of the draws' intervals of a difference hold `gap`: (len(m), len(n))"
    res = []
    for m in g['m']:
        d = x.images[m] - y.images[m]
        total, squares = sums(d, g['n'])
        differ = sums(d != 0, g['n'])[0]
        for i,n in enumerate(g['n']):
            p = _parts(x.accs[:,:m,i] - y.accs[:,:m,i], total[:,i], squares[:,i], n, _difference_of)
            low, high = _pair_ends(p, differ[:,i], .05)
            res.append(((low <= gap + 1e-9) & (gap - 1e-9 <= high)).sum())
    return np.array(res).reshape(len(g['m']), -1)

def gaps(p, g): return [o for o in g['gap'] if p - o > 0]

def means(g, draws, seed=0):
    "Counts of intervals that hold the truth, [r][q][p] (m, n)"
    res = {}
    for r in g['r']:
        for q in g['q']:
            rng = np.random.default_rng([seed, int(100*r), int(100*q)])
            for k in chunks(draws):
                z = latent(rng, r, q, rng.standard_normal((k, 1, g['n'][-1]), dtype=np.float32), g['m'][-1])
                for p in g['p']: res[r,q,p] = res.get((r, q, p), 0) + hold_mean(Right(z, p, g), p, g)
    return res

def pairs(g, draws, seed=1):
    "Counts of intervals that hold the truth, [r][q][rho][p][gap] (m, n); rho only where the pictures have an effect"
    res = {}
    for r in g['r']:
        for q in g['q']:
            for rho in g['rho'] if r else [0]:
                rng = np.random.default_rng([seed, int(100*r), int(100*q), int(100*rho)])
                for k in chunks(draws):
                    b, c = rng.standard_normal((2, k, 1, g['n'][-1]), dtype=np.float32)
                    c = np.float32(rho)*b + np.float32(math.sqrt(1-rho*rho))*c
                    z, w = (latent(rng, r, q, o, g['m'][-1]) for o in (b, c))
                    for p in g['p']:
                        x = Right(z, p, g)
                        for gap in gaps(p, g):
                            key = r, q, rho, p, gap
                            res[key] = res.get(key, 0) + hold_pair(x, Right(w, p - gap, g), gap, g)
    return res

def rows(res, names): return [dict(zip(names, k)) | dict(held=v.tolist()) for k,v in res.items()]

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--smoke', action='store_true', help='a few cells and draws, no JSON unless --out')
    a.add_argument('--draws', type=int, default=5000, metavar='N', help='experiments a cell (default: %(default)s)')
    a.add_argument('--out', type=Path, metavar='FILE', help='the JSON file (default: beside the script)')
    a = a.parse_args()
    g, draws, t = (SMOKE, 100, time.process_time()) if a.smoke else (GRID, a.draws, time.process_time())
    m, d = means(g, draws), pairs(g, draws)
    for what,res in (('mean', m), ('difference', d)):
        for big in (False, True):
            cells = {k: v for k,v in res.items() if (k[1] > .1) == big}
            if not cells: continue
            worst = min(cells, key=lambda k: cells[k].min())
            few = sum((v < .93*draws).sum() for v in cells.values())
            print(f"{what}, q {'>' if big else '<='} .1: {sum(v.size for v in cells.values()):,} cells, the lowest "
                  f"{100*cells[worst].min()/draws:.1f} % at {worst}; {few} below 93 %")
    print(f'{time.process_time() - t:.0f} CPU s')
    if a.smoke and not a.out: return
    out = dict(date=str(date.today()), versions=versions(), draws=draws, grid=g,
               mean=rows(m, ['r', 'q', 'p']), difference=rows(d, ['r', 'q', 'rho', 'p', 'gap']))
    text = json.dumps(out).replace('{"r"', '\n{"r"')
    (a.out or here/'coverage.json').write_text(text + '\n', encoding='utf-8')

if __name__ == '__main__': main()
