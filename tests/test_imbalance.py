"Unbalanced training: each function against another derivation of what it says."
import math
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.losses import CrossEntropyLossFlat
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, recall_score
from tlcourse.base import BadInput
from tlcourse.data import kshot, long_tail, SealBroken, target
from tlcourse.imbalance import adjusted, class_recall, effective_weights, LogitAdjustedLoss
from tlcourse.learner import learner

COUNTS = [60, 41, 28, 9, 2]

def drawn(n=200, c=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)

def test_effective_number_as_it_is_derived():
    "Cui et al.: a new picture is worth 1 less the chance beta-wise that it repeats: E_n = 1 + beta E_(n-1)"
    for beta in .5, .9, .99, .9999:
        e = []
        for n in COUNTS:
            v = 0.
            for _ in range(n): v = 1 + beta*v
            e.append(1/v)
        w = effective_weights(COUNTS, beta)
        assert w.tolist() == pytest.approx([5*o/sum(e) for o in e], rel=1e-5)
        assert w.dtype == torch.float32 and float(w.mean()) == pytest.approx(1)

def test_ends_of_beta():
    assert effective_weights(COUNTS, 0).tolist() == [1]*5
    inv = 1/np.array(COUNTS)
    assert effective_weights(COUNTS, 1).tolist() == pytest.approx(inv/inv.mean())
    assert effective_weights(COUNTS, 1 - 1e-12).tolist() == pytest.approx(inv/inv.mean(), rel=1e-4) # the limit
    assert effective_weights([7, 7, 7], .9).tolist() == pytest.approx([1]*3)

def test_loss_by_its_formula():
    "Menon et al.: -log of pi_y exp(f_y) over the sum of pi_c exp(f_c), tau times in the log"
    x, y = drawn()
    pi = np.array(COUNTS)/sum(COUNTS)
    for tau in .5, 1, 2:
        up = np.exp(x.numpy())*pi**tau
        want = -np.log(up[np.arange(len(y)), y]/up.sum(1)).mean()
        assert LogitAdjustedLoss(COUNTS, tau)(x, y).item() == pytest.approx(want, rel=1e-6)

def test_loss_is_cross_entropy_at_equal_shares_and_at_tau_0():
    x, y = drawn()
    want = F.cross_entropy(x, y).item()
    assert LogitAdjustedLoss([7]*5)(x, y).item() == pytest.approx(want, rel=1e-6)
    assert torch.equal(LogitAdjustedLoss(COUNTS, 0)(x, y), CrossEntropyLossFlat()(x, y))
    assert LogitAdjustedLoss(COUNTS)(x, y).item() != pytest.approx(want, rel=.01)

def test_loss_in_fastai():
    "Reductions, flattening and decoding are those of fastai's own loss; a float16 batch stays one"
    x, y = drawn()
    loss = LogitAdjustedLoss(COUNTS, reduction='none')
    assert loss(x, y).shape == (200,) and loss(x.view(20, 10, 5), y.view(20, 10)).shape == (200,)
    assert torch.equal(loss.decodes(x), x.argmax(1))
    assert torch.equal(loss.activation(x), CrossEntropyLossFlat().activation(x))
    assert loss(x.half(), y).dtype == torch.float16

def test_afterwards_nothing_changes_at_tau_0_or_equal_shares():
    p = drawn()[0].softmax(1)
    assert torch.equal(adjusted(p, COUNTS, 0), p)
    assert torch.allclose(adjusted(p, [9]*5), p, atol=1e-12)

def test_afterwards_by_its_formula_and_as_a_shift_of_the_bias():
    x, _ = drawn()
    pi = torch.tensor(COUNTS, dtype=torch.float64)/sum(COUNTS)
    for tau in .5, 1, 2:
        want = x.softmax(1)/pi**tau
        got = adjusted(x.softmax(1), COUNTS, tau)
        assert torch.allclose(got, want/want.sum(1, keepdim=True), atol=1e-12)
        assert torch.allclose(got, (x - tau*pi.log()).softmax(1), atol=1e-12) # what the stored grid does
    assert torch.allclose(adjusted(adjusted(x.softmax(1), COUNTS, .4), COUNTS, .6), adjusted(x.softmax(1), COUNTS))

def test_both_corrections_are_one():
    "A perfect fit of the loss with the shares in it, and of the plain loss with them taken out, are the same answer"
    x, _ = drawn()
    pi = torch.tensor(COUNTS, dtype=torch.float64)/sum(COUNTS)
    plain = (x + pi.log()).softmax(1) # what plain training would say where the loss with shares says x
    assert torch.allclose(adjusted(plain, COUNTS), x.softmax(1), atol=1e-12)

