"A process that is forked from one that has imported fastai is like a new one."
import json, os, subprocess, sys, time
import pytest
from conftest import Executions, kernels, python

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='processes are forked on Linux')

SEES = '''
import json, os, signal, sys
before = sorted(m for m in sys.modules if m.partition('.')[0] in ('tlcourse', 'conftest', 'pytest', 'forked'))
import tlcourse
print(json.dumps(dict(before=before, argv=sys.argv, cwd=os.getcwd(), path=sys.path, name=__name__,
    fds=len(os.listdir('/proc/self/fd')), main=vars(sys.modules['__main__']) is globals(),
    file=globals().get('__file__'), ours=tlcourse.__file__,
    env={k: os.environ.get(k) for k in ('TLCOURSE_X', 'IN_TEST', 'PYTHONPATH')}, encoding=sys.stdout.encoding,
    signals=[str(signal.getsignal(o)) for o in (2, 13, 15, 17)], warn=sys.warnoptions, stdin=sys.stdin.read())))
print(json.dumps('serve' in sys.orig_argv))
'''
KNOWS = '''
import json, os, random, warnings, fastai.vision.all, matplotlib.pyplot as plt, numpy, torch
from fastai.data.external import fastai_cfg
print(json.dumps(dict(backend=plt.get_backend(), home=str(fastai_cfg().config_file), threads=torch.get_num_threads(),
    filters=[str(o) for o in warnings.filters], notebook=fastai.imports.IN_NOTEBOOK,
    env={k: v for k,v in os.environ.items() if k != '_'})))
print(json.dumps([random.random(), numpy.random.rand(), torch.rand(1).item()]))
'''

def said(command, cwd, *args, **env):
    r = subprocess.run([*command, *args], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True,
                       input='in')
    assert not r.returncode, r.stderr
    return [json.loads(l) for l in r.stdout.splitlines()]

@pytest.mark.parametrize('args', [['-c', SEES, 'a', '-b'], ['-m', 'script', 'a'], ['script.py', '--x'],
                                  ['-W', 'ignore', '-c', SEES]], ids=lambda o: o[0])
def test_what_a_script_sees_of_itself(args, tmp_path):
    (tmp_path/'script.py').write_text(SEES)
    (there, forked), (new, no) = (said(p, tmp_path, *args, TLCOURSE_X='1') for p in (python(), [sys.executable]))
    assert there == new and forked and not no

def test_what_the_libraries_know(tmp_path):
    "Whatever forked processes did before; and chance is another in each."
    env = dict(FASTAI_HOME=str(tmp_path/'home'))
    said(python(), tmp_path, '-c', 'import torch, numpy; torch.manual_seed(1), numpy.random.seed(1)')
    (a, x), (b, y), (new, _) = (said(p, tmp_path, '-c', KNOWS, **env) for p in (python(), python(), [sys.executable]))
    assert a == b == new and not {*x} & {*y}

def test_an_environment_that_imports_read(tmp_path):
    "A real process is started."
    added = dict(KMP_DUPLICATE_LIB_OK='True') # by torch, in this process or in that one
    assert said(python(), tmp_path, '-c', SEES)[1] and said(python(), tmp_path, '-c', SEES, **added)[1]
    for k,v in dict(PYTHONHASHSEED='1', MPLBACKEND='svg', NEW='1').items():
        assert not said(python(), tmp_path, '-c', SEES, **{k: v})[1]

ENDS = [('pass', 0, '', ''), ('raise SystemExit(3)', 3, '', ''),
        ('print("a"); raise SystemExit("why")', 1, 'a\n', 'why\n'),
        ('import os; os.kill(os.getpid(), 9)', -9, '', ''), ('import os; os.abort()', -6, '', ''),
        ('import atexit; atexit.register(print, "late"); print("a", end="")', 0, 'alate\n', ''),
        ('import threading, time\ndef f(): time.sleep(.3); print("b")\nthreading.Thread(target=f).start(); print("a")',
         0, 'a\nb\n', ''),
        ('def f(): 1/0\nf()', 1, '', 'Traceback (most recent call last):\n  File "<string>", line 2, in <module>\n'
         '  File "<string>", line 1, in f\nZeroDivisionError: division by zero\n')]

@pytest.mark.parametrize('code,rc,out,err', ENDS, ids=range(len(ENDS)))
def test_how_it_ends(code, rc, out, err):
    for p in python(), [sys.executable]:
        r = subprocess.run([*p, '-c', code], capture_output=True, text=True)
        assert (r.returncode, r.stdout, r.stderr) == (rc, out, err)

def test_it_goes_with_who_asked():
    "All that it started too, once nobody waits for it"
    code = 'import os, time\nos.fork()\nprint(os.getpid(), flush=True)\ntime.sleep(99)'
    p = subprocess.Popen([*python(), '-c', code], stdout=subprocess.PIPE, text=True)
    pids = [int(p.stdout.readline()) for _ in range(2)]
    p.kill(), p.wait(), p.stdout.close()
    end = time.monotonic() + 10
    while time.monotonic() < end and any(os.path.exists(f'/proc/{o}') for o in pids): time.sleep(.02)
    assert not any(os.path.exists(f'/proc/{o}') for o in pids)

def notebook(d, *sources, room='core'):
    "A clone with one page"
    import nbformat
    for o in f'nbs/{room}', 'tlcourse': (d/o).mkdir(parents=True)
    (d/'pyproject.toml').touch()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbformat.write(nb, d/f'nbs/{room}/05_page.ipynb')
    return d/f'nbs/{room}/05_page.ipynb'

FIGURE = 'import sys\nassert "serve" in sys.orig_argv\nimport fastai.imports, matplotlib.pyplot as plt\nplt.plot([1]);'

def test_a_kernel(tmp_path):
    "It shows figures, knows that it is one, and its failures are seen: an error, an end without one."
    execute = Executions(kernels(tmp_path/'k'))
    fine = execute[notebook(tmp_path/'a', FIGURE, 'assert fastai.imports.IN_NOTEBOOK')]
    assert not fine.error and '"image/png"' in fine.path.read_text()
    assert 'ZeroDivisionError' in execute[notebook(tmp_path/'b', '1/0')].error
    assert 'DeadKernelError' in execute[notebook(tmp_path/'c', 'import os; os._exit(1)')].error

def test_the_seconds_of_a_lesson(tmp_path):
    "They are those of a reader, who imports fastai: in this execution, and where it is found again."
    folder, page = kernels(tmp_path/'k'), notebook(tmp_path/'a', 'import fastai.vision.all', room='lessons')
    e = Executions(folder)[page]
    assert 1 < e.seconds < 60 and 1 < e.cpu < 60 and not e.reused
    again = Executions(folder)[page]
    assert again.reused and (again.seconds, again.cpu) == pytest.approx((e.seconds, e.cpu), abs=.02)
