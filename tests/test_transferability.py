"Scores of transferability against derivations that share no step with them, and at their limits."
import numpy as np, pytest
from scipy.linalg import sqrtm
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from tlcourse.base import BadInput
from tlcourse.transferability import cka, feature_distance, h_score, knn_accuracy, leep, logme, nce

def data(seed, n=40, d=5, c=3, spread=1., shift=0.):
    "Features with some signal, and labels that have every class"
    r = np.random.default_rng(seed)
    y = r.permutation(np.arange(n) % c)
    f = r.normal(size=(n, d))*np.geomspace(1, spread, d) + shift
    f[:,0] += y
    return f, y

def probs(seed, n=40, s=6):
    r = np.random.default_rng(seed)
    return r.dirichlet(np.full(s, .4), n)

SHAPES = [dict(), dict(d=1), dict(n=30, d=12, c=5), dict(n=25, d=8, c=2, spread=1e-3), dict(n=12, d=30, c=4),
          dict(n=20, d=20, c=2, shift=3.), dict(n=200, d=3, c=10)]
every = pytest.mark.parametrize('how', SHAPES, ids=str)

# --- LogME: the evidence itself, written as the density of the labels, and climbed from many starts

def evidence(f, t, a, b):
    "log N(t; 0, F F'/alpha + I/beta)"
    return multivariate_normal(np.zeros(len(t)), f @ f.T/np.exp(a) + np.eye(len(t))/np.exp(b)).logpdf(t)

def highest(f, t):
    found = []
    for start in [(a, b) for a in (-3, 1, 5) for b in (-1, 2, 5)]:
        def down(o): return -evidence(f, t, *np.clip(o, -30, 22))
        options = dict(xatol=1e-9, fatol=1e-11, maxiter=2000)
        found.append(minimize(down, start, method='Nelder-Mead', options=options).fun)
    return -min(found)

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('how', [o for o in SHAPES if o.get('n', 40) <= 40 and o.get('d', 5) < o.get('n', 40)], ids=str)
def test_logme_is_the_highest_evidence(how, seed):
    f, y = data(seed, **how)
    want = np.mean([highest(f, (y == k).astype(float))/len(y) for k in np.unique(y)])
    assert abs(logme(f, y) - want) < 1e-6

@pytest.mark.parametrize('how', [dict(n=12, d=30, c=4), dict(n=12, d=12, c=3)], ids=str)
def test_logme_of_more_features_than_samples(how):
    "Never below the density anywhere, and reached at a point or at its limit without noise"
    f, y = data(0, **how)
    best = []
    for k in np.unique(y):
        t = (y == k).astype(float)
        at = [evidence(f, t, a, b) for a in np.linspace(-8, 12, 60) for b in np.linspace(-3, 12, 46)]
        kernel = f @ f.T # without noise the best prior precision is known
        a = np.log(len(t)/(t @ np.linalg.solve(kernel, t)))
        at.append(multivariate_normal(np.zeros(len(t)), kernel/np.exp(a)).logpdf(t))
        best.append(max(*at, highest(f, t))/len(t))
    assert abs(logme(f, y) - np.mean(best)) < 1e-6

@pytest.mark.parametrize('seed', range(3))
def test_logme_is_the_papers_fixed_point(seed):
    "The iteration of the paper (its algorithm 1) ends where the evidence is highest"
    f, y = data(seed, n=60, d=6, c=3)
    f[:,:3] += np.eye(3)[y] # where a class has no signal the iteration runs off to no weights at all
    n, d = f.shape
    want = []
    for k in range(3):
        t, a, b = (y == k).astype(float), 1., 1.
        for _ in range(5000):
            m = b*np.linalg.solve(a*np.eye(d) + b*f.T @ f, f.T @ t)
            sig = np.linalg.eigvalsh(b*f.T @ f)
            gamma = (sig/(a + sig)).sum()
            a, b = gamma/(m @ m), (n - gamma)/((t - f @ m)**2).sum()
        A = a*np.eye(d) + b*f.T @ f
        m = b*np.linalg.solve(A, f.T @ t)
        want.append((n*np.log(b) + d*np.log(a) - n*np.log(2*np.pi) - b*((t - f @ m)**2).sum() - a*m @ m
                     - np.linalg.slogdet(A)[1])/2/n)
    assert abs(logme(f, y) - np.mean(want)) < 1e-6

def test_logme_without_signal_is_known():
    y = np.array([0, 0, 0, 1])
    want = np.mean([-(np.log(2*np.pi*q) + 1)/2 for q in (3/4, 1/4)]) # all is noise with the labels' mean square
    assert abs(logme(np.zeros((4, 2)), y) - want) < 1e-12
    assert logme(np.eye(2)[[0, 1]*10], np.array([0, 1]*10)) == np.inf # the features are the labels

