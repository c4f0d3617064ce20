"One-way imports, each fact in one place, everything generated current, nothing of one machine, names and docs."
import ast, configparser, inspect, json, math, os, re, shutil, subprocess, sys, textwrap, zipfile
from email import message_from_string
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest
from fastcore.docments import docments
from tlcourse.dev import long_lines, out_of_date, python_files
from conftest import ROOT

LIB = ROOT/'tlcourse'
MODULES = sorted(p.stem for p in LIB.glob('*.py') if p.stem[0] != '_')
CHECKS = sorted(f'checks.{p.stem}' for p in (LIB/'checks').glob('*.py') if p.stem[0] != '_') # By lesson
ROOMS = {'core': 0, 'lessons': 1, 'tools': 2, 'checks': 3}
COMMANDS = ['pip install -e . && tlcourse compare digits', "pip install -e '.[dev]' && pytest"]

# --- one-way imports

def place(src):
    "Room and number of the notebook that a module is exported from."
    m = re.search(r'File to edit: (?:\.\./)+nbs/(\w+)/(\d+)_\w+\.ipynb', src)
    return m and (ROOMS[m[1]], int(m[2]))

def imported(src):
    "Our modules that a module imports, anywhere in it; a page of checks as 'checks.freezing', or 'checks' for all."
    def ours(name): return name.removeprefix('tlcourse.') if name.startswith('tlcourse.checks') else name.split('.')[1]
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import): yield from (ours(a.name) for a in n.names if a.name.startswith('tlcourse.'))
        elif isinstance(n, ast.ImportFrom):
            mod = f"tlcourse{'.' + n.module if n.module else ''}" if n.level else n.module
            if mod == 'tlcourse': yield from (a.name for a in n.names if a.name != '__version__')
            elif mod.startswith('tlcourse.'): yield ours(mod)

def wrong_imports(srcs):
    """(module, imported module) against the order: core, lessons, tools, checks, and within a room by number; nothing
    imports a page of checks, not the next one either."""
    places = {k: place(s) for k,s in srcs.items()}
    def wrong(k, o): return o not in places or o in CHECKS or not places[o] < places[k]
    return [(k, o) for k,s in srcs.items() for o in imported(s) if wrong(k, o)]

def sources(): return {m: (LIB/f"{m.replace('.', '/')}.py").read_text(encoding='utf-8') for m in MODULES + CHECKS}

def test_every_module_has_a_place(): assert all(map(place, sources().values()))
def test_one_way(): assert not wrong_imports(sources())

def numbers(room): return sorted(int(p.name[:2]) for p in (ROOT/'nbs'/room).glob('[0-9]*.ipynb'))

def test_each_number_stands_once():
    "The lessons' may leave out what is planned; the other rooms' go on without a gap."
    for room in 'core', 'tools': assert numbers(room) == [*range(numbers(room)[0], numbers(room)[-1] + 1)]
    for room in 'lessons', 'checks': assert len({*numbers(room)}) == len(numbers(room)) == len(numbers('lessons'))

def modules_named(src):
    "Our modules that a module names in a string, as one does who imports by name."
    values = [n.value for n in ast.walk(ast.parse(src)) if isinstance(n, ast.Constant)]
    return [m[1] for o in values if isinstance(o, str) and (m := re.fullmatch(r'tlcourse\.(\w+)', o))]

def registers(src):
    "Does a module register a strategy?"
    decorators = [d for n in ast.walk(ast.parse(src)) if isinstance(n, ast.FunctionDef) for d in n.decorator_list]
    return any(isinstance(d, ast.Call) and getattr(d.func, 'id', '') in ('recipe', 'strategy') for d in decorators)

def named_wrongly(srcs):
    "What is named upward by others than the registry, which may name who registers; and who registers without that."
    places, may = {k: place(s) for k,s in srcs.items()}, {k for k,s in srcs.items() if registers(s)}
    up = [(k, o) for k,s in srcs.items() for o in modules_named(s)
          if o in srcs and o != k and places[o] >= places[k]]
    listed = {o for k,o in up if k == 'strategy'}
    return [o for o in up if o[0] != 'strategy'] + [('strategy', o) for o in sorted(listed ^ may)]

