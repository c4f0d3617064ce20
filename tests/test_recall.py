"What a study says class by class: the recall of each, and of large and small ones where training is unbalanced."
import json
import numpy as np, pytest
from tlcourse.comparison import _class_mean, _head_and_tail, _UNBALANCED, Comparison
from tlcourse.records import Records
from tlcourse.report import report_html
from tlcourse.stats import mean_ci, wilson
from tlcourse.base import versions

CLASSES = ['rose', 'Möwe & <b>Co</b>', 'iris', 'lily', 'daisy', 'tulip']
TRAIN = [60, 40, 20, 8, 4, 2]
# Of each class the test has this many pictures, and a run of each arm finds so many
N = [40, 30, 20, 20, 10, 20]
FOUND = {'feature-extraction': [[40, 30, 18, 12, 3, 4]],
         'fine-tuning': [[40, 29, 20, 14, 4, 8], [40, 28, 20, 16, 4, 10], [40, 30, 20, 15, 4, 9]]}

def planted(d, train=TRAIN, found=FOUND, n=N):
    "The comparison of a study whose runs find what `found` says of each class"
    y = np.repeat(np.arange(len(n)), n)
    recs = Records(d/'records.db')
    recs.put_labels('px', y, dict(classes=CLASSES))
    cells, rates = [], []
    for s,runs in found.items():
        base = dict(pixel_hash='px', strategy=s, shots='all', code=4, backbone='lite0')
        base.update(dict(wd=.1) if s == 'feature-extraction' else dict(lr=.003, steps=80))
        specs = [dict(base, kind='report', seed=i) for i in range(len(runs))]
        for sp,hits in zip(specs, runs):
            ok = np.concatenate([np.arange(m) < k for m,k in zip(n, hits)])
            recs.add(sp, dict(pred=np.where(ok, y, (y+1) % len(n)).astype(np.uint16),
                              prob=np.full(len(y), .75, np.float16), seconds=1., valid_acc=.7))
        cells.append([s, 'all', specs])
        rates.append(dict(strategy=s, shots='all', knob='wd' if 'wd' in base else 'lr', rate=.1, edge=0, tried=[],
                          fixed=True, at=None, race=False))
    what = dict(kind='study', pixel_hash='px', target='mine', size=64, backbone='lite0', weights='w', head='linear',
                strategies=[*found], shots=['all'], seeds=3, steps=None, bs=32, tune='none', V=5, augment=[],
                device='cpu', code=4)
    recs.add(what, dict(cells=cells, rates=rates, beside=[], stage=2, stages=2, missing=[], notes=[],
                        parts={c: [a, 5, b] for c,a,b in zip(CLASSES, train, n)}, versions=versions()))
    return Comparison(recs, what)

@pytest.fixture
def study(tmp_path): return planted(tmp_path)

def test_each_class_by_hand(study):
    assert study.recommendation['strategy'] == 'fine-tuning' # 117 of 140 on average
    r = study.recall
    assert (r['strategy'], r['shots'], r['runs']) == ('fine-tuning', 'all', 3)
    assert [o['class'] for o in r['classes']] == CLASSES
    assert [(o['train'], o['test']) for o in r['classes']] == [*zip(TRAIN, N)]
    mean = np.mean(FOUND['fine-tuning'], 0)
    for o,k,n in zip(r['classes'], mean, N):
        assert (o['mean'], o['low'], o['high']) == pytest.approx(wilson(k, n)[:3])
    # Wilson's interval for 9 of 20, from its formula: the p with |9/20 - p| = 1.96 sqrt(p(1-p)/20)
    last = r['classes'][-1]
    for p in (last['low'], last['high']): assert abs(.45 - p) == pytest.approx(1.959964*np.sqrt(p*(1-p)/20), rel=1e-5)

