"The choice of rates, on losses whose answer is known beforehand."
import json, math
from dataclasses import asdict
import numpy as np, pytest
from tlcourse.base import BadInput
from tlcourse.rates import candidates, choose, grid, pick

def surface(best, curve=.05, noise=.01, seed=0, m=3, n=40, above=math.inf):
    "(rate, part) -> losses of m seeds on n pictures: a parabola in log rate; rates over `above` diverge"
    hard = np.random.default_rng(seed).exponential(1, (m, n))
    def at(rate, part=1):
        if rate > above: return [np.full(n, np.nan)]*m
        own = np.random.default_rng([seed, round(rate*1e9)]).normal(0, noise, (m, n)) # The same whoever asks, and when
        return list(hard + curve*math.log(rate/best, 3)**2 + own)
    return at

def runner(cells, log):
    "What `choose` takes, for a surface a cell"
    def run(todo):
        log.append(todo)
        return [cells[c](r, part) for c,r,part in todo]
    return run

def alone(at, table, **kwargs):
    "The choice of one cell, and the rounds that it took"
    log = []
    return choose(runner({'cell': at}, log), {'cell': table}, **kwargs)['cell'], log

rates = lambda c: [r for r,*_ in c.tried]

# --- the grid

@pytest.mark.parametrize('j', [-2, -1, 0, 1, 2])
def test_known_optimum(j):
    "Found where it lies between others, with no more rates than that takes."
    c, log = alone(surface(grid(.01, j, j)[0]), .01)
    assert (c.rate, c.edge) == (grid(.01, j, j)[0], 0)
    assert rates(c) == grid(.01, min(-1, j-1), max(1, j+1)) and len(log) == 1 + abs(j)
    assert not c.race and not c.fixed and c.at is None and not c.whole

@pytest.mark.parametrize('table', [.005, .01, .02])
def test_flat(table):
    "All rates alike: the table's, after both sides were looked at as far as may be; the end is said."
    c, log = alone(surface(1, curve=0, noise=0), table)
    assert c.rate == table and rates(c) == grid(table, -4, 4) and c.edge == -1
    assert len(log) == 4 and [len(o) for o in log] == [3, 2, 2, 2]

@pytest.mark.parametrize('side', [-1, 1])
@pytest.mark.parametrize('most', [3, 4, 9])
def test_far_away(side, most):
    "The grid walks there, one rate a round, and stops with the edge said."
    c, log = alone(surface(.01*3.**(20*side)), .01, most=most)
    ends = (-(most-2), 1) if side < 0 else (-1, most-2)
    assert rates(c) == grid(.01, *ends) and c.edge == side
    assert c.rate == (rates(c)[0] if side < 0 else rates(c)[-1])
    assert [len(o) for o in log] == [3] + [1]*(most-3)

@pytest.mark.parametrize('tilt', [-1, 1])
def test_room_for_one(tilt):
    """Both ends are candidates and one rate is left: it goes to the side of the smaller loss,
    which is the edge that is said."""
    def at(rate, part=1):
        x, loss = round(math.log(rate/.01, 3)), np.tile([1., -1], 20)
        return [loss*(1 + .1*x) + .001*tilt*x] # The differences vary by far more than the tilt
    c, _ = alone(at, .01, most=4)
    assert rates(c) == grid(.01, *((-2, 1) if tilt > 0 else (-1, 2))) and c.edge == -tilt and c.rate == .01

def test_no_run_twice():
    log = alone(surface(1e-4), .01)[1]
    asked = [o for todo in log for o in todo]
    assert len(set(asked)) == len(asked) <= 9 and len(log) <= 7 and {p for *_,p in asked} == {1}

# --- the candidates

def two_rates(d, table):
    "A rate of loss `d` (seeds, pictures) more than another one; the table says the first"
    base = np.random.default_rng(0).exponential(1, np.shape(d))
    return pick({table: list(base + d), 10*table: list(base)}, table)

signs = np.tile([1., -1], 10)

@pytest.mark.parametrize('what,d,se', [
    ('one seed: the pictures', signs[None], math.sqrt(20/19/20)),
    ('seeds that agree: the pictures of all', np.stack([signs, -signs, signs]), math.sqrt(20/19/60)),
    ('pictures that agree: the seeds', np.array([[-1.], [0], [1]]) + np.zeros((3, 20)), 1/math.sqrt(3)),
    ('both, and none counted twice', np.array([[-1.], [0], [1]]) + np.stack([signs]*3), 1/math.sqrt(3))])
def test_one_standard_error(what, d, se):
    "The table's rate is taken up to one standard error above the smallest loss, and not beyond."
    for k,rate in ((.95, .01), (1.05, .1)):
        c = two_rates(d + k*se, .01)
        assert c.tried[0][2] == pytest.approx(se) and c.rate == rate, (what, k)

def test_nearest_to_the_table():
    "Not the smallest loss; and of two that are equally near, in spite of the three digits, the smaller."
    wide = np.tile([1., -1], 20)
    def at(**more): return {r: [wide*i + more.get(f'r{i}', 0)] for i,r in enumerate(grid(.005, -2, 2))}
    assert pick(at(r4=-.01), .005).rate == .005
    for low,high,i in ((-.01, 0, 1), (0, -.01, 3)):
        c = pick(at(r2=9, r1=low, r3=high), .005)
        assert c.rate == grid(.005, -2, 2)[i] and len(candidates(c.tried)) == 4

