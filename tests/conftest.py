"""One thread, no window, and reasons to skip: `gpu`, `no assets`, an optional engine that is not installed and, outside
`.ci/run`, `no browser`.

A whole run takes two processes (pytest-xdist), a run of named files one; `-n 0`, `-n 2` say it otherwise."""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported; for the processes that tests start too
os.environ.setdefault('MPLBACKEND', 'Agg')
if os.environ.get('TLCOURSE_ASSETS'): os.environ['TLCOURSE_ASSETS'] = os.path.abspath(os.environ['TLCOURSE_ASSETS'])
import hashlib, json, re, shutil, subprocess, sys, tarfile, time
from dataclasses import replace
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling
from tlcourse.base import photo_assets
from tlcourse.dev import execute, pages

ROOT = Path(__file__).parent.parent
PAGES = pages(root=ROOT)

def name(page): return page.relative_to(ROOT/'nbs').with_suffix('').as_posix()

def chromium():
    "The browser of the tests: the one that TLCOURSE_CHROMIUM names, or the first on the path; None if there is none."
    if named := os.environ.get('TLCOURSE_CHROMIUM'):
        return shutil.which(named) or pytest.fail(f'TLCOURSE_CHROMIUM={named}: there is no such program')
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

def refused_skip(reason):
    "Why a test may not be skipped for this reason, or None if it may."
    if reason == 'no assets' and photo_assets(): return f"skipped for 'no assets', and they are in {photo_assets()}"
    absent = [f'{o} is not installed' for o in ('ray', 'accelerate') if not find_spec(o)] # They are optional
    if os.environ.get('TLCOURSE_CI') == '1' and reason not in ('gpu', 'no assets', *absent):
        return f"skipped for {reason!r}: only {', '.join(('gpu', 'no assets', *absent))} may skip"

# --- two processes

def together(nodeid):
    "What one process runs, one after another: the tests of a notebook, wherever they are, or those of a file."
    page = re.search(r'(?:test_notebooks|test_prose)\.py::.*\[(.*)\]$', nodeid)
    return page[1] if page and page[1] in map(name, PAGES) else nodeid.partition('::')[0]

class Together(LoadScopeScheduling):
    "A free process takes the next group of tests."
    def _split_scope(self, nodeid): return together(nodeid)

def pytest_xdist_make_scheduler(config, log): return Together(config, log)

def pytest_xdist_auto_num_workers(config):
    return min(2, os.cpu_count() or 1) if config.args_source == config.ArgsSource.TESTPATHS else 0

# Over 40 seconds each on a quiet core: `.ci/run` executes them, and `pytest -m slow -k PAGE` one of them
LONG = ('core/22_pretrain', 'lessons/01_first_transfer', 'lessons/02_your_own_pictures', 'lessons/03_honest_data',
        'lessons/04_inside', 'lessons/05_freezing', 'lessons/07_fine_tuning', 'lessons/08_learning_rates',
        'lessons/09_extraction_or_tuning', 'lessons/10_how_much_data', 'lessons/11_near_and_far',
        'lessons/12_which_backbone', 'lessons/14_keeping', 'tools/25_lint')

# Seconds, about, of the other pages over ten, named without their numbers: they come before the short ones, so that
# both processes end together
SECONDS = {'tools/compare': 35, 'checks/keeping': 21,
           'lessons/feature_extraction': 19, 'core/world': 18, 'core/data': 18, 'checks/learning_rates': 15,
           'cards': 15, 'checks/fine_tuning': 13, 'tools/model': 13, 'core/drawings': 12,
           'tools/report': 12, 'cheatsheet': 12, 'checks/freezing': 11}

def numberless(page): return re.sub(r'/\d+_', '/', page)

def pytest_collection_modifyitems(items):
    """The pages come last, long ones first: what fails in seconds is known before. What executes a very long one is
    slow. JupyterLab comes first: a lesson that was run there is not executed again."""
    for o in items:
        if 'executed' in o.fixturenames and together(o.nodeid) in LONG: o.add_marker('slow')
    pages = sorted(map(name, PAGES), key=lambda p: -SECONDS.get(numberless(p), 90*(p in LONG))) # else in reading order
    order = {p: i for i,p in enumerate(pages, 1)}
    items.sort(key=lambda i: order.get(together(i.nodeid), -together(i.nodeid).endswith('test_lab.py')))

