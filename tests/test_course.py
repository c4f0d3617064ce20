"The lessons as a reader gets them: listed, written, whole, out of the wheel alone."
import dis, json, os, subprocess, sys, zipfile
from importlib import metadata
from pathlib import Path
import nbformat
import pytest
from tlcourse import cli, course
from tlcourse.base import LESSONS as LISTED, BadInput, lesson_name, lesson_number
from tlcourse.course import install_cell, lesson_copy, lessons, write_lessons
from tlcourse.dev import cells
from conftest import PAGES, ROOT, name

LESSONS = [p for p in PAGES if p.parent.name == 'lessons']
TOLD = [l.path for l in lessons() if l.state == 'told']

def said(capsys, *args):
    code = cli.main([str(a) for a in args])
    o = capsys.readouterr()
    return code, o.out, o.err

def sources(nb): return [c['source'] for c in nb['cells'] if c['cell_type'] == 'code']

# --- the list

def test_list(capsys, tmp_path):
    code, out, err = said(capsys, 'lessons', '--json', tmp_path/'l.json')
    rows = json.loads((tmp_path/'l.json').read_text())['lessons']
    assert (code, err) == (0, '') and [r['file'] for r in rows] == [p.name for p in LESSONS]
    for r in rows:
        assert r['title'] in out and r['title'] in ROOT.joinpath('nbs/lessons', r['file']).read_text(encoding='utf-8')
        assert r['state'] == 'code' or (r['seconds'] > 0 and r['device'])
    assert said(capsys, 'lessons', '5', '03')[1].split('\n')[1].startswith('3  ')

def test_list_says_what_is_missing(monkeypatch, tmp_path):
    "A lesson that is not told, one without a stamp, no lessons at all."
    d = tmp_path/'lessons'
    d.mkdir()
    monkeypatch.setattr(course, '_lessons_folder', lambda: d)
    with pytest.raises(BadInput, match='no lessons'): lessons()
    nb = dict(cells=[dict(cell_type='markdown', id='a', metadata={}, source=['# Title\n', '\n', '> still to be told'])],
              metadata={}, nbformat=4, nbformat_minor=5)
    (d/'11_x.ipynb').write_text(json.dumps(nb))
    l, = lessons()
    assert (l.number, l.title, l.seconds, l.device, l.state) == (11, 'Title', None, None, 'code')
    assert '-' in course.lesson_table([l]) and write_lessons(tmp_path/'to') == []
    with pytest.raises(BadInput, match='still to be told'): write_lessons(tmp_path/'to', [11])

def test_numbers_are_places_in_the_list():
    "The one list of lessons and the files agree; what is listed and not there yet is planned."
    for p in LESSONS: assert p.name == f'{lesson_number(p.stem[3:]):02d}_{p.stem[3:]}.ipynb'
    assert [lesson_name(i) for i in range(1, len(LISTED) + 1)] == [*LISTED] and len({*LISTED}) == len(LISTED)

def test_listing_is_light():
    code = ('import sys; from tlcourse.cli import main; main(["lessons"]); '
            'print(*{m.split(".")[0] for m in sys.modules})')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert not set(r.stdout.split('\n')[-2].split()) & {'torch', 'fastai', 'numpy', 'pandas', 'matplotlib', 'nbformat'}

# --- a copy

@pytest.mark.parametrize('page', TOLD, ids=name)
def test_copy(page):
    for solutions in False, True:
        nb = lesson_copy(page, solutions)
        nbformat.validate(nb)
        text = json.dumps(nb)
        assert ('Solution</summary>' in text) == solutions and '#|' not in text and '](../' not in text
        code = [c for c in nb['cells'] if c['cell_type'] == 'code']
        assert not any(c['outputs'] or c['execution_count'] for c in code)
        assert code[0]['source'] == install_cell() and nb['cells'][0]['source'].startswith('# ')
        whole = ''.join(c['source'] for c in cells(page, 'code'))
        assert sum('= ...\ncheck(' in s for s in sources(nb)) == whole.count('= ...\ncheck(') >= 3

