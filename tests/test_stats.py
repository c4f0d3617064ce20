"The intervals at the ceiling, with few pictures, with one run; their coverage; what settles a question."
import importlib.util, json, math
import numpy as np, pytest
from scipy.special import ndtri
from scipy.stats import t as student
from tlcourse import stats
from tlcourse.base import BadInput
from conftest import ROOT

def script(name):
    "A script of benchmarks/ as a module, under a name that hides no package"
    spec = importlib.util.spec_from_file_location(f'benchmark_{name}', ROOT/f'benchmarks/{name}.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

coverage = script('coverage')
STORED = json.loads((ROOT/'benchmarks/coverage.json').read_text(encoding='utf-8'))
rng = np.random.default_rng(0)
X, Y = rng.random((5, 200)) < .9, rng.random((5, 200)) < .85

def all_right(n, m=5): return np.ones((m, n))
def all_wrong(n, m=5): return np.zeros((m, n))

# --- the ceiling, and few pictures

@pytest.mark.parametrize('n,low', [(4, 45), (20, 80.6), (150, 96.9), (500, 99.1)])
def test_all_right_is_no_proof(n, low): # I3
    iv = stats.mean_ci(all_right(n))
    assert (iv.mean, iv.high) == (1, 1) and round(100*iv.low, 1) == low
    iv = stats.mean_ci(all_wrong(n))
    assert (iv.mean, iv.low) == (0, 0) and round(100*(1 - iv.high), 1) == low

def test_one_picture():
    for x in (all_right(1), all_wrong(1)):
        iv = stats.mean_ci(x)
        assert iv.low <= iv.mean <= iv.high and iv.high - iv.low > .5

@pytest.mark.parametrize('m', [3, 5])
def test_formula(m):
    "As the page writes it, from numpy alone"
    x = X[:m]
    d = np.concatenate([x.mean(0), [1, 1, 0, 0]])
    half = math.hypot(student.ppf(.975, m-1)*x.mean(1).std(ddof=1)/m**.5, 1.959964*d.std()/len(d)**.5)
    iv = stats.mean_ci(x)
    assert np.allclose([iv.low, iv.high, iv.half], [d.mean() - half, d.mean() + half, half], atol=1e-6)
    assert np.isclose(iv.mean, x.mean())
    d = np.concatenate([x.mean(0) - Y[:m].mean(0), [1, -1]])
    half = math.hypot(student.ppf(.975, m-1)*(x.mean(1) - Y[:m].mean(1)).std(ddof=1)/m**.5, 1.959964*d.std()/len(d)**.5)
    iv = stats.paired_ci(x, Y[:m])
    assert np.allclose([iv.low, iv.high, iv.half], [d.mean() - half, d.mean() + half, half], atol=1e-6)

@pytest.mark.parametrize('D', [1, 2, 3, 4, 5, 6, 9])
def test_few_pictures_that_differ(D):
    "D pictures all on one side are a coin that falls D times alike, however many seeds agree"
    for n in (D, D + 30):
        a, b = all_right(n, 20), all_right(n, 20)
        b[:,:D] = 0
        p, iv = stats.paired_p(a, b), stats.paired_ci(a, b)
        assert p >= 2.**(1-D)*(1 - 1e-9) and (n > D or D > 6 or p == pytest.approx(2.**(1-D)))
        assert (iv.low > 0) == (p <= .05) and iv.low <= iv.mean <= iv.high
        assert D > 5 or iv.low <= 0

def test_p_and_interval_agree():
    for i in range(200):
        r = np.random.default_rng(i)
        a, b = (r.random((int(r.integers(1, 6)) if i % 2 else 4, 30)) < q for q in (.9, .65))
        if len(a) != len(b): a = a[:1]
        p, iv = stats.paired_p(a, b), stats.paired_ci(a, b)
        assert (p <= .05) == (iv.low > 0 or iv.high < 0), (p, iv)
        iv = stats.paired_ci(b, a, alpha=.3)
        assert (p <= .3) == (iv.low > 0 or iv.high < 0), (p, iv)

def test_equal_answers_are_not_shown_to_be_equal():
    within = next(n for n in range(1, 400) if stats.paired_ci(all_right(n), all_right(n)).high <= .01)
    assert abs(within - 275) <= 2
    assert stats.paired_p(all_right(50), all_right(50)) == 1

# --- one run

def test_one_run_is_images_alone():
    iv = stats.mean_ci(X[:1])
    d = np.concatenate([X[0], [1, 1, 0, 0]])
    assert iv.seeds == 0 and iv.half == iv.images == pytest.approx(1.959964*d.std()/len(d)**.5, abs=1e-6)
    assert stats.mean_ci(X.mean(1)[:1], n=200) == iv
    with pytest.raises(BadInput, match='one seed'): stats.mean_ci([.9])

def test_one_run_against_several():
    a = X[:1]
    assert stats.paired_ci(a, Y) == stats.paired_ci(np.repeat(a, 5, 0), Y)
    assert stats.paired_p(Y, a) == stats.paired_p(Y, np.repeat(a, 5, 0)) > 0
    assert stats.n_to_settle(a, Y) == stats.n_to_settle(np.repeat(a, 5, 0), Y)
    assert stats.paired_bootstrap(a, Y) == stats.paired_bootstrap(np.repeat(a, 5, 0), Y)
    assert stats.paired_ci(a, Y[:1]).seeds == 0 < stats.paired_ci(a, Y).seeds
    with pytest.raises(BadInput, match='same seeds'): stats.paired_ci(X[:2], Y)

def test_accuracies_of_seeds():
    "With n the same pretended pictures, and the image part at its largest; without, over seeds alone"
    accs = X.mean(1)
    iv = stats.mean_ci(accs, n=200)
    assert iv.images > stats.mean_ci(X).images and np.isclose(iv.mean, X.mean()) and iv.seeds == stats.mean_ci(X).seeds
    assert stats.mean_ci(np.ones(5), n=20) == stats.mean_ci(all_right(20))
    assert stats.mean_ci(accs).images == 0
    with pytest.raises(BadInput, match='between 0 and 1'): stats.mean_ci([80., 90.], n=20)

def test_half_of_every_interval():
    for iv in (stats.wilson(18, 20), stats.paired_bootstrap(X, Y, 200), stats.mean_ci(X), stats.paired_ci(X, Y)):
        assert iv.half == pytest.approx((iv.high - iv.low)/2)

# --- how often the intervals hold the truth

SAMPLE = dict(r=[0, .8, 1], q=[.1], rho=[.8], p=[.5, .95, .99], gap=[0, .1, .45], m=[3, 5], n=[4, 20, 150])
DRAWS = 1000

def again(): return dict(mean=coverage.means(SAMPLE, DRAWS, seed=10), difference=coverage.pairs(SAMPLE, DRAWS, seed=11))

def low_cells(res):
    "Cells below 93 % by more than 3 standard errors of this many draws"
    least = DRAWS*.93 - 3*math.sqrt(DRAWS*.93*.07)
    return [(what, k) for what,o in res.items() for k,v in o.items() if (v < least).any()]

def test_coverage_of_a_sample():
    "Fixed cells with other draws: none is low, and all agree with the stored table"
    res = again()
    assert not low_cells(res)
    at = {'mean': lambda o: (o['r'], o['q'], o['p']),
          'difference': lambda o: (o['r'], o['q'], o['rho'], o['p'], o['gap'])}
    pick = np.ix_(*([STORED['grid'][k].index(o) for o in SAMPLE[k]] for k in 'mn'))
    for what,cells in res.items():
        stored = {at[what](o): np.array(o['held'])[pick]/STORED['draws'] for o in STORED[what]}
        for k,v in cells.items():
            p = (stored[k]*STORED['draws'] + v)/(STORED['draws'] + DRAWS)
            se = np.sqrt(p*(1-p)*(1/DRAWS + 1/STORED['draws']))
            assert (np.abs(v/DRAWS - stored[k]) <= 5*se + 1e-9).all(), (what, k)

def test_stored_table():
    "The whole grid, 5,000 draws a cell, nowhere below 93 %; a large effect of the seeds shows the limit"
    assert STORED['draws'] == 5000 and STORED['grid'] == coverage.GRID
    cells = [o for what in ('mean', 'difference') for o in STORED[what]]
    g = STORED['grid']
    assert len(STORED['mean']) == len(g['r'])*len(g['q'])*len(g['p'])
    held = np.array([o['held'] for o in cells if o['q'] <= .1])/5000
    assert held.min() >= .93
    assert .8 < np.min([o['held'] for o in cells if o['q'] == .3])/5000 < .9

def test_coverage_would_find_the_old_interval(monkeypatch):
    "Without the pretended pictures the same sample has cells far below"
    def parts(accs, total, squares, n, pretended):
        p = stats._parts(accs, total, squares, n, pretended)
        return p._replace(centre=p.mean, var=np.maximum(squares/n - p.mean**2, 0), images=n)
    monkeypatch.setattr(coverage, '_parts', parts)
    monkeypatch.setattr(coverage, '_pair_ends', lambda p, differ, alpha: stats._ends(p, alpha, -1, 1))
    low = low_cells(again())
    assert ('mean', (1, .1, .95)) in low and any(what == 'difference' for what,_ in low)

def test_the_grid_uses_these_functions():
    "The vectorised form counts what `mean_ci` and `paired_ci` count, draw by draw"
    g = dict(SAMPLE, m=[2, 4], n=[4, 30])
    r = np.random.default_rng(3)
    b = r.standard_normal((40, 1, 30), dtype=np.float32)
    z, w = coverage.latent(r, .8, .1, b, 4), coverage.latent(r, .8, .1, b, 4)
    x, y = coverage.Right(z, .8, g), coverage.Right(w, .5, g)
    got_m, got_d = coverage.hold_mean(x, .8, g), coverage.hold_pair(x, y, .3, g)
    a, b = z > -ndtri(.8), w > -ndtri(.5)
    holds = lambda iv, x: iv.low <= x <= iv.high
    want_m = [[sum(holds(stats.mean_ci(o[:m,:n]), .8) for o in a) for n in g['n']] for m in g['m']]
    want_d = [[sum(holds(stats.paired_ci(o[:m,:n], q[:m,:n]), .3) for o,q in zip(a, b)) for n in g['n']]
              for m in g['m']]
    assert got_m.tolist() == want_m and got_d.tolist() == want_d and np.min(want_d) < 40

# --- how many pictures

def pair(r, m, n, share, rho, p=.9, delta=.05):
    "Correctness of two arms, delta apart, whose pictures' effects have the correlation rho"
    b, c = r.standard_normal((2, 1, n))
    z = lambda b: math.sqrt(share)*b + math.sqrt(1-share)*r.standard_normal((m, n))
    return z(b) > -ndtri(p), z(rho*b + math.sqrt(1-rho**2)*c) > -ndtri(p-delta)

@pytest.mark.parametrize('m,share,rho', [(5, 1, .8), (5, .8, .8), (5, .5, .8), (20, .8, .8)])
def test_n_to_settle_has_its_power(m, share, rho):
    "Runs on 150 pictures ask for so many; on so many the difference is found about four times in five"
    r = np.random.default_rng(5)
    asked = [stats.n_to_settle(*pair(r, m, 150, share, rho), .05).images for _ in range(60)]
    n = int(np.median([math.inf if o is None else o for o in asked]))
    assert 150 < n < 600
    found = np.mean([stats.paired_ci(*pair(r, m, n, share, rho)).low > 0 for _ in range(500)])
    assert .7 <= found <= .9, (n, found)

def test_luck_with_pictures_is_no_floor():
    """Seeds that differ by their luck with single pictures alone: few pictures ask for more of them, not for seeds,
    and a study of so many finds the difference"""
    r = np.random.default_rng(7)
    asked = [stats.n_to_settle(*pair(r, 5, 150, .5, .9, delta=.03), .03).images for _ in range(100)]
    n = np.median([math.inf if o is None else o for o in asked])
    assert n < 1500
    found = np.mean([stats.paired_ci(*pair(r, 5, int(n), .5, .9, delta=.03)).low > 0 for _ in range(400)])
    assert .7 <= found <= .9, (n, found)

def test_more_seeds_not_more_pictures():
    "Seeds that differ by more than delta on everything: no number of pictures helps, and the seeds asked for do"
    a = np.arange(300) < 60*np.arange(5)[:,None] # seed by seed 0, 60, ... 240 of 300 right
    need = stats.n_to_settle(a, np.full((5, 300), .4), .05)
    left = a - a.mean(0) - a.mean(1, keepdims=True) + a.mean() # What pictures explain is no floor
    s = math.sqrt(a.mean(1).var(ddof=1) - (left**2).sum()/4/299/300)
    part = lambda m: student.ppf(.975, m-1)*s/m**.5
    assert need.images is None and part(need.seeds) < .05 <= part(need.seeds - 1)
    assert repr(need).startswith('more seeds, not more pictures: about') and str(need.seeds) in repr(need)
    few = stats.n_to_settle(X, Y, .1)
    assert few.images > 0 and repr(few) == f'about {few.images:,} test pictures'
    assert stats.n_to_settle(X[:1], Y[:1]).seeds == 1
    assert stats.n_to_settle(all_right(150), all_right(150), .02).images > 0

def test_n_to_separate():
    assert stats.n_to_separate(0, 1) == 4 and stats.n_to_separate(.94, .95) == 8155
    assert stats.n_to_separate(0, 1, alpha=.001) > 4
