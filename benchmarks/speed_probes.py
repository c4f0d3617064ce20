"""Learning curves: 120 linear heads at once (8 sizes x 5 seeds x 3 weight decays, 512 features) against scikit-learn
and fastai one by one.

    python benchmarks/speed_probes.py [--smoke] [--rounds N] [--out FILE]     # about 10 minutes a round on one core

Three sets of 2,000 rows, a fifth of them to measure accuracy on: drawn points of 10 and of 37 classes, and the
features that resnet18 with random weights gives of generated pictures of 37 classes at 128 px. Ours and
scikit-learn's arms minimise the same objective, all arms see the same rows in the same units. The reference is
scikit-learn (lbfgs, float64) at tol 1e-8; the errors of an arm are its largest distances from it over all heads:
accuracy, agreement (the smallest share of equal predictions), objective (relative), and the gradient norm; the last
column is a norm, not a distance. One thread for every arm, BLAS included. fastai's heads (ten epochs, or as many as
make 150 steps) are timed on every tenth of the 120 and extrapolated: ten times that. Their weight decay is AdamW's,
so theirs is another objective.
"""
import tempfile, warnings
from pathlib import Path
from types import SimpleNamespace
import timing
import numpy as np, torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, TfmdDL, create_head, set_seed
from sklearn.linear_model import LogisticRegression
from torch import nn
from speed_features import Rows, cache, draw_folder, features, first, floor
from tlcourse.backbones import arch
from tlcourse.data import kshot, target
from tlcourse.probes import fit_probes
from tlcourse.sweep import one_thread

WDS = 1e-4, 1e-3, 1e-2
SIZES = {10: (1, 2, 5, 10, 20, 40, 80, 150), 37: (1, 2, 3, 5, 8, 12, 20, 40)}

def drawn(c, n, d=512, apart=.12, seed=0):
    "Points like pooled features: positive, correlated, of classes that overlap"
    rng = np.random.default_rng(seed)
    y, mid = np.arange(n) % c, rng.normal(size=(c, d))
    mix = rng.normal(size=(d, d))*(np.arange(1, d+1)**-.5)[:,None]/4
    return data(np.maximum(apart*mid[y] + rng.normal(size=(n, d)) @ mix, 0).astype(np.float32), y,
                [f'{i}' for i in range(c)])

def data(x, y, classes):
    "The last fifth is for accuracy"
    k = len(y) - len(y)//5
    def some(s): return SimpleNamespace(x=np.ascontiguousarray(x[s]), y=np.asarray(y[s]), views=1, classes=classes)
    return SimpleNamespace(train=some(slice(k)), valid=some(slice(k, None)), classes=classes)

def tasks(train, sizes, seeds): return [kshot(train.y, k, s) for k in sizes for s in range(seeds)]

def units(x):
    x = x.astype(np.float64)
    return x.mean(0), x.var(0).mean()**.5

def sklearn_heads(train, subsets, tol):
    "One head after the other; -> weights (subsets, wds, c, d) and biases, in the units of the fit"
    res = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # how far each got stands in the table, the reference's own gradient norm too
        for o in subsets:
            mu, sd = units(train.x[o])
            z, y = (train.x[o] - mu)/sd, train.y[o]
            ms = [LogisticRegression(C=1/(len(o)*wd), tol=tol, max_iter=50_000).fit(z, y) for wd in WDS]
            res.append([(m.coef_, m.intercept_) for m in ms])
    return tuple(np.array([[h[i] for h in o] for o in res]) for i in (0, 1))

