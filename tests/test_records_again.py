"A sample of the runs that ship with the lessons is run again: same settings, same seed, same answers."
import random, subprocess
import pytest
from tlcourse.compare import run_spec, stored_comparison
from tlcourse.data import target
from tlcourse.records import lesson_records
from tlcourse.sweep import one_thread
from conftest import ROOT

def sample(rows, n=3):
    "Fixed by the commit: every commit draws its own"
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return random.Random(head).sample(rows, n)

def test_lesson_1(capsys):
    records = lesson_records(1)
    pixels = target('digits').pixel_hash
    rows = records.rows(kind='report')
    if rows[0].spec['pixel_hash'] != pixels: pytest.skip('other pixels: the stored runs are shown, not run again')
    where = dict(target='digits', size=None, drop_duplicates=False, weights=None, device='cpu')
    for r in sample(rows):
        with one_thread(): again = run_spec(where, r.spec)
        same = (again['pred'] == r.result['pred']).mean()
        with capsys.disabled(): print(f"\n  again: {r.spec['strategy']}, {r.spec['shots']} labels, seed {r.spec['seed']}, rate {r.spec['lr']}: {same:.1%} the same", end='')
        assert same >= .97, r.spec

def test_both_studies_are_there():
    for tune in 'valid', 'none':
        c = stored_comparison(lesson_records(1), tune=tune)
        assert {x['shots'] for x in c.cells} == {1, 5, 20, 100} and all(x['seeds'] == 5 for x in c.cells)
