"The table of claims: each number is the one of its lesson's stored grid, worked out again here, and each row is whole."
import numpy as np, pandas as pd, pytest
from tlcourse.base import BadInput, lesson_number
from tlcourse.claims import ROWS, SAYS, VERDICTS, Judged, claims
from tlcourse.comparison import stored_comparison
from tlcourse.dev import _values
from tlcourse.stats import paired_ci
from tlcourse.stored_tables import lesson_records
from conftest import ROOT

def interval(a, b, sign=1):
    d = paired_ci(a, b)
    return [100*sign*o for o in (d.mean, *(d.low, d.high)[::sign])]

def right(lesson, **which):
    return np.stack([r.correct for r in sorted(lesson_records(lesson).rows(**which), key=lambda r: r.spec['seed'])])

def first_transfer(k):
    c = stored_comparison(lesson_records('first_transfer'), tune='valid').correct
    return interval(c['fine-tuning', k], c['scratch', k])

def source_of(way):
    return np.stack([r.result['source'] for r in lesson_records('freezing').rows(target='textures', freeze=way)])

def kept(what, beside='', **way):
    rows = lesson_records('keeping')
    first, = rows.rows(kind='source')
    y = rows.labels(first.result['other_font'] if 'stix' in what else first.spec['pixel_hash'])
    runs = sorted(rows.rows(kind='report', **way), key=lambda r: r.spec['seed'])
    got = np.stack([r.result[what + beside] for r in runs])
    return got == y if 'pred' in what else got

TUNED = dict(method='fine-tuning')
# (kind, number, lesson, what the row calls its value) -> the same from the grid, by no line of the lesson or the table
AGAIN = {
    ('claim', 3, 'first_transfer', 'one'): lambda: first_transfer(1),
    ('claim', 13, 'first_transfer', 'five'): lambda: first_transfer(5),
    ('claim', 23, 'freezing', 'lost'): lambda: interval(source_of('default'), source_of('true_freeze'), -1),
    ('claim', 34, 'feature_extraction', 'gain'):
        lambda: interval(*(right('feature_extraction', target='textures', layer=i, body='trained') for i in (3, 4))),
    ('claim', 3, 'feature_extraction', 'harm'):
        lambda: interval(*(right('feature_extraction', target='hues', layer=0, body=b)[:10]
                           for b in ('random', 'trained'))),
    ('claim', 4, 'learning_rates', 'one'):
        lambda: [100*stored_comparison(lesson_records('learning_rates')).correct['single-rate', 5].mean()],
    ('finding', 4, 'keeping', 'font'):
        lambda: interval(*(kept('pred letters-stix', o, method='lp-ft') for o in (' wise 0.5', ''))),
    ('claim', 28, 'keeping', 'wise'):
        lambda: interval(kept('source', ' wise 0.5', method='lp-ft'), kept('source', **TUNED)),
    ('finding', 3, 'keeping', None):
        lambda: interval(kept('pred letters-stix', method='lp-ft'), kept('pred letters-stix', **TUNED)),
    ('claim', 24, 'keeping', None): lambda: interval(kept('source', method='DELTA', knob=.1), kept('source', **TUNED)),
}

def row_of(kind, number, lesson, value):
    row, = [r for r in ROWS if (r.kind, r.number, r.lesson) == (kind, number, lesson)
            and (callable(r.value) if value is None else r.value == value)]
    return claims([row]).iloc[0]

@pytest.mark.parametrize('key', AGAIN, ids=lambda k: '-'.join(map(str, k)))
def test_numbers_are_those_of_the_grids(key):
    got, want = row_of(*key), AGAIN[key]()
    assert [got['mean'], got['low'], got['high']][:len(want)] == pytest.approx(want, abs=1e-4)

@pytest.mark.parametrize('row', [r for r in ROWS if isinstance(r.value, str)],
                         ids=lambda r: f'{r.kind}-{r.number}-{r.lesson}')
def test_numbers_are_those_of_the_lessons(row):
    "`python -m tlcourse.dev check` holds the same values against the lesson's text"
    page, = (ROOT/'nbs/lessons').glob(f'*_{row.lesson}.ipynb')
    said, t = _values(page)[0], claims([row]).iloc[0]
    assert t['mean'] == said.get(row.value, said.get(f'{row.value}.mean'))
    ends = [v for k,v in said.items() if k in [f'{row.value}.{o}' for o in ('low', 'high', 'least', 'most')]]
    assert [o for o in t[['low', 'high']] if pd.notna(o)] == ends

def test_rows_are_whole():
    t = claims()
    assert len(t) == len(ROWS) and set(t.verdict) <= set(VERDICTS) and {(r.kind, r.number) for r in ROWS} <= set(SAYS)
    assert all(r.where and r.kind in ('claim', 'finding') and lesson_number(r.lesson) for r in ROWS)
    assert all(r.what and r.sure for r in ROWS if r.value is not None)
    # Of an open difference the interval may not lie on one side, unless a correction is what leaves it open
    for r in t[(t.verdict == 'open') & t.low.notna()].itertuples():
        assert r.low <= 0 <= r.high or 'not corrected' in r.sure
    clear = t[t.verdict.isin(['holds', 'holds when']) & t.low.notna()]
    assert (clear.low > 0).all()

def test_a_row_that_a_lesson_does_not_say():
    with pytest.raises(BadInput, match='says nothing of'):
        claims([Judged('claim', 3, 'first_transfer', 'open', 'x', 'no such')])