def fastai_heads(train, subsets, which, standard=False, gather=False):
    """A plain fastai Learner on the same features for some of the heads; -> list of (weight, bias), None for the
    standard head. Ten epochs, or as many as make 150 steps; batches collated from pairs as fastai does, or gathered
    at once"""
    res = []
    for i,j in which:
        o = subsets[i]
        mu, sd = units(train.x[o])
        set_seed(0)
        x, y, bs = torch.from_numpy((train.x[o] - mu)/sd).float(), torch.from_numpy(train.y[o]), min(64, len(o))
        dl = Rows(x, y, bs, True) if gather else TfmdDL(list(zip(x, y)), bs=bs, shuffle=True, num_workers=0)
        dls = DataLoaders(dl, Rows(x[:0], y[:0])) # nothing to validate on
        epochs = max(10, -(-150//len(dls.train)))
        c, d = len(train.classes), train.x.shape[1]
        head = create_head(d, c, pool=False) if standard else nn.Linear(d, c)
        learn = Learner(dls, head, loss_func=CrossEntropyLossFlat(), wd=WDS[j])
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-2)
        res.append(None if standard else (head.weight.detach().double().numpy(), head.bias.detach().double().numpy()))
    return res

def ours(train, subsets, tol): return fit_probes(train, subsets, WDS, tol=tol)

def in_units(ps, train, subsets):
    "The heads of `fit_probes` in the units of the fit"
    W, b = ps.weight.numpy().copy(), ps.bias.numpy().copy()
    for i,o in enumerate(subsets):
        mu, sd = units(train.x[o])
        b[i] += W[i] @ mu
        W[i] *= sd
    return W, b

def objective(z, y, w, b, wd):
    "Objective and gradient norm of one head, in numpy"
    f = z @ w.T + b
    f = f - f.max(1, keepdims=True)
    p = np.exp(f)
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean() + wd/2*(w**2).sum()
    p[np.arange(len(y)), y] -= 1
    return loss, np.sqrt(((p.T @ z/len(y) + wd*w)**2).sum() + (p.mean(0)**2).sum())

def judge(d, subsets, heads, ref, which=None):
    "The worst errors of an arm over its heads"
    res = dict(accuracy=0., agreement=1., objective=0., gradient=0.)
    for at,(i,j) in enumerate(which or np.ndindex(len(subsets), len(WDS))):
        o = subsets[i]
        mu, sd = units(d.train.x[o])
        z, zv = (d.train.x[o] - mu)/sd, (d.valid.x - mu)/sd
        w, b = heads[at] if which else (heads[0][i,j], heads[1][i,j])
        mine, theirs = ((zv @ w.T + b).argmax(1) for w,b in ((w, b), (ref[0][i,j], ref[1][i,j])))
        obj, grad = objective(z, d.train.y[o], w, b, WDS[j])
        best = objective(z, d.train.y[o], ref[0][i,j], ref[1][i,j], WDS[j])[0]
        res['accuracy'] = max(res['accuracy'], abs((mine == d.valid.y).mean() - (theirs == d.valid.y).mean()))
        res['agreement'] = min(res['agreement'], (mine == theirs).mean())
        res['objective'], res['gradient'] = max(res['objective'], abs(obj/best - 1)), max(res['gradient'], grad)
    return res

def one_set(name, d, sizes, seeds, args, facts, bare):
    "All arms on one set; `bare`: more arms, timed in the same rounds"
    subsets = tasks(d.train, sizes, seeds)
    n = len(subsets)*len(WDS)
    every = n//2 if args.smoke else max(1, n//12)
    which = [(q//len(WDS), q % len(WDS)) for q in range(every//2, n, every)]
    arms = {f'ours, tol {t:g}': (lambda t=t: ours(d.train, subsets, t)) for t in (1e-5, 1e-4)}
    arms |= {f'scikit-learn, tol {t:g}': (lambda t=t: sklearn_heads(d.train, subsets, t)) for t in (1e-4, 1e-5, 1e-6)}
    arms |= {'fastai, linear head': lambda: fastai_heads(d.train, subsets, which),
             'fastai, standard head': lambda: fastai_heads(d.train, subsets, which, True),
             'fastai, linear head, batches gathered': lambda: fastai_heads(d.train, subsets, which, gather=True)}
    out = {}
    with one_thread(): took, ref = timing.seconds(lambda: sklearn_heads(d.train, subsets, 1e-8))
    r = timing.rounds(arms | bare, args.rounds, warm=0, results=out)
    for k in r:
        if k.startswith('fastai'): r[k] = timing.times(n/len(which), r[k])
    err = {k: judge(d, subsets, in_units(out[k], d.train, subsets) if k.startswith('ours') else out[k], ref,
                    which if k.startswith('fastai') else None) for k in arms if 'standard' not in k}
    r['scikit-learn, tol 1e-08'] = [took]*args.rounds # the reference, timed once
    err['scikit-learn, tol 1e-08'] = judge(d, subsets, ref, ref)
    print(f'\n{name}: {n} heads, {len(d.train.y):,} rows; seconds (median) and the worst errors '
          'against scikit-learn at 1e-8')
    print(timing.table([(k, f'{np.median(r[k]):.2f}', *(f'{v:.3g}' for v in err.get(k, {}).values()))
                        for k in [*arms, 'scikit-learn, tol 1e-08']],
                       ('arm', 'seconds', 'accuracy error', 'agreement', 'objective', 'gradient norm')))
    facts['sets'][name] = dict(seconds=r, errors=err, sizes=sizes, heads=n)
    return r, err, out, subsets

def equal(r, err, mine):
    "The fastest of scikit-learn's arms whose worst accuracy error is no larger than that of `mine`"
    fit = [k for k in err if k.startswith('scikit') and err[k]['accuracy'] <= err[mine]['accuracy'] + 1e-9]
    return min(fit, key=lambda k: np.median(r[k]))

def rows_of(name, r, err, out, goal):
    "The rows of one set"
    mine, ps, rows = 'ours, tol 1e-05', out['ours, tol 1e-05'], []
    for m in mine, 'ours, tol 0.0001':
        k = equal(r, err, m)
        x, note = (timing.ratio(r[k], r[m]),
                   f"{k}: accuracy error {err[k]['accuracy']:.3g}, ours {err[m]['accuracy']:.3g}")
        if m == mine: rows.append(timing.at_least(f'{name}: scikit-learn / ours at equal accuracy', goal, x, note))
        else: rows.append(timing.said(f'{name}: scikit-learn / {m}, at equal accuracy', x, note))
    rows += [timing.said(f'{name}: {k} / ours', timing.ratio(r[k], r[mine])) for k in r if k.startswith('scikit')]
    said = 'extrapolated; each 10 epochs or 150 steps'
    rows.append(timing.at_least(f'{name}: fastai, linear head / ours', 10,
                                timing.ratio(r['fastai, linear head'], r[mine]), said))
    for k in 'fastai, standard head', 'fastai, linear head, batches gathered':
        rows.append(timing.said(f'{name}: {k} / ours', timing.ratio(r[k], r[mine]), said))
    def exact(what, limit, v): return timing.row(f'{name}: {what}', f'<= {limit:g}', v, v, v, v <= limit)
    rows.append(exact('objective against scikit-learn at 1e-8, relative', 1e-6, err[mine]['objective']))
    rows.append(exact('largest gradient norm that a head reports', 1e-5, ps.grad_norm.max()))
    rows.append(exact('heads that report that they did not converge', 0, (~ps.converged).sum()))
    return rows

def main():
    args = timing.arguments(__doc__, n=3)
    n, px, seeds = (222, 32, 1) if args.smoke else (2000, 128, 5)
    sizes = {10: (1, 3), 37: (1, 2)} if args.smoke else SIZES
    facts, rows, a = dict(sets={}, rows_of_each=n, px=px), [], arch('resnet18', weights='random')
    with tempfile.TemporaryDirectory() as d:
        folder = draw_folder(Path(d)/'pictures', n, classes=37, seed=1)
        with tempfile.TemporaryDirectory() as c, cache(c), one_thread():
            tr, va = features(target(folder, size=px), a)
            net = SimpleNamespace(train=tr, valid=va, classes=tr.classes)
        bare = {'bare pass': floor(folder, 'resnet18', px)[0], 'decode + extract': lambda: first(folder, a, px)}
        sets = {'points, 10 classes': drawn(10, n, 32 if args.smoke else 512, .6 if args.smoke else .12),
                'points, 37 classes': drawn(37, n, 32 if args.smoke else 512, .6 if args.smoke else .15),
                'network features, 37 classes': net}
        for name,s in sets.items():
            c = len(s.classes)
            r, err, out, subsets = one_set(name, s, sizes[c], seeds, args, facts, bare if s is net else {})
            new = rows_of(name, r, err, out, 3 if c == 37 else 1.5)
            timing.explain(new, lambda: ours(s.train, subsets, 1e-5), facts, what=f'{name}: fit_probes')
            rows += new
        whole = timing.ratio(timing.plus(r['decode + extract'], r['ours, tol 1e-05']), r['bare pass'])
        rows.append(timing.at_most('resnet18: features and 120 heads of '
                                   '37 classes / one fp32 pass', 1.25, whole, 'decode in both'))
        timing.explain(rows[-1:], lambda: ours(net.train, subsets, 1e-5), facts, what='fit_probes')
    print()
    timing.finish(args, 'speed_probes', rows, **facts)

if __name__ == '__main__': main()