def test_strategies_are_registered_by_name():
    "An import by name is an import: upward there is one list of them, of the lessons that register strategies."
    srcs = sources()
    assert not named_wrongly(srcs)
    assert named_wrongly(srcs | {'base': srcs['base'] + "\nx = 'tlcourse.data'\n"}) == [('base', 'data')]
    late = srcs | {'heads': srcs['heads'] + '\n@recipe(rate=1)\ndef f(): pass\n'}
    assert named_wrongly(late) == [('strategy', 'heads')]

def test_reading_fills_the_strategies():
    "Whoever asks for a strategy by its name has imported no lesson for that."
    code = "from tlcourse.strategy import STRATEGIES as s; print(len(s), 'scratch' in s, s['lp-ft'].rate, 'no' in s)"
    assert modules_after(code)[2] == '9 True 0.005 False\n'

def test_warnings_of_others_are_hushed_first():
    "`base` says which warnings of fastai's nobody needs, and must say so before fastai is imported."
    def first(src, what): return next((i for i,l in enumerate(src.splitlines()) if re.match(what, l)), math.inf)
    def late(srcs): return [m for m,s in srcs.items() if first(s, r'(from|import) (fastai|timm)\b') <
                            first(s, r'import tlcourse\.|from \.+\w+ import')]
    assert not late(sources())
    assert late({'x': 'import re\nfrom fastai.optimizer import Adam\nfrom .base import BadInput'}) == ['x']

def test_stored_rows_are_not_found_by_the_pixels_here():
    "Glyphs drawn with another release of the fonts' libraries have another hash than those of a stored grid."
    for p in sorted((ROOT/'nbs/lessons').glob('*.ipynb')):
        cells = json.loads(p.read_text(encoding='utf-8'))['cells']
        code = [c for c in cells if c['cell_type'] == 'code']
        assert not [c['id'] for c in code if '.pixel_hash' in ''.join(c['source'])], p.name

@pytest.mark.parametrize('line', ['from .all import *', 'from tlcourse.all import target', 'import tlcourse.all',
                                  'from tlcourse import all', 'from . import all',
                                  'def f():\n    from .all import x', 'from .nowhere import x'])
def test_one_way_finds_a_planted_import(line):
    srcs = sources()
    before = wrong_imports(srcs)
    srcs['base'] += f'\n{line}\n'
    found = [o for o in wrong_imports(srcs) if o not in before]
    assert found == [('base', 'nowhere' if 'nowhere' in line else 'all')]

@pytest.mark.parametrize('user', ['exercises', 'cli', 'checks.inside'])
@pytest.mark.parametrize('line', ['from tlcourse.checks.freezing import _still', 'import tlcourse.checks.freezing',
                                  'from tlcourse.checks import freezing'])
def test_nothing_imports_a_page_of_checks(user, line):
    srcs = sources()
    srcs[user] += f'\n{line}\n'
    assert wrong_imports(srcs) == [(user, 'checks' if 'checks import' in line else 'checks.freezing')]

def test_a_page_of_checks_for_each_lesson():
    "It stands under the lesson's name and number, and gives no name to readers."
    def names(room): return sorted(p.name for p in (ROOT/f'nbs/{room}').glob('[0-9]*.ipynb'))
    assert names('checks') == names('lessons') and CHECKS == sorted(f'checks.{n[3:-6]}' for n in names('checks'))
    assert not [m for m in CHECKS if public(m)]

def made_in(src):
    "Names that a module defines itself, at its top or in a class or function of it."
    nodes = list(ast.walk(ast.parse(src)))
    return ({n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
            | {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)})

def passed_on(srcs, users):
    "(user, module, name) of what is imported from a module of ours that has it from elsewhere."
    made = {m: made_in(s) for m,s in srcs.items() if m != 'all'}
    for k,s in users.items():
        for n in ast.walk(ast.parse(s)):
            if not isinstance(n, ast.ImportFrom) or not n.module: continue
            m = n.module if n.level else n.module.removeprefix('tlcourse.')
            if m in made and (n.level or n.module.startswith('tlcourse.')):
                yield from ((k, m, a.name) for a in n.names if a.name != '*' and a.name not in made[m])

def test_each_name_is_imported_from_its_home():
    "Nothing is reachable in two ways: not in the library, the tests, the benchmarks or the grids."
    others = {p.name: p.read_text(encoding='utf-8') for d in ('tests', 'benchmarks', 'grids')
              for p in (ROOT/d).glob('*.py')}
    srcs = sources()
    assert not list(passed_on(srcs, srcs | others))
    planted = {'x': 'from tlcourse.data import BatchAugment, target'}
    assert list(passed_on(srcs, planted)) == [('x', 'data', 'BatchAugment')]

