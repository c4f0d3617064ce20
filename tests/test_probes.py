"Probes: scikit-learn's objective on every subset, heads that a Learner can hold, and what is refused."
import warnings
from types import SimpleNamespace
import numpy as np, pytest, torch
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from tlcourse.base import BadInput
from tlcourse.data import kshot, target, weights_hash
from tlcourse.features import extract
from tlcourse.probes import NearestNeighbours, fit_probes
from tlcourse.sweep import one_thread

def made(n, d, c, views=1, spread=1., seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    mid = rng.normal(size=(c, d))*spread
    x = np.concatenate([mid[y] + rng.normal(size=(n, d))*np.linspace(.1, 3, d) for _ in range(views)])
    return SimpleNamespace(x=x.astype(np.float32), y=y, views=views, classes=[f'c{i}' for i in range(c)])

def units(x, how):
    if how is None: return 0, 1
    sd = x.std(0) if how == 'each' else x.var(0).mean()**.5
    return x.mean(0), np.where(sd > 1e-6*(1 + (np.abs(x.mean(0)) if how == 'each' else 0)), sd, 1)

def objective(z, y, w, b, wd):
    "Objective and gradient norm of a head in the units of the fit, in plain numpy"
    f = z @ w.T + b
    f = f - f.max(1, keepdims=True)
    p = np.exp(f)/np.exp(f).sum(1, keepdims=True)
    g = p.copy()
    g[np.arange(len(y)), y] -= 1
    grad = np.append((g.T @ z/len(y) + wd*w).ravel(), g.mean(0))
    return (np.log(np.exp(f).sum(1)) - f[np.arange(len(y)), y]).mean() + wd/2*(w**2).sum(), np.linalg.norm(grad)

def agree(feats, subsets, wds, how):
    with one_thread(): ps = fit_probes(feats, subsets, wds, standardize=how)
    c, n = len(feats.classes), len(feats.y)
    assert ps.converged.all() and ps.grad_norm.max() <= 1e-5
    for i,rows in enumerate(subsets):
        rows = np.concatenate([rows + v*n for v in range(feats.views)])
        x, y = np.asarray(feats.x)[rows].astype(np.float64), feats.y[rows % n]
        mu, sd = units(x, how)
        z = (x - mu)/sd
        for j,wd in enumerate(wds):
            with one_thread():
                ref = LogisticRegression(C=(2 if c == 2 else 1)/(len(z)*wd), tol=1e-8, max_iter=20_000).fit(z, y)
            w, b = ref.coef_, ref.intercept_
            if c == 2: w, b = np.concatenate([-w, w])/2, np.concatenate([-b, b])/2
            theirs, _ = objective(z, y, w, b, wd)
            head = ps.weight[i,j].numpy(), ps.bias[i,j].numpy()
            ours, grad = objective(z, y, head[0]*sd, head[1] + head[0] @ np.broadcast_to(mu, z.shape[1:]), wd)
            assert abs(ours/theirs - 1) <= 1e-6, (i, wd, ours, theirs)
            assert abs(ours/ps.objective[i,j] - 1) <= 1e-9 and grad <= 1.01e-5, (
                'what is reported is not what the head has')

@pytest.mark.parametrize('how', ['all', 'each', None])
def test_agrees_with_sklearn_on_stored_features(how):
    t = target('digits')
    f = extract('glyphnet', t.train)
    agree(f, [kshot(f.y, k, s) for k in (1, 5, 20) for s in range(2)], (1e-3, 1e-2, 1e-1, 1), how)

@pytest.mark.parametrize('n,d,c,views', [(120, 200, 5, 1), (200, 12, 3, 1), (90, 30, 2, 1), (60, 20, 4, 3)])
def test_agrees_with_sklearn_on_drawn_points(n, d, c, views):
    f = made(n, d, c, views, .5)
    agree(f, [np.arange(n), np.arange(n//2), np.arange(n//2, n), np.arange(0, n, 1)[: n//3]], (1e-4, 1e-2, 1), 'each')

def test_subsets_do_not_meet():
    "A head depends on its subset alone, whatever stands beside it; the same call twice is the same to the bit"
    f = made(200, 30, 4, spread=.4)
    subs = [np.arange(40), np.arange(40, 80), np.arange(60)]
    both, again = fit_probes(f, subs, (1e-3, 1)), fit_probes(f, subs, (1e-3, 1))
    assert torch.equal(both.weight, again.weight)
    for i,s in enumerate(subs):
        torch.testing.assert_close(fit_probes(f, [s], (1,)).weight[0,0], both.weight[i,1], rtol=1e-5, atol=1e-6)

def test_scale_of_features_does_not_matter():
    f, subs = made(100, 30, 4), [np.arange(60)]
    g = SimpleNamespace(**{**vars(f), 'x': f.x*64})
    a, b = fit_probes(f, subs), fit_probes(g, subs)
    np.testing.assert_allclose(a.objective, b.objective, rtol=1e-6)
    torch.testing.assert_close(a.weight, b.weight*64, rtol=1e-4, atol=1e-6)

def test_heads_predict_as_probes():
    f = made(150, 20, 3, views=2, spread=.5)
    ps = fit_probes(f, [np.arange(90), np.arange(30, 150)], (1e-2, 1))
    x = torch.from_numpy(f.x)
    for i,j in np.ndindex(ps.shape):
        p = ps.head(i, j)(x).softmax(1).view(2, 150, 3).mean(0)
        np.testing.assert_allclose(p.detach().numpy(), ps.probs(f)[i,j], atol=1e-5)
    np.testing.assert_array_equal(ps.accuracy(f), (ps.predict(f) == f.y).mean(2))

@pytest.mark.parametrize('n,views', [(150, 1), (90, 3), (4200, 1), (2100, 2)])
def test_losses(n, views):
    "By hand from the probabilities; of views their mean counts; more rows than one part of 4,096 too"
    f = made(n, 20, 3, views, .5)
    ps = fit_probes(f, [np.arange(60), np.arange(30, 90)], (1e-2, 1, 3))
    got, p = ps.losses(f), ps.probs(f).numpy()
    assert got.shape == (2, 3, n) and got.dtype == np.float64
    np.testing.assert_allclose(got, -np.log(p[:,:,np.arange(n),f.y]), rtol=1e-9, atol=1e-12)

def test_losses_where_a_probability_is_zero():
    "Far on the wrong side: a finite loss, though the probability is 0 in float64"
    f = made(60, 4, 3, spread=9)
    ps = fit_probes(f, [np.arange(60)], (1e-4,))
    f.x = f.x*np.float32(1e4)
    f.y = (f.y + 1) % 3
    assert (ps.probs(f)[0,0,np.arange(60),f.y] == 0).any() and np.isfinite(ps.losses(f)).all()

# k nearest neighbours

@pytest.mark.parametrize('k', [1, 3, 5, 8])
def test_neighbours_against_sklearn(k):
    "On stored features; wherever one class has most votes"
    t = target('digits')
    f, v = extract('glyphnet', t.train), extract('glyphnet', t.valid)
    ids = kshot(f.y, 5, 0)
    ref = KNeighborsClassifier(k, metric='cosine').fit(f.x[ids], f.y[ids]).predict_proba(v.x)
    out = NearestNeighbours(f.x[ids], f.y[ids], f.classes, k)(torch.from_numpy(np.array(v.x)))
    top = np.sort(ref)
    clear = top[:,-1] > top[:,-2]
    assert out.dtype == torch.float64 and clear.mean() > .7
    np.testing.assert_array_equal(out.argmax(1).numpy()[clear], ref.argmax(1)[clear])
    np.testing.assert_allclose(out.softmax(1).numpy(), ref, atol=1e-3)

def test_neighbours_settle_ties_by_their_cosines():
    "Among the classes with most votes the one with the larger sum; a vote is never outweighed"
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(40, 6)), rng.integers(0, 4, 40), rng.normal(size=(300, 6))
    unit = lambda o: o/np.linalg.norm(o, axis=1, keepdims=True)
    ties = 0
    for k in 2, 4, 6, 40:
        got = NearestNeighbours(x, y, 'abcd', k)(torch.from_numpy(z)).argmax(1)
        for cos,g in zip(unit(z) @ unit(x).T, got):
            near = np.argsort(-cos)[:k]
            sums = [(int((y[near] == c).sum()), cos[near][y[near] == c].sum()) for c in range(4)]
            ties += sorted(v for v,_ in sums)[-2:] == [max(sums)[0]]*2
            assert sums[g] == max(sums)
    assert ties > 100

def test_neighbours_are_a_layer():
    "Everything is in the state: another k, or another label, is another head"
    x = np.eye(3)
    a = [NearestNeighbours(x, y, 'abc', k) for y,k in (([0, 1, 2], 1), ([0, 1, 2], 2), ([0, 1, 1], 1), ([0, 1, 2], 1))]
    h = [weights_hash(o) for o in a]
    assert len(set(h)) == 3 and h[0] == h[3]
    for k in 0, 4, 1.5, True:
        with pytest.raises(BadInput, match='from 1 to 3'): NearestNeighbours(x, [0, 1, 2], 'abc', k)
    with pytest.raises(BadInput, match='not finite'): NearestNeighbours(x*np.nan, [0, 1, 2], 'abc', 1)
    with pytest.raises(BadInput, match='the same layer'): a[0](torch.zeros(2, 4))

def test_choose():
    f = made(60, 10, 3, spread=9)
    ps = fit_probes(f, [np.arange(30)], (1e-2, 1e-1, 1e-3))
    assert (ps.accuracy(f) == 1).all() and ps.choose(f).tolist() == [1], 'of equals the largest decay'

def separable(x, y, c):
    "By linear programming: is there a head without an error, even if only some pairs are told apart?"
    X = np.c_[x, np.ones(len(x))]
    A = np.zeros((len(x)*(c-1), c, X.shape[1]))
    for r,(i,k) in enumerate((i, k) for i in range(len(x)) for k in range(c) if k != y[i]):
        A[r,y[i]] -= X[i]
        A[r,k] += X[i]
    A = A.reshape(len(A), -1)
    return linprog(A.sum(0), A_ub=A, b_ub=np.zeros(len(A)), bounds=(-1, 1)).fun < -1e-6

def test_no_decay():
    "Without weight decay: refused exactly where no finite minimum exists"
    seen = set()
    for seed in range(24):
        f = made(30, 2, 3, spread=.3 + .1*(seed % 12), seed=seed)
        sep = separable(f.x.astype(np.float64), f.y, 3)
        seen.add(bool(sep))
        if sep:
            with pytest.raises(BadInput, match='give wds > 0'): fit_probes(f, [np.arange(30)], (0,))
        else: assert fit_probes(f, [np.arange(30)], (0,)).converged.all()
    assert seen == {True, False}

@pytest.mark.parametrize('change,says', [
    (dict(subsets=[]), 'no subsets'), (dict(subsets=[[]]), 'is empty'), (dict(subsets=[[0, 99]]), 'names picture 99'),
    (dict(subsets=[[-1, 0, 1, 2]]), 'names picture -1'), (dict(subsets=[[0, 3]]), 'one class alone'),
    (dict(subsets=[[0, 1, 3]]), "no picture of class 'c2'"), (dict(subsets=[[.5, 1]]), 'no list of places'),
    (dict(wds=()), 'weight decays'), (dict(wds=(-1,)), 'weight decays'), (dict(wds=(np.nan,)), 'weight decays'),
    (dict(wds='much'), 'weight decays'),
    (dict(standardize='test'), 'standardize')])
def test_refused(change, says):
    with pytest.raises(BadInput, match=says) as e:
        fit_probes(**(dict(features=made(30, 4, 3), subsets=[np.arange(30)]) | change))
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    f = made(30, 4, 3)
    ps = fit_probes(f, [np.arange(30)])
    f.x[5,2] = bad
    with pytest.raises(BadInput, match='not finite'): fit_probes(f, [np.arange(30)])
    with pytest.raises(BadInput, match='not finite'): ps.predict(f)
    fit_probes(f, [np.arange(6, 30)])

def test_other_features_are_refused():
    ps = fit_probes(made(30, 4, 3), [np.arange(30)])
    with pytest.raises(BadInput, match='5 columns'): ps.predict(made(30, 5, 3))

def test_constant_and_repeated_features():
    f = made(60, 6, 3, spread=.3)
    f.x[:,2], f.x[:,3] = 7, f.x[:,4]
    for how in 'all', 'each', None: assert fit_probes(f, [np.arange(60)], (1e-3,), standardize=how).converged.all()

def test_unfinished_is_said():
    f = made(60, 6, 3, spread=.3)
    with pytest.warns(UserWarning, match='did not converge'): ps = fit_probes(f, [np.arange(60)], (1e-4,), max_iter=1)
    assert not ps.converged.any() and ps.grad_norm.min() > 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit_probes(f, [np.arange(60)], (1e-4,))

def test_many_subsets_of_one_size_go_in_parts():
    "More of them than are fitted at a time: the same heads"
    f = made(900, 40, 3, spread=.3)
    subs = [np.arange(i, i + 400) for i in range(0, 500, 50)]
    ps = fit_probes(f, subs, (1e-3, 1e-2))
    assert ps.converged.all() and ps.shape == (10, 2)
    for i in 0, 4, 9:
        np.testing.assert_allclose(ps.objective[i], fit_probes(f, [subs[i]], (1e-3, 1e-2)).objective[0], rtol=1e-6)

@pytest.mark.parametrize('wds', [(1e-8, 1e-2), (1e-3, 10)])
@pytest.mark.parametrize('scale', [1e-4, 1, 1e4])
def test_float32_directions_end_in_float64(wds, scale):
    "One picture a class, hardly any decay, features of any size: as accurate as ever"
    f = made(111, 200, 37, spread=.3)
    f.x = f.x*np.float32(scale)
    ps = fit_probes(f, [np.arange(37), np.arange(111)], wds)
    assert ps.converged.all() and ps.grad_norm.max() <= 1e-5
    for i,rows in enumerate(([*range(37)], [*range(111)])):
        x = f.x[rows].astype(np.float64)
        mu, sd = units(x, 'all')
        for j,wd in enumerate(wds):
            w, b = ps.weight[i,j].numpy()*sd, ps.bias[i,j].numpy() + ps.weight[i,j].numpy() @ mu
            obj, grad = objective((x - mu)/sd, f.y[rows], w, b, wd)
            assert grad <= 1.01e-5 and grad**2 <= 4e-7*wd*obj and abs(obj/ps.objective[i,j] - 1) <= 1e-7

def test_no_step_makes_the_objective_larger():
    "More steps, a lower objective: also where float32 hands over to float64"
    f = made(120, 60, 10, spread=.2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        objs = np.array([fit_probes(f, [np.arange(120)], (1e-4, 1e-2), max_iter=k).objective[0] for k in range(1, 12)])
    assert (np.diff(objs, axis=0) <= 1e-6*objs[:-1]).all()
    assert fit_probes(f, [np.arange(120)], (1e-4, 1e-2)).n_iter.max() < 15
