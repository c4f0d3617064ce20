"One thread, no window, and three reasons to skip: `gpu`, `no assets` and, outside `.ci/run`, `no browser`."
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported; for the processes that tests start too
os.environ.setdefault('MPLBACKEND', 'Agg')
if os.environ.get('TLCOURSE_ASSETS'): os.environ['TLCOURSE_ASSETS'] = os.path.abspath(os.environ['TLCOURSE_ASSETS'])
import shutil, subprocess, sys, tarfile
from pathlib import Path
import pytest
from tlcourse.base import photo_assets
from tlcourse.dev import execute_all, pages

ROOT = Path(__file__).parent.parent
PAGES = pages(root=ROOT)
_done = pytest.StashKey()

def name(page): return page.relative_to(ROOT/'nbs').with_suffix('').as_posix()

def chromium():
    "The browser of the tests: the one that TLCOURSE_CHROMIUM names, or the first on the path; None if there is none."
    if named := os.environ.get('TLCOURSE_CHROMIUM'):
        return shutil.which(named) or pytest.fail(f'TLCOURSE_CHROMIUM={named}: there is no such program')
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

def refused_skip(reason):
    "Why a test may not be skipped for this reason, or None if it may."
    if reason == 'no assets' and photo_assets(): return f"skipped for 'no assets', and they are in {photo_assets()}"
    if os.environ.get('TLCOURSE_CI') == '1' and reason not in ('gpu', 'no assets'):
        return f"skipped for {reason!r}: only 'gpu' and 'no assets' may skip"

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

@pytest.fixture(scope='session')
def executed(request):
    "One execution in a fresh kernel of each notebook that the chosen tests need, two kernels at a time."
    wanted = {i.callspec.params['page'] for i in request.session.items if 'executed' in i.fixturenames}
    res = execute_all([p for p in PAGES if p in wanted], reuse=True)
    request.config.stash[_done] = res
    return res

@pytest.fixture(scope='session')
def wheel(tmp_path_factory, tracked):
    "A wheel, built without a network from an sdist of the tracked files, over a leftover of an earlier build."
    d = tmp_path_factory.mktemp('build')
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
    return next(d.glob('*.whl'))

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

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The static site, built once by the project's own command."
    out = Built(tmp_path_factory.mktemp('built')/'site')
    out.git_before = _git_status()
    r = subprocess.run([sys.executable, '-m', 'tlcourse.dev', 'docs', '--out', out], cwd=ROOT, capture_output=True, text=True)
    assert not r.returncode, r.stderr
    out.git_after = _git_status()
    return out

def pytest_terminal_summary(terminalreporter, config):
    "The seconds of each notebook."
    if not (res := config.stash.get(_done, None)): return
    terminalreporter.section('notebooks')
    for p,e in res.items():
        how = 'failed' if e.error else 'an earlier execution of the same state' if e.reused else ''
        terminalreporter.write_line(f'{e.seconds:6.1f} s  {name(p)}  {how}'.rstrip())