def test_bayes_two_gaussians():
    "Normal looks at -1 and 1, thirty to one: the boundary of a perfect network is at log(30)/2, afterwards at 0"
    x = np.linspace(-4, 4, 8001)
    looks = np.stack([norm.pdf(x, -1), norm.pdf(x, 1)], 1)
    p = looks*[30/31, 1/31]
    p /= p.sum(1, keepdims=True)
    at = lambda p: x[np.abs(np.asarray(p)[:,0] - .5).argmin()]
    assert at(p) == pytest.approx(math.log(30)/2, abs=1e-3) and at(adjusted(p, [30, 1])) == pytest.approx(0, abs=1e-3)
    # ... where the mean recall is highest among all boundaries
    recall = (norm.cdf(x, -1) + 1 - norm.cdf(x, 1))/2
    assert x[recall.argmax()] == pytest.approx(0, abs=1e-3)

def test_a_fit_finds_the_boundary():
    "Logistic regression on 30:1 draws: plain ends near log(30)/2, with the shares in its loss near 0"
    rng = np.random.default_rng(0)
    x = torch.tensor(np.concatenate([rng.normal(-1, 1, 30000), rng.normal(1, 1, 1000)]))[:,None]
    y = torch.tensor([0]*30000 + [1]*1000)
    def boundary(loss):
        w, b = (torch.zeros(*n, dtype=torch.float64, requires_grad=True) for n in ((1, 2), (2,)))
        opt = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn='strong_wolfe')
        def step():
            opt.zero_grad()
            v = loss(x@w + b, y)
            v.backward()
            return v
        opt.step(step)
        return (-(b[1] - b[0])/(w[0,1] - w[0,0])).item()
    assert boundary(CrossEntropyLossFlat()) == pytest.approx(math.log(30)/2, abs=.1)
    assert boundary(LogitAdjustedLoss([30000, 1000])) == pytest.approx(0, abs=.1)

def test_recall_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 6, 300), rng.integers(0, 6, 300)
    assert class_recall(p, y, 6) == pytest.approx(recall_score(y, p, average=None))
    assert class_recall(torch.tensor(p), torch.tensor(y), 6).mean() == pytest.approx(balanced_accuracy_score(y, p))
    r = class_recall([0, 1, 1], [0, 0, 2], 4)
    assert r[0] == .5 and r[2] == 0 and np.isnan(r[[1, 3]]).all()

@pytest.fixture(scope='module')
def digits(): return target('digits')

def test_long_tail_keeps_what_it_says(digits):
    n = [60, 41, 28, 19, 13, 9, 6, 4, 3, 2]
    few = long_tail(digits, n, seed=3)
    assert [*few.train.counts.values()] == n and [*digits.train.counts.values()] != n
    assert few.pixel_hash != digits.pixel_hash != long_tail(digits, n).pixel_hash != few.pixel_hash
    assert len(few.valid) == len(digits.valid) and len(few.test) == len(digits.test)
    assert torch.bincount(few.train.y).tolist() == n and len(few.dls(bs=32).train.dataset) == sum(n)
    same = long_tail(digits, dict(zip(digits.classes, n)), seed=3)
    assert torch.equal(same.train.x, few.train.x)

def test_even_counts_are_kshot_and_more_hold_fewer(digits):
    for seed in 0, 7:
        ids = kshot(digits.train.y, 5, seed)
        assert torch.equal(long_tail(digits, [5]*10, seed).train.x, digits.train.x[ids])
    have = lambda n: {bytes(o.numpy()) for o in long_tail(digits, n).train.x}
    assert have([5]*10) < have([9]*10) and len(have([9]*10)) == 90

def test_the_seal_is_the_same_one():
    t = target('digits')
    few = long_tail(t, [3]*10)
    learn = learner(few.dls(bs=8), 'glyphnet')
    few.score(learn)
    assert t.openings == few.openings == 1
    with pytest.raises(SealBroken): t.score(learn)

@pytest.mark.parametrize('call,words', [
    (lambda: effective_weights([3, 0]), 'class 1 has 0'), (lambda: effective_weights([3, 1.5]), 'a whole number'),
    (lambda: effective_weights([3]), 'two or more'), (lambda: effective_weights('ab'), 'two or more'),
    (lambda: effective_weights([3, 2], 1.1), 'from 0 to 1'), (lambda: effective_weights([3, 2], True), 'from 0 to 1'),
    (lambda: LogitAdjustedLoss([3, 2], -1), 'from 0 on'), (lambda: LogitAdjustedLoss([3, float('nan')]), 'class 1'),
    (lambda: adjusted(torch.zeros(4, 3), [3, 2]), 'give (n, 2)'),
    (lambda: adjusted(torch.ones(4, 2), [3, 2]), 'sum to 1'),
    (lambda: class_recall([1, 2], [1], 3), 'a class for each picture'),
    (lambda: class_recall([1, 2], [1, 3], 3), 'number them from 0')])
def test_bad_input_is_told(call, words):
    with pytest.raises(BadInput) as e: call()
    assert words in str(e.value)

def test_long_tail_refuses(digits):
    for n, words in (([5]*9, '9 numbers for the 10 classes'), ([500] + [5]*9, "from 1 to 113"),
                     ([0]*10, "pictures of class '0'=0"), ([2.5]*10, 'whole number')):
        with pytest.raises(BadInput) as e: long_tail(digits, n)
        assert words in str(e.value)