@every
def test_what_changes_nothing(how):
    "Another scale, turned axes, another order"
    f, y = data(1, **how)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(f.shape[1],)*2))[0]
    order = np.random.default_rng(1).permutation(len(y))
    for score in logme, h_score, lambda f, y: h_score(f, y, False), knn_accuracy:
        for g in 1e-9*f, 1e150*f, f @ q: assert abs(score(g, y) - score(f, y)) < 1e-6
        if score is knn_accuracy and f.shape[1] == 1: continue # all cosines are 1 or -1
        assert abs(score(f[order], y[order]) - score(f, y)) < 1e-8

# --- H-score: from its matrices, inverted

def parts(f, y):
    means = np.stack([f[y == k].mean(0) for k in y])
    return np.cov(f.T, bias=True).reshape(f.shape[1], -1), np.cov(means.T, bias=True).reshape(f.shape[1], -1)

@every
def test_h_score_of_bao(how):
    f, y = data(2, **how)
    cov, between = parts(f, y)
    assert abs(h_score(f, y, shrink=False) - np.trace(np.linalg.pinv(cov, rcond=1e-12) @ between)) < 1e-6

@every
def test_h_score_of_ibrahim(how):
    f, y = data(3, **how)
    shrunk, a = ledoit_wolf(f)
    want = np.trace(np.linalg.inv(shrunk) @ ((1 - a)*parts(f, y)[1]))
    assert abs(h_score(f, y) - want) < 1e-6

def test_h_score_at_its_ends():
    y = np.arange(30) % 3
    assert abs(h_score(np.eye(3)[y], y, False) - 2) < 1e-9 # the features are the classes
    f, _ = data(0, n=30, d=60)
    assert abs(h_score(f, y, False) - 2) < 1e-9 # more features than samples: any labels are fitted
    assert h_score(f, y) < 1.9
    assert h_score(np.ones((30, 4)), y) == h_score(np.ones((30, 4)), y, False) == 0

# --- LEEP and NCE: loops over the joint, and information by another library

def leep_by_loops(p, y):
    n, s = p.shape
    joint = {(k, z): sum(p[i,z] for i in range(n) if y[i] == k)/n for k in set(y) for z in range(s)}
    total = 0
    for i in range(n):
        total += np.log(sum(joint[y[i],z]/sum(joint[k,z] for k in set(y))*p[i,z] for z in range(s) if p[i,z] > 0))
    return total/n

@pytest.mark.parametrize('seed,n,s,c', [(0, 40, 6, 3), (1, 30, 2, 5), (2, 8, 50, 2), (3, 60, 1, 4)])
def test_leep(seed, n, s, c):
    p, y = probs(seed, n, s), np.arange(n) % c
    assert abs(leep(p, y) - leep_by_loops(p, y)) < 1e-9
    p[:,0] = 0 # a source class that nothing has
    if s > 1: assert abs(leep(p/p.sum(1, keepdims=True), y) - leep_by_loops(p/p.sum(1, keepdims=True), y)) < 1e-9

@pytest.mark.parametrize('seed', range(3))
def test_nce(seed):
    r = np.random.default_rng(seed)
    y, z = r.permutation(np.arange(60) % 4), r.integers(0, 9, 60)
    entropy = -sum((m := (y == k).mean())*np.log(m) for k in range(4))
    assert abs(nce(z, y) - (mutual_info_score(z, y) - entropy)) < 1e-9
    assert abs(nce(z, y) - leep(np.eye(9)[z], y)) < 1e-9 # LEEP of one-hot answers is NCE

def test_known_answers():
    y = np.array([0, 0, 1, 1])
    assert nce([5, 5, 7, 7], y) == 0 and leep(np.eye(2)[y], y) == 0 # the source class tells the label
    assert abs(nce([3, 3, 3, 3], y) + np.log(2)) < 1e-12 and abs(leep(np.full((4, 3), 1/3), y) + np.log(2)) < 1e-12
    assert nce([0, 1, 2, 3], y) == 0 and abs(nce(y, [0, 1, 2, 3]) + np.log(2)) < 1e-12 # the order of arguments counts

# --- CKA and the distance