# --- what belongs to whoever runs the tests

@pytest.fixture(autouse=True)
def fastai_home(tmp_path_factory, monkeypatch):
    """A folder of fastai's own for each test: no test finds, or writes over, what somebody has downloaded.
    fastai reads FASTAI_HOME once, so its answer is forgotten before and after."""
    home = tmp_path_factory.getbasetemp()/'fastai'
    monkeypatch.setenv('FASTAI_HOME', str(home))
    forget = lambda: (m := sys.modules.get('fastai.data.external')) and m.fastai_cfg.cache_clear()
    forget()
    yield home
    forget()

# --- skipping

def pytest_runtest_setup(item):
    if item.get_closest_marker('assets') and not photo_assets(): pytest.skip('no assets')
    if item.get_closest_marker('gpu'):
        import torch
        if not torch.cuda.is_available(): pytest.skip('gpu')
    if item.get_closest_marker('browser') and not chromium(): pytest.skip('no browser')

def _refuse(rep):
    if not rep.skipped or hasattr(rep, 'wasxfail'): return
    why = refused_skip(rep.longrepr[2].removeprefix('Skipped: '))
    if why: rep.outcome, rep.longrepr = 'failed', f'{rep.nodeid}: {why}'

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call): _refuse((yield).get_result())

@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector): _refuse((yield).get_result())

@pytest.fixture(scope='session')
def tracked():
    "The files of the project: those git knows or would add."
    cmd = ['git', 'ls-files', '-co', '--exclude-standard']
    r = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT/o for o in r.stdout.splitlines() if (ROOT/o).is_file()]

# --- processes that have imported fastai already

_began = None # the folder of the processes that are forked, and the environment that they had

def pytest_sessionstart(session):
    global _began
    base = session.config._tmp_path_factory.getbasetemp()
    _began = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/'forked', dict(os.environ)

@cache
def python(kind='script'):
    """The beginning of a command that goes on as after `python`, whose process is forked from one that has imported
    fastai, as in a script or as in a notebook (forked.py). Where that cannot be, `python` itself."""
    d, env = _began
    ours, there = str(ROOT/'tests/forked.py'), d/kind
    if sys.platform != 'linux' or len(f'{there}.new') > 100: return [sys.executable] # the address of a socket is short
    d.mkdir(exist_ok=True)
    with FileLock(f'{there}.lock'):
        if not (d/'alive').exists(): os.mkfifo(d/'alive')
        os.open(d/'alive', os.O_RDWR) # as long as this process lives
        if not there.exists():
            p = subprocess.Popen([sys.executable, ours, 'serve', d, kind], env=env, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL)
            while p.poll() is None and not there.exists(): time.sleep(.02)
            # Where importing starts threads, the process refuses to be forked
            if p.poll() is not None: there.touch()
            else: p.returncode = 0 # nobody waits for it
    return [sys.executable, '-S', '-E', ours, str(there)] if there.is_socket() else [sys.executable]

class Executions(dict):
    "An execution in a fresh kernel of each notebook that a test asks for, once; `folder`: of kernelspecs."
    def __init__(self, folder): self.folder = folder
    def __missing__(self, page):
        with pytest.MonkeyPatch.context() as m:
            m.setenv('JUPYTER_PATH', str(self.folder))
            e = execute(page, reuse=True)
        if page.parent.name == 'lessons' and not e.reused: e = with_imports(e)
        self[page] = e
        return e

def with_imports(e):
    "A reader's seconds are a promise: an execution, and its copy, with those that the kernel had behind it."
    if len(python('notebook')) == 1: return e
    spent = float(Path(python('notebook')[-1] + '.seconds').read_text())
    e = replace(e, seconds=e.seconds + spent, cpu=e.cpu + spent)
    nb = json.loads(e.path.read_text(encoding='utf-8'))
    nb['metadata']['tlcourse'].update(seconds=round(e.seconds, 2), cpu=round(e.cpu, 2))
    e.path.write_text(json.dumps(nb), encoding='utf-8')
    return e