# --- one fact, one file; sdist and wheel

@pytest.fixture(scope='session')
def built(wheel):
    "Of the wheel: (names in it, its metadata, its entry points)."
    z = zipfile.ZipFile(wheel)
    read = lambda end: z.read(next(n for n in z.namelist() if n.endswith(end))).decode()
    return z.namelist(), message_from_string(read('METADATA')), read('entry_points.txt')

@cache
def settings(section='DEFAULT'):
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg[section]

def norm(reqs):
    from packaging.requirements import Requirement
    return sorted(str(Requirement(r)) for r in reqs)

def test_settings_are_used(built):
    _, meta, points = built
    reqs = meta.get_all('Requires-Dist')
    assert norm(r for r in reqs if 'extra ==' not in r) == norm(settings()['requirements'].split())
    extras = {k.removesuffix('_requirements'): v.split() for k,v in settings().items() if k.endswith('_requirements')}
    assert sorted(meta.get_all('Provides-Extra')) == sorted(extras)
    for k,v in extras.items():
        assert norm(r.split(';')[0] for r in reqs if re.search(rf'extra == .{k}.$', r)) == norm(v)
    assert meta.get_all('Classifier') == [c.strip() for c in settings()['classifiers'].splitlines()]
    points = re.sub(r'[ \t]', '', points).splitlines()
    for s in settings()['console_scripts'].splitlines(): assert s.strip() in points
    assert 'tlcourse=tlcourse._modidx:d' in points

BUILDERS = 'docs', 'dev' # Their modules stay out of the wheel
# The modules, and the extras that bring what only they import
EXTRAS = {'docs': 'docs', 'dev': 'dev', 'sweep': 'distributed'}

def others(src):
    "The top-level packages, neither Python's nor ours, that a module imports, anywhere in it."
    for n in ast.walk(ast.parse(src)):
        names = ([a.name for a in n.names] if isinstance(n, ast.Import)
                 else [n.module] if isinstance(n, ast.ImportFrom) and not n.level else [])
        yield from {o.split('.')[0] for o in names} - set(sys.stdlib_module_names) - {'tlcourse'}

def undeclared(srcs):
    "(module, package) imported, but brought by no requirement of our own, only by somebody else's."
    from packaging.requirements import Requirement
    def names(key): return {canonical(Requirement(r).name) for r in settings()[key].split()}
    dists = packages_distributions()
    ours = names('requirements')
    more = {m: names(f'{x}_requirements') | names('docs_requirements') for m,x in EXTRAS.items()}
    return [(m, o) for m,s in srcs.items() for o in sorted(others(s))
            if not {canonical(d) for d in dists.get(o, [o])} & (ours | more.get(m, set()))]

def canonical(name): return re.sub(r'[-_.]+', '-', name).lower()

def test_what_is_imported_is_declared():
    srcs = sources()
    assert not undeclared(srcs)
    srcs['data'] += '\ndef f(): import sphinx, yaml'
    assert undeclared(srcs) == [('data', 'sphinx'), ('data', 'yaml')]

def asked_for():
    "Package -> the releases of it that pip may take."
    from packaging.requirements import Requirement
    asked = [Requirement(r) for k in ('requirements', 'docs_requirements') for r in settings()[k].split()]
    return {canonical(r.name): r.specifier for r in asked}

def test_versions():
    "The lowest release that was tested is the lowest that pip may take, it may take the highest; here is none lower."
    from importlib.metadata import version
    from packaging.version import Version
    tested = {k: settings('tested')[k].split() for k in settings('tested') if k not in settings()}
    assert set(tested) >= {'fastai', 'torch', 'timm', 'nbdev', 'pillow'}
    for name,(low,high) in tested.items():
        assert [Version(o.version) for o in asked_for()[name] if o.operator == '>='] == [Version(low)], name
        assert high in asked_for()[name] and Version(low) <= Version(high), name
        assert Version(version(name)) >= Version(low), name

