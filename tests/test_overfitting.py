"Lesson 13's wrong labels and what is known by heart, each counted another way, and where they are misused."
import numpy as np, pytest, torch
from collections import Counter
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from torch import nn
from tlcourse.base import BadInput
from tlcourse.data import kshot, target
from tlcourse.learner import learner
from tlcourse.overfitting import ByHeart, mislabelled, wrong_labels

# --- wrong labels

@pytest.mark.parametrize('share,n', [(0, 0), (.2, 1), (.4, 2), (.5, 2), (.99, 5)]) # of 5; .5*5 rounds to the even 2
def test_a_share_of_each_class(share, n):
    y = np.repeat(range(7), 5)
    given = wrong_labels(y, share, seed=3)
    for c in range(7): assert (given[y == c] != c).sum() == n
    assert given.min() >= 0 and given.max() <= 6 and given.shape == y.shape

def test_the_labels_handed_in_stay():
    y = np.repeat(range(3), 10)
    was = y.copy()
    wrong_labels(y, .5)
    assert (y == was).all()

def test_every_other_class_is_as_likely():
    y = np.repeat(range(5), 4000)
    given = wrong_labels(y, .5)
    for c in range(5):
        n = Counter(given[(y == c) & (given != c)])
        assert set(n) == set(range(5)) - {c} and all(abs(v - 500) < 5*np.sqrt(500*.75) for v in n.values())

def test_the_seed_decides():
    y = np.repeat(range(5), 20)
    assert (wrong_labels(y, .4, 1) == wrong_labels(y, .4, 1)).all()
    a, b = (np.flatnonzero(wrong_labels(y, .4, s) != y) for s in (1, 2))
    assert not np.array_equal(a, b)

@pytest.mark.parametrize('share', [1, -.1, 1.5, '40 %', None, True, float('nan')])
def test_a_share_that_is_none(share):
    with pytest.raises(BadInput, match='from 0 on and below 1'): wrong_labels([0, 1], share)

def test_one_class_has_no_wrong_label():
    assert (wrong_labels([0]*4, 0) == 0).all()
    with pytest.raises(BadInput, match='second class'): wrong_labels([0]*4, .5)

# --- a target

def test_only_training_labels_change():
    t = target('digits')
    y, valid = t.train.y.clone(), t.valid.y.clone()
    few = mislabelled(t, 5, .4, seed=2)
    ids = kshot(t.train.y, 5, 2)
    assert torch.equal(few.train.x, t.train.x[ids]) and len(few.train) == 50
    assert (few.wrong == (few.train.y != t.train.y[ids]).numpy()).all() and few.wrong.sum() == 20
    assert torch.equal(few.valid.y, valid) and (few._test_arrays[1] == t._test_arrays[1]).all()
    assert torch.equal(t.train.y, y) and len(t.train) == len(y) and not hasattr(t, 'wrong')
    assert few.train.augments == t.train.augments

# --- by heart

def tiny(wrong, cbs=(), n=24):
    set_seed(0)
    xy = list(zip(torch.randn(n, 3), torch.arange(n) % 3))
    dls = DataLoaders.from_dsets(xy, xy[:6], bs=7, shuffle=True, device='cpu')
    body = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.3), nn.Linear(16, 3))
    return Learner(dls, body, loss_func=CrossEntropyLossFlat(), cbs=[ByHeart(wrong)]*(wrong is not None) + [*cbs])

def fit(learn, n=6):
    set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, 3e-2)
    return learn

def test_counted_by_hand():
    wrong = np.arange(24) % 4 == 0
    learn = fit(tiny(wrong))
    x, y = map(torch.stack, zip(*learn.dls.train_ds))
    hit = (learn.model.eval()(x).argmax(1) == y).detach().numpy()
    assert len(learn.by_heart.rows) == 6 and len({*learn.by_heart.rows}) > 1
    assert learn.by_heart.rows[-1] == (hit[~wrong].mean(), hit[wrong].mean())

def test_looking_changes_nothing():
    a, b = fit(tiny(np.zeros(24, bool))), fit(tiny(None))
    for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True): assert torch.equal(p, q)

def test_where_no_label_is_wrong():
    learn = fit(tiny(np.zeros(24, bool)), 1)
    assert learn.by_heart.rows[0][0] >= 0 and np.isnan(learn.by_heart.rows[0][1])

def test_another_number_of_pictures():
    with pytest.raises(BadInput, match='23 pictures, and 24'): fit(tiny(np.zeros(23, bool)), 1)

def test_predicting_is_no_epoch():
    learn = fit(tiny(np.arange(24) < 5), 2)
    rows = list(learn.by_heart.rows)
    with learn.no_bar(), learn.no_logging():
        learn.get_preds()
        learn.validate()
    assert len(rows) == 2 and learn.by_heart.rows == rows

def test_the_pictures_are_not_augmented():
    few = mislabelled(target('digits'), 1, 0)
    learn = learner(few.dls(bs=10, augment=['dihedral', 'crop']), 'glyphnet', cbs=ByHeart(few.wrong))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.)
        seen = []
        with learn.model[0].register_forward_hook(lambda m, i, o: seen.append(i[0].clone())): # pictures as they come
            for _ in range(2): learn.by_heart.after_train()
    assert torch.equal(*seen)
