"""What a reader sees and touches of lessons in JupyterLab, in chromium. As most readers, it has no folder of photos.
A lesson that was run here is not executed again by test_notebooks.py."""
import json, re, subprocess, sys
import pytest
from PIL import Image
from tlcourse.dev import _clock, _cpu, _spent, digest, executed_path
from tlcourse.docs import WIDGET_VIEW
from conftest import ROOT, name
from browser import INPUTS, KINDS, LESSONS, Notebook, answer, errors, having, lab, move, names, tab, unrun

pytestmark = pytest.mark.browser

def in_lab():
    "Lesson 1, a lesson for each kind of control, the rarest kind first, and one of the others by the commit."
    res = LESSONS[:1]
    for ps in sorted((having(k, LESSONS) for k in KINDS), key=len):
        if ps and not set(ps) & set(res): res.append(ps[0])
    rest = [p for p in LESSONS if p not in res]
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return res + rest[int(commit, 16) % len(rest):][:1] if rest else res

IN_LAB = in_lab()

@pytest.fixture(scope='module')
def course(tmp_path_factory):
    "JupyterLab in a folder that `tlcourse lessons --to` has written: the folder and the address."
    d = tmp_path_factory.mktemp('lab')
    for o in ('work', 'private'): (d/o).mkdir()
    code = 'import sys; from tlcourse.cli import main; sys.exit(main())'
    subprocess.run([sys.executable, '-c', code, 'lessons', '--to', d/'work'], check=True)
    with lab(d/'work', d/'private') as address: yield d/'work', address

def with_hidden(page, copy):
    """Into a reader's copy, which needs none of them (test_course.py), the cells of the page that it leaves out, for
    the execution has them; and last the clock of an execution."""
    nb = json.loads(copy.read_text(encoding='utf-8'))
    theirs, mine = {c['id']: c for c in nb['cells']}, json.loads(page.read_text(encoding='utf-8'))['cells']
    clean = dict(outputs=[], execution_count=None)
    nb['cells'] = [theirs.get(c['id'], {**c, **clean}) for c in mine if c['id'] in theirs or c['cell_type'] == 'code']
    assert len(nb['cells']) >= len(theirs)
    nb['cells'].append(dict(cell_type='code', id='clock', metadata={}, source=_clock, **clean))
    copy.write_text(json.dumps(nb), encoding='utf-8')

def of_the_reader(c): return not c['source'].startswith('#|') and c['id'] != 'clock'

def keep_execution(page, found):
    "What Run All has made of a lesson, where `execute` looks for an execution of the same state."
    ran, nb = {c['id']: c for c in found}, json.loads(page.read_text(encoding='utf-8'))
    for c in nb['cells']:
        if c['cell_type'] == 'code': c.update({k: ran[c['id']][k] for k in ('outputs', 'metadata', 'execution_count')})
    nb['metadata']['tlcourse'] = dict(digest=digest(page), seconds=round(_spent(nb), 2), error='',
                                      cpu=round(_cpu(ran['clock']), 2))
    to = executed_path(page)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(nb), encoding='utf-8')

def labelled(box):
    "Each input has a name; ipywidgets gives its sliders none, so there the words beside it count."
    said = box.aria_snapshot()
    assert all(all(names(said, r)) for r in ('combobox', 'checkbox', 'textbox', 'button')), said
    sliders = box.locator('.widget-slider')
    assert all(o.strip() for o in sliders.locator('.widget-label').all_inner_texts())
    assert sliders.locator('.widget-label').count() == len(names(said, 'slider'))

def guess_live(nb, i, lesson, folder):
    "Answer, commit, and let the page reveal: the guesses are entered in the score card."
    box = nb.show(i).locator('.widget-vbox').first
    labelled(box)
    asked = box.locator('input, [role=slider]')
    for q in asked.all(): q.press('ArrowRight') if q.get_attribute('role') == 'slider' else answer(q)
    box.get_by_role('button', name='Commit').press('Enter')
    n = asked.count()
    box.get_by_text(f'{n} of {n} kept').wait_for()
    reveal = next(j for j,c in enumerate(nb.cells) if j > i and of_the_reader(c) and '.reveal(' in c['source'])
    nb.run(reveal)
    shown = nb.show(reveal).locator('.tlc-reveal')
    shown.get_by_text(re.compile('foreseen|a surprise')).first.wait_for()
    assert '"prediction"' in (folder/'scores.json').read_text()

def own_picture(button, out, tmp_path):
    "A picture of the reader's own: a figure of it appears."
    p = tmp_path/'mine.png'
    Image.linear_gradient('L').save(p)
    with button.page.expect_file_chooser() as chooser: button.press('Enter')
    chooser.value.set_files(p)
    out.locator('.tlc svg').nth(1).wait_for()

@pytest.mark.sweep
@pytest.mark.parametrize('lesson', IN_LAB, ids=name)
def test_lesson_in_lab(lesson, chrome, course, tmp_path, record_property):
    "Run All passes with each exercise open; each control has a name and moves."
    record_property('lessons in JupyterLab', f'{name(lesson)}{" (by the commit)" if lesson == IN_LAB[-1] else ""}')
    folder, address = course
    with_hidden(lesson, folder/lesson.name)
    with tab(chrome) as (page, guard):
        nb = Notebook(page, address, lesson.name)
        passed, found = nb.run_all(), nb.cells
        assert passed and not errors(found) and not unrun(found), (errors(found), unrun(found))
        keep_execution(lesson, found)
        texts = [''.join(o.get('data', {}).get('text/plain', ''))
                 for c in filter(of_the_reader, found) for o in c.get('outputs', [])]
        said = [t for t in texts if 'Exercise' in t]
        assert len(said) >= 3 and all('open' in o for o in said), said
        live = [i for i,c in enumerate(found) for o in c.get('outputs', [])
                if of_the_reader(c) and WIDGET_VIEW in o.get('data', {})]
        for i in live:
            out = nb.show(i)
            for box in out.locator('.widget-vbox:has(.tlc-bare)').all():
                labelled(box)
                move(box.locator(INPUTS).all(), box.locator('.widget-html:has(.tlc-bare)').first,
                     f'{lesson.name}, cell {i}')
            if (button := out.get_by_role('button', name='Your pictures')).count(): own_picture(button, out, tmp_path)
            elif not out.locator('.tlc-bare').count(): guess_live(nb, i, lesson, folder)
        kinds = [k for k in KINDS if lesson in having(k, LESSONS)]
        assert bool(live) == bool(kinds)
        assert not guard.errors
        nb.close()

@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_is_in_a_lesson(kind): assert having(kind, LESSONS) and set(having(kind, IN_LAB))