def test_one_fact_one_file():
    pyproject = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    dynamic = re.search(r'^dynamic = \[(.*?)\]', pyproject, re.M|re.S)[1]
    for k in ('version', 'dependencies', 'optional-dependencies', 'scripts', 'entry-points', 'classifiers'):
        assert f'"{k}"' in dynamic
    static = re.findall(r'^(\w[\w-]*) =', pyproject.split('[project]')[1].split('\n[')[0], re.M)
    assert not set(static) & {'version', 'dependencies', 'classifiers', 'scripts'}
    assert not set(settings()) & {'version', 'description', 'author', 'keywords', 'license', 'min_python', 'lib_name'}

def test_version(built):
    import tlcourse
    assert tlcourse.__version__ == built[1]['Version']
    code = 'import tlcourse; print([o for o in vars(tlcourse) if o[0] != "_"])'
    public = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert public.stdout.strip() == '[]', 'the root exports only __version__'

def test_wheel_holds_everything(built, tracked):
    ours = {p.relative_to(ROOT).as_posix() for p in tracked if p.is_relative_to(LIB)}
    assert ours - set(built[0]) == {f'tlcourse/{m}.py' for m in BUILDERS}, "all but the builder's tools"
    assert not [n for n in built[0] if not n.startswith('tlcourse')]

WITHOUT_BUILDERS = '''
import sys
sys.meta_path = [o for o in sys.meta_path if not str(getattr(o, '__module__', '')).startswith('__editable__')]
import tlcourse
from importlib.util import find_spec
from pathlib import Path
assert Path(tlcourse.__file__).is_relative_to(sys.argv[1]), tlcourse.__file__
assert not find_spec('tlcourse.dev') and not find_spec('tlcourse.docs')
import tlcourse.all
from tlcourse.cli import main
main(['compare', '--help'])
'''

def test_the_wheel_works_without_the_builders_tools(wheel, tmp_path):
    "Everything is imported, and the commands are there."
    with zipfile.ZipFile(wheel) as z: z.extractall(tmp_path/'wheel')
    env = {**os.environ, 'PYTHONPATH': str(tmp_path/'wheel')}
    r = subprocess.run([sys.executable, '-c', WITHOUT_BUILDERS, str(tmp_path/'wheel')], cwd=tmp_path, env=env,
                       capture_output=True, text=True)
    assert not r.returncode and '--strategies' in r.stdout, r.stderr

# --- generated files

def test_nothing_out_of_date(): assert not out_of_date(ROOT)

def test_out_of_date_finds_changes(tmp_path):
    "A module edited by hand, one left behind, a notebook with an execution count, an old README."
    for d in ('nbs', 'tlcourse'):
        shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__', '.*', 'assets'))
    for f in ('pyproject.toml', 'README.md'): shutil.copy(ROOT/f, tmp_path)
    before = set(out_of_date(tmp_path))
    with open(tmp_path/'tlcourse/base.py', 'a') as f: f.write('x = 1\n')
    for o in ('left.py', 'checks/left.py'): (tmp_path/'tlcourse'/o).touch()
    (tmp_path/'README.md').write_text('old')
    nb = json.loads((p := tmp_path/'nbs/tools/33_dev.ipynb').read_text(encoding='utf-8'))
    next(c for c in nb['cells'] if c['cell_type'] == 'code')['execution_count'] = 3
    p.write_text(json.dumps(nb), encoding='utf-8')
    found = {o.split(':')[0] for o in set(out_of_date(tmp_path)) - before}
    assert (found | {o.split(':')[0] for o in before}
            >= {'tlcourse/base.py', 'tlcourse/left.py', 'tlcourse/checks/left.py', 'README.md',
                'nbs/tools/33_dev.ipynb'})

def test_readme_commands():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert [l for l in text.splitlines() if l.startswith('pip install -e')] == COMMANDS
    before = text[:text.index(COMMANDS[0])]
    for s in ('In a clone', 'Python >= 3.10', 'virtual environment'): assert s in before

def test_readme_figures():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert 'still to be measured' not in text, 'store the comparison in grids/digits.json and run the index'

def test_readme_links():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    for l in re.findall(r'\]\((?!\w+:|#)([^)#]+)', text): assert (ROOT/l).exists(), f'README.md links to {l}'

def test_rooms():
    "The modules that the README names are those there are."
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    named = set(re.findall(r'`(\w+)`', '\n'.join(re.findall(r'^- \*\*(?:core|lessons|tools)\*\*.*', text, re.M))))
    assert named == set(MODULES)

