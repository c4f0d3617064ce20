"A sample of the runs that ship with the lessons is run again: same settings, same seed, same answers."
import importlib.util, random, subprocess
import numpy as np, pytest
from tlcourse.base import package_assets
from tlcourse.comparison import stored_comparison
from tlcourse.data import target
from tlcourse.stored_tables import lesson_records
from tlcourse.sweep import one_thread
from tlcourse.world import drawn_targets
from conftest import ROOT

GRIDS = sorted(p.stem for p in package_assets().glob('*.db'))

def script(lesson):
    "The script that made a lesson's grid; its `run` makes one run again"
    path = ROOT/'grids'/('stored_tables.py' if lesson == 'first_transfer' else f'{lesson}.py')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod

def sample(rows, n=3):
    "Fixed by the commit: every commit draws its own"
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return random.Random(head).sample(rows, min(n, len(rows)))

@pytest.fixture(scope='module')
def pixels(): return {target(n).pixel_hash for n in drawn_targets()}

@pytest.mark.parametrize('which', [slice(0, 1), pytest.param(slice(1, 3), marks=pytest.mark.slow)],
                         ids=['first', 'more'])
@pytest.mark.parametrize('lesson', GRIDS)
def test_again(lesson, which, pixels, capsys):
    rows = [r for r in lesson_records(lesson).rows() if 'pred' in r.result]
    assert rows, 'a stored grid without a run'
    rows = [r for r in rows if r.spec['pixel_hash'] in pixels]
    if not rows: pytest.skip('other pixels: the stored runs are shown, not run again')
    run = script(lesson).run
    for r in sample(rows)[which]:
        with one_thread(): again = run(r.spec)
        same = np.mean(again['pred'] == r.result['pred'])
        what = ', '.join(f'{k} {r.spec[k]}'
                         for k in ('strategy', 'optimiser', 'shots', 'seed', 'lr', 'steps') if k in r.spec)
        with capsys.disabled(): print(f'\n  again, {lesson}: {what}: {same:.1%} the same', end='')
        assert same >= .97, r.spec

def test_both_studies_are_there():
    for tune in 'valid', 'none':
        c = stored_comparison(lesson_records('first_transfer'), tune=tune)
        assert {x['shots'] for x in c.cells} == {1, 5, 20, 100} and all(x['seeds'] == 5 for x in c.cells)