def defined(code): return {o.argval for o in dis.get_instructions(code) if o.opname == 'STORE_NAME'}

def used(code):
    yield from (o.argval for o in dis.get_instructions(code) if o.opname in ('LOAD_NAME', 'LOAD_GLOBAL'))
    for o in code.co_consts:
        if hasattr(o, 'co_code'): yield from used(o)

@pytest.mark.parametrize('page', TOLD, ids=name)
def test_no_cell_needs_one_left_out(page):
    "What only hidden cells define is used by no other."
    kept = [compile(s, 'kept', 'exec') for s in sources(lesson_copy(page))]
    lost = set().union(*(defined(compile(c['source'], 'all', 'exec'))
                         for c in cells(page, 'code'))) - set().union(*map(defined, kept))
    assert not lost & {n for c in kept for n in used(c)}

@pytest.mark.parametrize('page', LESSONS, ids=name)
def test_no_lesson_needs_the_clone(page):
    code = '\n'.join(c['source'] for c in cells(page, 'code'))
    assert not [w for w in ('benchmarks', 'grids/', '../', 'nbs/', 'find_root', 'tlcourse.dev') if w in code]

def test_install_cell(monkeypatch):
    urls = metadata.metadata('tlcourse').get_all('Project-URL')
    assert f"git+{next(u for u in urls if u.startswith('Repository')).split(', ')[1]}" in install_cell()
    asked = []
    class Shell:
        def run_line_magic(self, *a): asked.append(a)
    exec(install_cell(), {'get_ipython': Shell})
    assert not asked
    monkeypatch.setattr('importlib.util.find_spec', lambda n: None)
    exec(install_cell(), {'get_ipython': Shell})
    assert [a[0] for a in asked] == ['pip'] and 'git+https://' in asked[0][1]

@pytest.mark.parametrize('page', TOLD, ids=name)
def test_lesson_has_the_install_cell(page):
    "The Colab buttons open the lessons as they are in the repository."
    first = next(c['source'] for c in cells(page, 'code') if '#| default_exp' not in c['source'])
    assert first == f'#| hide\n{install_cell()}', 'the first code cell is `#| hide` and tlcourse.course.install_cell()'

# --- writing

def test_write(capsys, tmp_path):
    to = tmp_path/'mine'/'course'
    code, out, err = said(capsys, 'lessons', '5', '1', '--to', to, '--json', tmp_path/'l.json')
    assert (code, err) == (0, '') and sorted(os.listdir(to)) == ['01_first_transfer.ipynb', '05_freezing.ipynb']
    res = json.loads((tmp_path/'l.json').read_text())
    assert res['folder'] == str(to) and [r['number'] for r in res['lessons']] == [1, 5]
    assert 'Solution' not in (to/'05_freezing.ipynb').read_text(encoding='utf-8')
    # those there are the same
    assert said(capsys, 'lessons', '--to', to)[0] == 0 and sorted(os.listdir(to)) == [p.name for p in TOLD]

def test_answers_are_not_written_over(capsys, tmp_path):
    five = tmp_path/'05_freezing.ipynb'
    five.write_text('my answers')
    for args in ('--to', tmp_path), ('--solutions', '--to', tmp_path):
        code, out, err = said(capsys, 'lessons', *args)
        assert (code, out) == (2, '') and '05_freezing.ipynb' in err and '--force' in err and err.count('\n') == 1
        assert os.listdir(tmp_path) == [five.name] and five.read_text() == 'my answers'
    assert said(capsys, 'lessons', '--to', tmp_path, '--force', '--solutions')[0] == 0
    assert 'Solution' in five.read_text(encoding='utf-8')

@pytest.mark.parametrize('args,words',
                         [(['77'], "unknown lesson '77'"), (['freezing'], 'known: 1, '), (['-1'], ''),
                          (['1', '--open'], 'needs --to'),
                                        (['--solutions'], 'needs --to'),
                                        (['--force'], 'needs --to'), (['--to', 'file'], 'cannot write'),
                                        (['--to', 'dir', '--json', 'no/such.json'], 'make it first'),
                                        (['--to', 'taken'], 'written over')])