def test_ci_reads_the_readme():
    ci = (ROOT/'.ci/run').read_text(encoding='utf-8')
    assert os.access(ROOT/'.ci/run', os.X_OK)
    assert 'tlcourse compare' not in ci and '.[dev]' not in ci and 'README.md' in ci

def test_ci_runs_what_pytest_leaves_out():
    "`pytest` alone deselects two marks; the last stage takes both."
    settings = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    assert "-m 'not sweep and not slow'" in settings
    assert 'pytest -m "sweep or slow"\n' in (ROOT/'.ci/run').read_text(encoding='utf-8')

# --- lines that can be read

def test_no_long_lines():
    "No line over 120 characters in the modules, the tests, the benchmarks and the grids."
    files = python_files(ROOT)
    assert {p.parent.name for p in files} == {'tlcourse', 'checks', 'tests', 'benchmarks', 'grids'} and len(files) > 100
    assert not {p.relative_to(ROOT).as_posix(): at for p in files if (at := long_lines(p))}

# --- nothing of one machine

def strings(p):
    "The text of a tracked file that a person would read; of a notebook without its pictures."
    if p.suffix == '.ipynb':
        nb = json.loads(p.read_text(encoding='utf-8'))
        for c in nb['cells']:
            for o in c.get('outputs', []):
                o['data'] = {k: v for k,v in o.get('data', {}).items() if not k.startswith('image/') or 'svg' in k}
        return json.dumps(nb, ensure_ascii=False)
    try: return p.read_text(encoding='utf-8')
    except UnicodeDecodeError: return ''

def hosts():
    "The package registries that this machine uses, but for the public one."
    conf = subprocess.run([sys.executable, '-m', 'pip', 'config', 'list'], capture_output=True, text=True).stdout
    conf += ' '.join(v for k,v in os.environ.items() if k.startswith(('PIP_', 'UV_')))
    return {h for h in re.findall(r'https?://(?:[^/@\s]*@)?([\w.-]+)', conf) if h not in ('pypi.org', 'localhost')}

_paths = re.compile(r'(?<![\w.~$}\])>-])/(?:work|root|home|tmp|opt|Users|private|mnt)/\w[\w./-]*')

def test_no_machine(tracked):
    here = {str(ROOT), sys.prefix, str(Path.home())} - {'/'} | hosts()
    bad = [(p.relative_to(ROOT).as_posix(), m) for p in tracked for s in [strings(p)]
           for m in [*_paths.findall(s), *(h for h in here if h in s)]]
    assert not bad

def test_no_machine_finds_paths():
    for d in ('work', 'home', 'tmp'): assert _paths.search(f"FileNotFoundError: '/{d}/x/y.png'")
    assert not _paths.search('nbs/home/x and ../tmp/x and https://a.org/work/x')

# --- names and docs

def public(m):
    mod = import_module(f'tlcourse.{m}')
    return {n: getattr(mod, n) for n in getattr(mod, '__all__', [])}

