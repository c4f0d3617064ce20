"Every notebook passes in a fresh kernel, executed once; lessons keep their form."
import json, re
import pytest
from tlcourse.dev import Executed, cells, long_cells
from conftest import LONG, PAGES, ROOT, SECONDS, name, numberless, together

LESSONS = [p for p in PAGES if p.parent.name == 'lessons']
SPINE = ['Question', 'Predict', 'Mechanism', 'Experiment', 'Reading the result', 'Break it', 'On pictures',
         'Recap and exercises']
UNTOLD = 'still to be told'

def told(p): return not any(UNTOLD in c['source'] for c in cells(p)[:3])

@pytest.mark.parametrize('page', PAGES, ids=name)
def test_passes(page, executed, record_property):
    e = executed[page]
    how = 'failed' if e.error else 'an earlier execution of the same state' if e.reused else ''
    record_property('notebooks', f'{e.seconds:6.1f} s, {e.cpu:6.1f} s of CPU  {name(page)}  {how}'.rstrip())
    assert not e.error, f'\n{e.error}'
    assert not [o for c in cells(e.path, 'code') for o in c['outputs'] if o['output_type'] == 'error']

@pytest.mark.parametrize('page', PAGES, ids=name)
def test_saved_outputs(page, executed):
    "The page in the repository was saved with its outputs, and without an error."
    def shown(o): return o['output_type'] == 'execute_result'
    empty = [c['source'] for c,e in zip(cells(page), cells(executed[page].path))
             if any(map(shown, e.get('outputs', []))) and not c['outputs']]
    assert not empty, f'saved without outputs; python -m tlcourse.dev run --inplace {name(page)}'
    assert not [c['source'] for c in cells(page, 'code') for o in c['outputs'] if o['output_type'] == 'error']

def in_time(e):
    "90 seconds; where the cores had other work too, its own processor time has them, and half as many may be waiting."
    return e.seconds <= 90 or e.cpu <= 90 and e.seconds <= 135

@pytest.mark.parametrize('page', LESSONS, ids=name)
def test_lesson_time(page, executed): assert in_time(executed[page]), executed[page]

@pytest.mark.parametrize('seconds,cpu,good', [(89, 120, True), (91, 91, False), (134, 89, True), (136, 1, False)])
def test_what_is_in_time(seconds, cpu, good): assert in_time(Executed(ROOT, seconds, '', cpu=cpu)) == good

@pytest.mark.parametrize('page', PAGES, ids=name)
def test_one_process_executes_a_page(page):
    asked = [f'tests/{t}[{name(page)}]' for t in ('test_notebooks.py::test_passes', 'test_prose.py::test_executed')]
    assert {*map(together, asked)} == {name(page)}
    assert together(f'tests/test_lab.py::test_lesson_in_lab[{name(page)}]') == 'tests/test_lab.py'

def test_long_pages(request):
    "Each is a page; all that executes one, and only that, is left to the slow stage."
    assert set(LONG) < {*map(name, PAGES)}
    assert set(SECONDS) < {*map(numberless, map(name, PAGES))} - {*map(numberless, LONG)}
    chosen = request.session.items
    if request.config.option.markexpr == 'not sweep and not slow':
        assert not [o.nodeid for o in chosen if 'executed' in o.fixturenames and together(o.nodeid) in LONG]

@pytest.mark.parametrize('page', LESSONS, ids=name)
def test_lesson_form(page):
    code = cells(page, 'code')
    off = [c['source'] for c in code if re.search(r'^#\|\s*eval:\s*false', c['source'], re.M)]
    assert not off, 'Run All would stop there'
    assert not long_cells(page), 'cells of over 20 lines'

def test_a_long_cell_is_seen(tmp_path):
    nb = json.loads(LESSONS[0].read_text(encoding='utf-8'))
    for i,n in enumerate((20, 21)):
        nb['cells'].append(dict(cell_type='code', id=f'long{i}', metadata={}, outputs=[], execution_count=None,
                                source='#| export\n' + '\n'.join(f'x{n} = {j}\n' for j in range(n - 1))))
    (tmp_path/'page.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    assert long_cells(tmp_path/'page.ipynb') == ['x21 = 0']

@pytest.mark.parametrize('page', [p for p in LESSONS if told(p)], ids=name)
def test_lesson_spine(page):
    heads = [c['source'][3:].splitlines()[0] for c in cells(page, 'markdown') if c['source'].startswith('## ')]
    found = [next((s for s in SPINE if h.startswith(s)), None) for h in heads]
    assert [s for s in found if s] == SPINE

def test_lesson_list():
    "The index says of each lesson what is true of it."
    table = next(c['source'] for c in cells(ROOT/'nbs/index.ipynb', 'markdown') if c['source'].count('\n| ') > 10)
    row = re.compile(r'^\| (\d+) \| (?:\[.*?\]\((.*?)\)|.*?) \| (\w+) \|$', re.M)
    rows = {int(n): (link, state) for n,link,state in row.findall(table)}
    assert list(rows) == list(range(1, 22))
    there = {int(p.name[:2]): (f'lessons/{p.name}', 'told' if told(p) else 'code') for p in LESSONS}
    assert rows == {n: there.get(n, ('', 'planned')) for n in rows}