def test_shift():
    "What a picture adds to the loss of all rates changes nothing."
    for seed in range(20):
        at, add = surface(.03, .02, .3, seed), np.random.default_rng(99 + seed).normal(0, 5, (3, 40))
        a = alone(at, .01)[0]
        b = alone(lambda rate, part=1: [o + p for o,p in zip(at(rate), add)], .01)[0]
        assert (a.rate, a.edge, rates(a)) == (b.rate, b.edge, rates(b))
        np.testing.assert_allclose([o[2] for o in a.tried], [o[2] for o in b.tried], atol=1e-9)
        np.testing.assert_allclose([o[1] + add.mean() for o in a.tried], [o[1] for o in b.tried], atol=1e-9)

def test_stored_numbers_say_the_candidates():
    c = alone(surface(.03, .02, .3), .01)[0]
    back = json.loads(json.dumps(asdict(c)))
    assert [o[0] for o in candidates(back['tried'])] == [o[0] for o in candidates(c.tried)]
    assert c.rate in [o[0] for o in candidates(c.tried)]

# --- rates that diverge

@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_diverged_rates_touch_nothing(bad):
    "One picture of one seed is enough; the grid does not go on behind them, and the highest that works is no edge."
    at = surface(.2)
    def run(rate, part=1):
        res = [o.copy() for o in at(rate)]
        if rate > .05: res[1][7] = bad
        return res
    c, log = alone(run, .01)
    assert (c.rate, c.edge) == (.03, 0) and rates(c) == grid(.01, -1, 2) and c.tried[-1] == (.09, math.inf, math.inf)

def test_down_where_all_diverge():
    c, _ = alone(surface(.0004, above=.0005), .01)
    assert (c.rate, c.edge) == (.00037, 0) and rates(c) == grid(.01, -4, 1)

def test_all_diverged():
    log = []
    with pytest.raises(BadInput, match=r"\('fine-tuning', 5\): no rate from 4.57e-06 to 0.03 gives a finite loss"):
        cells = {('scratch', 5): surface(.01), ('fine-tuning', 5): surface(1, above=0)}
        choose(runner(cells, log), dict.fromkeys(cells, .01))
    assert sum(c == ('fine-tuning', 5) for todo in log for c,*_ in todo) == 9

# --- alone and in company

arms = {'near': (surface(.01, seed=1), .01), 'far': (surface(1e-5, seed=2), .02), 'up': (surface(3, seed=3), .05),
        'noisy': (surface(.1, .01, .5, 4), .01),
        'its twin': (surface(.1, .01, .5, 5), .01), 'diverges': (surface(.5, above=.1, seed=6), .005),
        'one seed': (surface(.1, seed=7, m=1), .01)}

@pytest.mark.parametrize('race', [False, True])
def test_company(race):
    """A cell gets the same whoever else is asked for, and in whatever order;
    all that a round needs is asked for together."""
    ats, tables, log = {k: a for k,(a,_) in arms.items()}, {k: t for k,(_,t) in arms.items()}, []
    got, each = choose(runner(ats, log), tables, race=race), {k: alone(*o, race=race) for k,o in arms.items()}
    assert (got == {k: c for k,(c,_) in each.items()}
            == choose(runner(ats, []), dict(reversed(tables.items())), race=race))
    own = [[len(todo) for todo in l] for _,l in each.values()]
    if race: own = [o[:-1] for o in own]
    assert len(log) - race == max(map(len, own)) <= 7
    assert [len(o) for o in log][:len(log)-race] == [sum(o[i] for o in own if i < len(o)) for i in range(len(log)-race)]
    if race: assert len(log[-1]) == 2*len(arms)
    assert got['noisy'].rate != got['its twin'].rate, 'alike in all but their noise, and each by its own'

# --- a race

def test_race():
    "A third of the steps finds two rates, all steps decide between them; nothing else is run whole."
    early, late = surface(.09), surface(.03)
    c, log = alone(lambda rate, part: (late if part == 1 else early)(rate), .01, race=True)
    assert (c.rate, c.edge, c.race) == (.03, 0, True)
    assert rates(c) == grid(.01, -1, 3) and [o[0] for o in c.whole] == [.03, .09]
    assert {p for todo in log[:-1] for *_,p in todo} == {1/3} and [p for *_,p in log[-1]] == [1, 1]
    means = {r: np.mean(early(r)) for r in rates(c)}
    assert {r for _,r,_ in log[-1]} == set(sorted(means, key=means.get)[:2])
    assert {r: loss for r,loss,_ in c.tried} == pytest.approx(means)
    assert {r: loss for r,loss,_ in c.whole} == pytest.approx({r: np.mean(late(r)) for r,*_ in c.whole})

def test_race_says_its_edge():
    c, _ = alone(surface(1e9), .01, race=True)
    assert c.edge == 1 and [o[0] for o in c.whole] == grid(.01, 6, 7) and c.rate == c.whole[1][0]

# --- what is refused

def test_refused():
    ok = np.ones(5)
    for losses in ({.1: [ok], .3: [ok[:4]]}, {.1: [ok, ok], .3: [ok]}):
        with pytest.raises(BadInput, match='same seeds and pictures'): pick(losses, .1)
    for losses in ({.1: [ok[:1]]}, {.1: []}, {.1: [np.ones((2, 2))]}):
        with pytest.raises(BadInput, match='two pictures or more'): pick(losses, .1)
    with pytest.raises(BadInput, match='run one rate'): pick({}, .1)
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(BadInput, match='above 0'): grid(bad, 0, 0)
    with pytest.raises(BadInput, match='three rates'): alone(surface(.01), .01, most=2)
    with pytest.raises(ValueError): choose(lambda todo: [], {'a': .1})
    assert (choose(lambda todo: pytest.fail('nothing to run'), {})
            == choose(lambda todo: pytest.fail('nothing to run'), {}, race=True) == {})