def lacking(brought, pages):
    "(page, module, name) of what a lesson calls by a name that is public in a module, and that `all` does not bring."
    at = {n: m for m in set(MODULES) - {'all', 'cli', 'dev', 'docs'} for n in public(m) if n not in brought}
    for p in pages:
        nodes = []
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            src = '\n'.join(l for l in ''.join(c['source']).splitlines() if l.lstrip()[:1] not in ('%', '!'))
            if c['cell_type'] == 'code': nodes += ast.walk(ast.parse(src))
        names = [n for n in nodes if isinstance(n, ast.Name)]
        own = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        own |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        own |= {a.asname or a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
        yield from ((p.stem, at[n.id], n.id) for n in names if n.id in at and n.id not in own)

def test_all_has_what_lessons_use():
    import tlcourse.all as ours
    pages = sorted((ROOT/'nbs/lessons').glob('*.ipynb'))
    assert not list(lacking(ours.__all__, pages))
    some = {'Wilson', 'wilson', 'compare', 'ask'} & set(ours.__all__)
    assert {n for _,_,n in lacking(set(ours.__all__) - some, pages)} == some

# What functions that readers call give back or take, and what is asked for by name alone
CONTRACTS = {'NearestNeighbours', 'Needed', 'NoSync', 'fused_adam', 'weights_hash'}

def test_all_is_for_readers():
    "Each name of the core that it has stands in a lesson, in the README or in a page beside it."
    import tlcourse.all as ours
    pages = [*(ROOT/'nbs/lessons').glob('*.ipynb'), *(ROOT/'nbs').glob('*.ipynb')]
    cells = [''.join(c['source']) for p in pages for c in json.loads(p.read_text(encoding='utf-8'))['cells']]
    said = set(re.findall(r'\w+', ' '.join(cells)))
    core = {m: set(public(m)) for m,s in sources().items() if place(s)[0] == 0}
    assert not {o for ns in core.values() for o in ns} & set(ours.__all__) - said - CONTRACTS

def test_names_hide_none_of_fastai():
    import tlcourse.all as ours, fastai.vision.all as fv
    hides = [n for n in ours.__all__ if n != 'run' and hasattr(fv, n) and getattr(fv, n) is not getattr(ours, n)]
    assert not hides

def test_names_are_in_one_module():
    at = {}
    for m in sorted(set(MODULES) - {'all', 'cli', 'dev', 'docs'}):
        for n in public(m): at.setdefault(n, []).append(m)
    assert not {n: ms for n,ms in at.items() if len(ms) > 1}

def named(m):
    "What a module defines without an underscore: what is for readers, and what is for other modules alone."
    mod = import_module(f'tlcourse.{m}')
    own = {n: o for n,o in vars(mod).items() if n[0] != '_' and getattr(o, '__module__', '') == mod.__name__}
    return public(m) | {n: o for n,o in own.items() if inspect.isfunction(o) or inspect.isclass(o)}

def event(o, k): return any(b.__name__ == 'Callback' for b in o.__mro__) and re.match('(before|after)_', k)

def functions(m):
    "(name, function, docstring of its class) of each public function and method of a module."
    for n,o in named(m).items():
        if inspect.isfunction(o): yield n, o, ''
        if not inspect.isclass(o): continue
        for k,f in vars(o).items():
            # Not those that dataclass writes, that fastai calls by itself, or that a base class describes
            if not inspect.isfunction(f) or not f.__code__.co_filename.endswith(f'{m}.py'): continue
            own = k[0] != '_' and not event(o, k) and not any(hasattr(b, k) for b in o.__mro__[1:])
            if own or k == '__init__': yield f'{n}.{k}', f, o.__doc__

def undocumented(m):
    "Public functions, classes and methods without a docstring, and their parameters without a docment."
    for n,o in named(m).items():
        if (inspect.isfunction(o) or inspect.isclass(o)) and not o.__doc__: yield n
    for k,f,_ in functions(m):
        if not f.__doc__ and not k.endswith('__init__'): yield k
        doc = docments(f, full=True)
        for p in inspect.signature(f).parameters.values():
            if p.name == 'self' or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL): continue
            if not (doc.get(p.name) or {}).get('docment'): yield f'{k}({p.name})'

@pytest.mark.parametrize('module', [m for m in MODULES if m != 'all'])
def test_documented(module): assert not list(undocumented(module))

def inside(f):
    "What a function is made of, without the functions in it."
    todo = list(f.body)
    while todo:
        yield (n := todo.pop())
        if not isinstance(n, (ast.FunctionDef, ast.Lambda, ast.ClassDef)): todo += ast.iter_child_nodes(n)

def unsaid(src, more=''):
    "What the source of a function does and its signature and docstring do not say: 'return', 'raises'."
    f = ast.parse(src).body[0]
    nodes, doc = list(inside(f)), ast.get_docstring(f) or ''
    head = src.splitlines()[:f.body[0].lineno - 1] or [src]
    close = re.search(r'\)[^()#]*:\s*#(.*)', head[-1]) # Beside the closing bracket
    said = ' '.join([doc, more, *(l.split('#', 1)[1] for l in head if '#' in l)])
    gives = any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in nodes)
    for n in nodes:
        none = isinstance(n, ast.Return) and isinstance(n.value, ast.Constant) and n.value.value is None
        if isinstance(n, ast.Return) and n.value is not None and not none: gives = True
    if gives and not f.returns and not close: yield 'return'
    errors = [n.exc.func.id for n in nodes if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
              and isinstance(n.exc.func, ast.Name)]
    if {'BadInput', 'unknown', 'SealBroken'} & set(errors) and 'BadInput' not in said: yield 'raises'