@pytest.mark.parametrize('d,e', [(5, 7), (1, 3), (60, 4), (50, 70)])
def test_cka_by_gram_matrices(d, e):
    r = np.random.default_rng(d)
    f, g = r.normal(size=(30, d)) + 3, r.normal(size=(30, e))
    h = np.eye(30) - 1/30
    k, l = h @ f @ f.T @ h, h @ g @ g.T @ h
    assert abs(cka(f, g) - (k*l).sum()/np.sqrt((k*k).sum()*(l*l).sum())) < 1e-9
    q = np.linalg.qr(r.normal(size=(d, d)))[0]
    assert abs(cka(f, 7*f @ q + 2) - 1) < 1e-9
    assert abs(cka(f, g) - cka(g, f)) < 1e-12

@pytest.mark.parametrize('n,m,d', [(40, 60, 5), (40, 30, 1), (200, 90, 12)])
def test_distance_by_roots(n, m, d):
    r = np.random.default_rng(d)
    f, g = r.normal(size=(n, d)), r.normal(size=(m, d)) @ r.normal(size=(d, d)) + .5
    a, b = (np.cov(o.T, bias=True).reshape(d, d) for o in (f, g))
    want = ((f.mean(0) - g.mean(0))**2).sum() + np.trace(a + b - 2*np.real(sqrtm(a @ b)))
    assert abs(feature_distance(f, g) - want) < 1e-6*max(1, want)

def test_distances_that_are_known():
    f, _ = data(0, n=10, d=30) # fewer pictures than features
    assert feature_distance(f, f) < 1e-9
    assert abs(feature_distance(f, f + 2) - 4*30) < 1e-6 # moved
    assert abs(feature_distance(f, 3*(f - f.mean(0)) + f.mean(0)) - 4*((f - f.mean(0))**2).sum()/10) < 1e-6 # blown up
    assert feature_distance(np.ones((3, 2)), np.zeros((5, 2))) == 2 # constants

# --- k-NN

@pytest.mark.parametrize('k', [1, 3])
def test_knn_leaves_each_out(k):
    f, y = data(5, n=50, d=4)
    def one(i):
        rest = np.arange(50) != i
        knn = KNeighborsClassifier(k, metric='cosine', weights=lambda d: 1 + (1 - d)/(1000*k))
        return knn.fit(f[rest], y[rest]).predict(f[i:i+1])[0] == y[i]
    assert abs(knn_accuracy(f, y, k) - np.mean([one(i) for i in range(50)])) < 1e-9

# --- what is refused

F, Y = data(0)
P = probs(0)
Z = np.arange(40) % 7

def bad(a, i, v):
    a = a.copy()
    a[i] = v
    return a

WRONG = [(s, a) for s in (logme, h_score, knn_accuracy) for a in (
            (bad(F, (3, 2), np.nan), Y), (bad(F, (0, 0), np.inf), Y), (F, Y[:-1]), (F[:,0], Y), (F, F), (F, Y*1.),
            (F, Y*0), (F, Y + 1), (F, Y*2), (F, Y - 1), (F[:0], Y[:0]), (F[:,:0], Y), ('features', Y), (Y, F),
            (F, np.full(40, 10**15)))]
WRONG += [(leep, a) for a in ((Y, P), (P.T, Y), (np.log(P), Y), (F, Y), (bad(P, (0, 0), np.nan), Y), (P, Y*0),
                              (P, Y + 1), (P, Y[:5]), (P[:,0], Y), (P/2, Y))]
WRONG += [(nce, a) for a in ((P, Y), (Z*1., Y), (Z, Y*0), (Z, Y + 1), (Z[:5], Y), (Z, P), (3, Y))]
WRONG += [(cka, a) for a in ((F, F[:5]), (F, np.ones((40, 2))), (F*0, F), (F, bad(F, (1, 1), np.nan)), (F, Y))]
WRONG += [(feature_distance, a) for a in ((F, F[:,:2]), (F, bad(F, (1, 1), np.nan)), (F, Y), (F, F[:0]))]

@pytest.mark.parametrize('score,args', WRONG, ids=[f'{s.__name__}{i}' for i,(s,_) in enumerate(WRONG)])
def test_bad_input_is_told_in_one_sentence(score, args):
    with pytest.raises(BadInput) as e: score(*args)
    assert ': ' in str(e.value) or 'no arrangement' in str(e.value)
    assert '\n' not in str(e.value)

def test_leeps_trap():
    "Swapped arguments and a turned table are told for what they are"
    p = np.full((4, 2), .5)
    with pytest.raises(BadInput, match='labels come last'): leep(np.array([0, 0, 1, 1]), p)
    q = probs(1, 3, 5) # 3 pictures, 5 source classes
    with pytest.raises(BadInput, match='give p.T'): leep(q.T, np.array([0, 1, 0, 1, 0]))
    with pytest.raises(BadInput, match='softmax'): leep(5*q, np.array([0, 1, 0]))
