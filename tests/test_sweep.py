"A sweep survives Ctrl-C, kill -9 of any process and a second process on the same store: with real processes."
import json, os, random, signal, subprocess, sys, time
import pytest
from conftest import python, written_to

if os.name != 'posix': pytest.skip('signals of POSIX', allow_module_level=True)

N = 24
toy = r'''
import glob, json, os, sys, time
import numpy as np
from tlcourse.records import Records
from tlcourse.sweep import sweep

def run(spec):
    with open('log', 'a') as f: f.write(f"{os.getpid()} {spec['seed']}\n")
    time.sleep(3 if spec['seed'] >= int(os.environ.get('SLOW_FROM', %d)) else .05)
    g = np.random.default_rng(spec['seed'])
    return dict(pred=g.integers(0, 10, 50).astype(np.uint16), loss=float(g.random()))

if __name__ == '__main__':
    recs = Records('records.db')
    open(f'ready{os.getpid()}', 'w').close()
    while len(glob.glob('ready*')) < int(os.environ.get('TOGETHER', 1)): time.sleep(.01)
    res = sweep([dict(kind='report', target='toy', seed=i) for i in range(%d)], recs, run, workers=2,
                on_done=lambda spec, r, fresh: print('run', spec['seed'], fresh, flush=True))
    with open(sys.argv[1], 'w') as f: json.dump([[r['pred'].tolist(), r['loss']] for r in res], f)
''' % (N, N)

@pytest.fixture(scope='module')
def truth(tmp_path_factory):
    d = make(tmp_path_factory.mktemp('truth'))
    assert start(d).wait(30) == 0
    return table(d)

def make(d):
    (d/'toy.py').write_text(toy)
    return d

def start(d, out='out.json', **env):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **env}
    return subprocess.Popen([sys.executable, 'toy.py', out], cwd=d, env=env, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def table(d, out='out.json'): return json.loads((d/out).read_text())
def log(d): return [tuple(map(int, l.split())) for l in (d/'log').read_text().splitlines()]
def first_runs(p, n): # Wait until n runs are reported
    for _ in range(n): assert p.stdout.readline().startswith('run')

def alive(pid):
    try: return 'Z' not in open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0]
    except OSError: return False

def gone(pids, secs=5):
    end = time.time() + secs
    while any(map(alive, pids)) and time.time() < end: time.sleep(.02)
    return not any(map(alive, pids))

def test_kill_parent_and_go_on(tmp_path, truth):
    d, rng = make(tmp_path), random.Random(0)
    for i in range(5): # Each time some moment of its work; the last kills may find it finished
        p = start(d)
        first_runs(p, 1)
        time.sleep(rng.uniform(0, .12))
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert gone({pid for pid,_ in log(d)}), 'an orphaned worker goes on'
    n = len(log(d))
    assert start(d).wait(30) == 0
    assert table(d) == truth
    assert len(log(d)) <= N + 5*2, 'more than the runs in flight were lost'
    assert len(log(d)) > n or n >= N

def test_ctrl_c(tmp_path, truth):
    d = make(tmp_path)
    p = start(d, SLOW_FROM='10') # This process may have to wait for a core: it is not finished by then
    first_runs(p, 5)
    os.killpg(p.pid, signal.SIGINT) # As a terminal does: to every process of the group
    out, err = p.communicate(timeout=30)
    assert p.returncode not in (0, None)
    assert 'runs are stored in' in err and 'start again to go on' in err
    assert err.count('Traceback') == 1, err # The parent's; workers are silent
    assert gone({pid for pid,_ in log(d)})
    assert start(d).wait(30) == 0
    assert table(d) == truth and len(log(d)) <= N + 2

def test_kill_worker(tmp_path, truth):
    d = make(tmp_path)
    p = start(d, SLOW_FROM='10')
    first_runs(p, 4)
    os.kill(log(d)[-1][0], signal.SIGKILL)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 1
    assert 'killed by signal 9' in err and 'seed=' in err and f'of {N} runs are stored' in err
    stored = 4 + out.count('run ')
    assert start(d).wait(30) == 0
    assert table(d) == truth and len(log(d)) <= N + 2 and stored >= 4

def test_two_processes(tmp_path, truth):
    d = make(tmp_path)
    go = dict(TOGETHER='2', SLOW_FROM=str(N-4)) # However late a worker comes, one of the last four runs is left for it
    a, b = start(d, 'a.json', **go), start(d, 'b.json', **go)
    assert [p.communicate(timeout=30) and p.returncode for p in (a, b)] == [0, 0]
    assert table(d, 'a.json') == table(d, 'b.json') == truth
    assert len(log(d)) <= N + 4, 'the second process did the work of the first again'
    assert len({pid for pid,_ in log(d)}) == 4, 'one of the processes had nothing to do'

def test_silent_in_a_pipe(tmp_path):
    p = start(make(tmp_path))
    out, err = p.communicate(timeout=30)
    assert err == '' and all(l.startswith('run') for l in out.splitlines())

def test_bar_on_a_terminal(tmp_path):
    import pty
    d, (ours, theirs) = make(tmp_path), pty.openpty()
    p = subprocess.Popen([sys.executable, 'toy.py', 'out.json'], cwd=d, stdout=subprocess.DEVNULL, stderr=theirs,
                         start_new_session=True)
    os.close(theirs)
    text = written_to(ours)
    p.wait(10)
    assert f'{N}/{N} runs' in text and 'left' in text and '\n' not in text

def test_workers_that_nobody_lets_go(tmp_path):
    "The process ends all the same"
    code = """
import sys
from tlcourse.records import Records
from tlcourse.sweep import Workers, sweep
def run(spec): return dict(loss=1.)
if __name__ == '__main__':
    ws = Workers(run, 2)
    sweep([dict(kind='report', seed=i) for i in range(4)], Records('records.db'), ws, progress=False)
    assert ws._ws
    print('done', flush=True)
"""
    (tmp_path/'script.py').write_text(code)
    r = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (r.returncode, r.stdout) == (0, 'done\n'), r.stderr

def test_a_backbone_in_another_process(tmp_path):
    "Its cut, its layer groups and its statistics go with it; spawned workers, as beside a GPU, knew none of them"
    import pickle
    from tlcourse.backbones import arch
    names = 'glyphnet', 'tf_efficientnet_lite0'
    (tmp_path/'archs').write_bytes(pickle.dumps([arch(n) for n in names]))
    code = """
import pickle, sys
archs = pickle.load(open(sys.argv[1], 'rb'))
from fastai.vision.learner import create_vision_model, model_meta
for a in archs:
    net = create_vision_model(a, 3, pretrained=False)
    print([len(list(g)) for g in model_meta[a]['split'](net)], model_meta[a]['stats'])
"""
    r = subprocess.run([*python(), '-c', code, tmp_path/'archs'], capture_output=True, text=True, timeout=120)
    assert not r.returncode, r.stderr
    from fastai.vision.learner import create_vision_model, model_meta
    here = [f"{[len(list(g)) for g in m['split'](create_vision_model(a, 3, pretrained=False))]} {m['stats']}"
            for a in map(arch, names) for m in [model_meta[a]]]
    assert r.stdout.splitlines() == here and all(h.count(',') >= 2 for h in here)