@pytest.mark.parametrize('module', [m for m in MODULES if m != 'all'])
def test_what_comes_back_and_what_is_raised(module):
    "A value that is returned has its annotation or its docment; bad input that is refused is said."
    found = [(k, o) for k,f,more in functions(module)
             for o in unsaid(textwrap.dedent(inspect.getsource(inspect.unwrap(f))), more or '')]
    assert not found

@pytest.mark.parametrize('src,found', [
    ('def f(x): # The half\n    return x/2', []), ('def f(x) -> float:\n    return x/2', []),
    ('def f(x):\n    return x/2', ['return']), ('def f(x):\n    yield x', ['return']),
    ('def f(x):\n    def g(): return x\n    g()', []), ('def f(x):\n    if x: return\n    return None', []),
    ('def f(x):\n    "Refuses."\n    raise BadInput(x)', ['raises']),
    ('def f(x # Raises `BadInput`\n     ):\n    raise BadInput(x)', []),
    ('def f(x):\n    "Raises `BadInput`."\n    raise unknown("x", x, [])', [])])
def test_what_is_not_said_is_found(src, found): assert list(unsaid(src)) == found

# --- what an import may cost

_report = '''
import sys, time, json
sys.stderr.write('\\n@' + json.dumps([sorted({m.split('.')[0] for m in sys.modules}), time.process_time()]))'''

def modules_after(code):
    "The top-level packages in a fresh process after `code`, the seconds of CPU it took, and what it printed."
    r = subprocess.run([sys.executable, '-c', code + _report], capture_output=True, text=True, cwd=ROOT)
    assert not r.returncode, r.stderr
    mods, sec = json.loads(r.stderr.split('\n@')[-1])
    return set(mods), sec, r.stdout

def test_base_and_cli_are_stdlib():
    bare = modules_after('')[0]
    got = modules_after('import tlcourse.base, tlcourse.cli')[0] - bare - set(sys.stdlib_module_names) - {'tlcourse'}
    assert not got

@pytest.mark.parametrize('module', ['stats', 'records', 'sweep'])
def test_no_fastai_at_import(module): assert 'fastai' not in modules_after(f'import tlcourse.{module}')[0]

def test_help_is_quick():
    code = '''import sys
sys.argv = ['tlcourse', '--help']
from tlcourse.cli import main
try: main()
except SystemExit as e: assert not e.code'''
    runs = [modules_after(code) for _ in range(3)]
    mods, _, out = runs[0]
    assert 'compare' in out and not mods & {'torch', 'fastai', 'numpy', 'pandas', 'matplotlib'}
    assert min(sec for _,sec,_ in runs) < 1

# --- the tests' own rules

SKIPPED = {'because': "import pytest\ndef test(): pytest.skip('because')",
           'module': "import pytest\npytest.importorskip('no_such_module')",
           'assets': "import pytest\n@pytest.mark.assets\ndef test(): pass",
           'missing': "import pytest\ndef test(): pytest.skip('no assets')",
           'browser': "import pytest\n@pytest.mark.browser\ndef test(): pass"}

@pytest.mark.parametrize('ci,there,fails', [('', False, set()), ('1', False, {'because', 'module', 'browser'}),
                                            ('', True, {'missing'}),
                                            ('1', True, {'because', 'module', 'browser', 'missing'})])
def test_skips(ci, there, fails, tmp_path):
    """In `.ci/run` only `gpu` and `no assets` may skip (elsewhere `no browser` too), and `no assets`
    nowhere where the assets are."""
    (tmp_path/'tests').mkdir()
    shutil.copy(ROOT/'tests/conftest.py', tmp_path/'tests')
    for k,src in SKIPPED.items(): (tmp_path/f'tests/test_{k}.py').write_text(src)
    # no browser there
    env = {**os.environ, 'TLCOURSE_CI': ci, 'TLCOURSE_ASSETS': str(tmp_path) if there else '', 'PATH': str(tmp_path)}
    env.pop('TLCOURSE_CHROMIUM', None)
    r = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-rfE', '-p', 'no:cacheprovider',
                        '--continue-on-collection-errors', 'tests'], cwd=tmp_path,
                       env=env, capture_output=True, text=True)
    assert set(re.findall(r'^(?:FAILED|ERROR) tests/test_(\w+)\.py', r.stdout, re.M)) == fails, r.stdout
    assert bool(r.returncode) == bool(fails)