def test_bad_input(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('file').touch()
    Path('taken/01_first_transfer.ipynb').mkdir(parents=True)
    before = sorted(map(str, Path().rglob('*')))
    try: code, out, err = said(capsys, 'lessons', *args)
    except SystemExit as e: code, out, err = e.code, '', words # argparse's own sentence
    assert (code, out) == (2, '') and words in err and sorted(map(str, Path().rglob('*'))) == before

def test_all_or_none(tmp_path, monkeypatch):
    "A disk that is full at the third notebook leaves none."
    write, n = Path.write_text, []
    def full(self, *a, **k):
        n.append(self)
        if len(n) == 3: raise OSError(28, 'No space left on device')
        return write(self, *a, **k)
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(BadInput, match='No space left'): write_lessons(tmp_path)
    assert len(n) == 3 and not os.listdir(tmp_path)

def test_open(tmp_path, monkeypatch, capsys):
    started = []
    class Lab:
        def __init__(self, args): started.append(args)
        def wait(self):
            if len(started) < 2:
                started.append('Ctrl-C')
                raise KeyboardInterrupt
            return 0
    monkeypatch.setattr(course.subprocess, 'Popen', Lab)
    assert said(capsys, 'lessons', '5', '--to', tmp_path, '--open')[0] == 0
    assert started[0][1:] == ['-m', 'jupyterlab', str((tmp_path/'05_freezing.ipynb').resolve())]
    assert said(capsys, 'lessons', '--to', tmp_path, '--open')[0] == 0 and started[-1][-1] == str(tmp_path.resolve())
    monkeypatch.setattr(course, 'find_spec', lambda n: None)
    code, out, err = said(capsys, 'lessons', '--to', tmp_path/'new', '--open')
    assert (code, out) == (2, '') and 'pip install jupyterlab' in err and not (tmp_path/'new').exists()

# --- from a pip install

@pytest.fixture(scope='module')
def unpacked(tmp_path_factory, wheel):
    "The files of the wheel."
    d = tmp_path_factory.mktemp('wheel')
    with zipfile.ZipFile(wheel) as z: z.extractall(d)
    return d

def test_wheel_has_the_lessons(unpacked):
    there = unpacked/'tlcourse/lessons'
    assert sorted(os.listdir(there)) == [p.name for p in LESSONS]
    for p in LESSONS:
        full, stripped = cells(p), cells(there/p.name)
        assert [c['source'] for c in full] == [c['source'] for c in stripped]
        assert all('stamp' in c['source'] for c in stripped if c.get('outputs'))

FROM_WHEEL = '''
import sys, tlcourse
from pathlib import Path
from tlcourse.cli import main
assert Path(tlcourse.__file__).is_relative_to(sys.argv[1]), tlcourse.__file__
assert main(['lessons', '--json', 'list.json']) == 0 and main(['lessons', '--to', 'course', '--solutions']) == 0
'''

def test_lessons_from_the_wheel(unpacked, tmp_path, capsys):
    "The same list and the same notebooks as from the clone."
    env = {**os.environ, 'PYTHONPATH': str(unpacked)}
    r = subprocess.run([sys.executable, '-c', FROM_WHEEL, str(unpacked)], cwd=tmp_path, env=env, capture_output=True,
                       text=True)
    assert not r.returncode, r.stderr
    said(capsys, 'lessons', '--json', tmp_path/'clone.json')
    assert (tmp_path/'list.json').read_text() == (tmp_path/'clone.json').read_text()
    assert len(write_lessons(tmp_path/'course', solutions=True)) == len(TOLD) # refused if one differed

def test_editable_reads_the_clone(): assert {l.path.parent for l in lessons()} == {ROOT/'nbs/lessons'}

@pytest.mark.parametrize('one', [4, '4', '04', [4], ('04',)])
def test_one_lesson_by_its_number(one): assert [l.number for l in lessons(one)] == [4]

def test_a_number_is_no_list_of_digits():
    assert [l.number for l in lessons('12')] == [12]
    with pytest.raises(BadInput, match="unknown lesson '34'"): lessons('34')