def kernels(d):
    "A folder of kernelspecs, for JUPYTER_PATH: kernels are forked."
    (d/'kernels/python3').mkdir(parents=True)
    argv = [*python('notebook'), '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    (d/'kernels/python3/kernel.json').write_text(json.dumps(dict(argv=argv, display_name='forked')))
    return d

@pytest.fixture(scope='session')
def executed(tmp_path_factory): return Executions(kernels(tmp_path_factory.mktemp('kernels')))

def once(tmp_path_factory, name, make, tracked=None):
    """A folder that the first process to need it fills by `make(folder)`, for both processes of a run. What is made of
    the `tracked` files alone is there for a later run too, where TLCOURSE_KEPT names a folder (`.ci/run`)."""
    if tracked and os.environ.get('TLCOURSE_KEPT'): d = Path(os.environ['TLCOURSE_KEPT'])/f'{name}-{state(tracked)}'
    elif 'PYTEST_XDIST_WORKER' not in os.environ: d = tmp_path_factory.mktemp(name)
    else: d = tmp_path_factory.getbasetemp().parent/name
    d.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{d}.lock'):
        if not (d/'made').exists():
            make(d)
            (d/'made').touch()
    return d

def state(tracked):
    "A hash of the files of the project, of where they are, and of all that is installed."
    installed = sorted(f"{o.metadata['Name']} {o.version}" for o in distributions())
    h = hashlib.sha256('\n'.join([sys.version, str(ROOT), *installed]).encode())
    for p in sorted(tracked): h.update(f'\n{p.relative_to(ROOT)} {p.stat().st_size}\n'.encode() + p.read_bytes())
    return h.hexdigest()[:16]

def _build_wheel(d, tracked):
    for p in tracked:
        (d/'src'/p.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, d/'src'/p.relative_to(ROOT))
    def build(what, cwd):
        code = f'from setuptools import build_meta as b; b.build_{what}({str(d)!r})'
        r = subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True)
        assert not r.returncode, r.stderr
    build('sdist', d/'src')
    safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
    with tarfile.open(next(d.glob('*.tar.gz'))) as t: t.extractall(d/'sdist', **safe)
    src = next((d/'sdist').iterdir())
    (src/'build/lib/tlcourse/lessons').mkdir(parents=True)
    (src/'build/lib/tlcourse/lessons/99_left.ipynb').touch()
    build('wheel', src)

@pytest.fixture(scope='session')
def wheel(tmp_path_factory, tracked):
    "A wheel, built without a network from an sdist of the tracked files, over a leftover of an earlier build."
    return next(once(tmp_path_factory, 'wheel', lambda d: _build_wheel(d, tracked)).glob('*.whl'))

def written_to(pty):
    "All that is written to the other end of a pseudo-terminal, until it closes."
    text = b''
    while True:
        try: s = os.read(pty, 4096)
        except OSError: break
        if not s: break
        text += s
    return text.decode()

class Built(type(Path())):
    "The folder of the site, and what git said of the clone before and after it was built."

def _git_status():
    return subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True).stdout

@pytest.fixture(scope='module') # not longer: while playwright is there, nothing else can start an event loop
def chrome():
    from browser import launch
    with launch() as b: yield b

def _build_site(folder):
    before = _git_status()
    cmd = [sys.executable, '-m', 'tlcourse.dev', 'docs', '--out', folder/'site']
    r = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True)
    assert not r.returncode, r.stderr
    (folder/'git.json').write_text(json.dumps([before, _git_status()]))

@pytest.fixture(scope='session')
def site(tmp_path_factory, tracked):
    "The static site, built once by the project's own command, for both processes."
    d = once(tmp_path_factory, 'built', _build_site, tracked)
    out = Built(d/'site')
    out.git_before, out.git_after = json.loads((d/'git.json').read_text())
    return out

def pytest_terminal_summary(terminalreporter):
    "What tests have to tell: the seconds of each notebook, the lessons that were run in JupyterLab."
    told = {}
    for rep in (o for k in ('passed', 'failed') for o in terminalreporter.stats.get(k, ())):
        for k,v in rep.user_properties if rep.when == 'call' else (): told.setdefault(k, []).append(v)
    for k,lines in told.items():
        terminalreporter.section(k)
        for l in lines: terminalreporter.write_line(l)