def test_head_tail_and_balanced_by_hand(study):
    o = study.imbalance
    assert (o['ratio'], o['head'], o['tail']) == (30, CLASSES[:2], CLASSES[4:])
    assert [r['strategy'] for r in o['rows']] == ['feature-extraction', 'fine-tuning']
    for r,runs in zip(o['rows'], FOUND.values()):
        share = np.array(runs)/N # (runs, classes)
        assert r['accuracy']['mean'] == pytest.approx(np.sum(runs)/len(runs)/sum(N))
        assert r['balanced']['mean'] == pytest.approx(share.mean())
        assert r['head']['mean'] == pytest.approx(share[:,:2].mean())
        assert r['tail']['mean'] == pytest.approx(share[:,4:].mean())
        for k in 'balanced', 'head', 'tail': assert 0 <= r[k]['low'] <= r[k]['mean'] <= r[k]['high'] <= 1
    assert 'The largest class has 60 training pictures and the smallest 2: fine-tuning finds 98.3 %' in o['text']
    assert '42.5 % of those of the small ones' in o['text'] and 'balanced accuracy of 76.1 %' in o['text']

def test_only_where_unbalanced(tmp_path):
    for i,(least, there) in enumerate([(20, True), (21, False), (60, False)]):
        d = tmp_path/str(i); d.mkdir()
        c = planted(d, [60, 60, 60, 60, 60, least])
        assert bool(c.imbalance) is there and c.recall['classes'][-1]['train'] == least
        assert ('id="imbalance"' in report_html(c)) is there and 'id="recall"' in report_html(c)
    assert _UNBALANCED == 3

def test_a_tail_that_is_not_worse(tmp_path):
    c = planted(tmp_path, found={k: [[39, 30, 20, 18, 9, 19]]*len(v) for k,v in FOUND.items()})
    assert 'not clearly found worse' in c.imbalance['text']

def test_a_class_without_test_pictures(tmp_path):
    c = planted(tmp_path, n=[40, 30, 20, 20, 10, 0], 
                found={k: [[39, 28, 20, 18, 5, 0]]*len(v) for k,v in FOUND.items()})
    last = c.recall['classes'][-1]
    assert (last['mean'], last['low'], last['high'], last['test']) == (None, None, None, 0)
    assert c.imbalance['rows'][0]['tail']['mean'] == .5 # of the class that the test has
    assert '–' in report_html(c)
    (tmp_path/'none').mkdir()
    o = planted(tmp_path/'none', n=[40, 30, 20, 20, 0, 0],
                found={k: [[39, 28, 20, 18, 0, 0]]*len(v) for k,v in FOUND.items()})
    assert o.imbalance['rows'][0]['tail'] == dict(mean=None, low=None, high=None)
    assert 'no picture of the large or small ones' in o.imbalance['text'] and 'id="imbalance"' in report_html(o)
    json.dumps(c.to_dict(), allow_nan=False)

def test_json_and_report(study):
    d = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert d['recall'] == study.recall and d['imbalance'] == study.imbalance
    text = report_html(study)
    assert text.index('id="imbalance"') < text.index('id="recall"') < text.index('id="mistakes"')
    assert '<td class="num">2</td>' in text and '45.0 [25.8, 65.8]' in text
    assert '<b>Co' not in text and 'Möwe &amp; &lt;b&gt;Co' in text

def test_interval_of_a_mean_of_classes():
    rng = np.random.default_rng(1)
    one = rng.random((4, 25)) < .7
    alike = np.concatenate([one, one, one], 1) # classes that do not differ
    got = _class_mean(alike, np.repeat([0, 1, 2], 25), range(3))
    assert [*got.values()] == pytest.approx([*mean_ci(alike)[:3]])
    got = _class_mean(np.ones((1, 30)), np.repeat([0, 1, 2], 10), range(3))
    assert got['mean'] == 1 and .8 < got['low'] < 1 # nothing vanishes where everything is right
    assert [*got.values()] == pytest.approx([*mean_ci(np.ones((1, 30)))[:3]])

def test_interval_covers():
    "Two classes of other sizes and recalls, one run: the interval holds the true mean recall often enough"
    rng, y, held = np.random.default_rng(0), np.repeat([0, 1], [60, 12]), 0
    for _ in range(2000):
        o = _class_mean(rng.random((1, 72)) < np.where(y == 0, .95, .6), y, (0, 1))
        held += o['low'] <= .775 <= o['high']
    assert .93 <= held/2000 <= .995

def test_ties_and_few_classes():
    assert _head_and_tail([5, 9]) == ([1], [0])
    assert _head_and_tail([5, 9, 5, 9, 9, 5]) == ([1, 3], [2, 5])
