"A sweep on a real Ray cluster of two workers: a process, a machine and the head lost; no run lost or counted twice."
import json, os, signal, socket, sqlite3, subprocess, sys
from contextlib import suppress
import pytest
from tlcourse.base import BadInput
from tlcourse.records import Records
from tlcourse.sweep import RayWorkers, sweep

if os.name != 'posix': pytest.skip('signals of POSIX', allow_module_level=True)
try: import ray
except ImportError: pytest.skip('ray is not installed', allow_module_level=True)
from ray.cluster_utils import Cluster

N, SLOW = 10, 4 # Runs; from this one on they take a while, so that there is time to strike
toy = f'''
import json, os, sys, time
import numpy as np
from tlcourse.records import Records
from tlcourse.sweep import sweep
engine, name, log = sys.argv[1:]

def run(spec):
    with open(log, 'a') as f: f.write(f"{{os.getpid()}} {{spec['seed']}}\\n")
    if engine != 'local' and spec['seed'] >= {SLOW}: time.sleep(2)
    g = np.random.default_rng(spec['seed'])
    return dict(pred=g.integers(0, 10, 50).astype(np.uint16), loss=float(g.random()))

how = dict(workers=1) if engine == 'local' else dict(engine='ray', address=engine)
res = sweep([dict(kind='report', target='toy', seed=i) for i in range({N})], Records('records.db'), run, progress=False,
            on_done=lambda spec, r, fresh: print('run', spec['seed'], fresh, flush=True), **how)
with open(name, 'w') as f: json.dump([[r['pred'].tolist(), r['loss']] for r in res], f)
'''

def start(d, engine):
    (d/'toy.py').write_text(toy)
    env = {**os.environ, 'RAY_gcs_rpc_server_reconnect_timeout_s': '5'} # By itself a driver waits a minute for a head
    return subprocess.Popen([sys.executable, 'toy.py', engine, 'out.json', str(d/'log')], cwd=d, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def table(d): return json.loads((d/'out.json').read_text())
def log(d): return [tuple(map(int, l.split())) for l in (d/'log').read_text().splitlines()]

def until(p, n):
    "Wait until n runs are reported; those that were. Ray writes there too, of what it lost"
    seen = []
    while len(seen) < n:
        if not (line := p.stdout.readline()): raise AssertionError(p.communicate()[1])
        if line.startswith('run '): seen.append(line.split()[1])
    return seen

def ends(p, seen=()):
    "Wait for the end: each run was reported once"
    out, err = p.communicate(timeout=180)
    assert p.returncode == 0, err
    said = [*seen, *(l.split()[1] for l in out.splitlines() if l.startswith('run '))]
    assert sorted(map(int, said)) == list(range(N))
    return out

def counted(d): # Rows of the store, and openings of the test
    c = sqlite3.connect(d/'records.db')
    try: return [c.execute(f'select count(*) from {o}').fetchone()[0] for o in ('runs', 'openings')]
    finally: c.close()

def ports():
    """Free ports for the agents of a node: one whose ports are not told waits 15 s for them, and on a busy machine dies
    (github.com/ray-project/ray/issues/65983)"""
    names = 'metrics_agent_port', 'metrics_export_port', 'dashboard_agent_listen_port', 'runtime_env_agent_port'
    socks = [socket.create_server(('', 0)) for _ in names]
    try: return {n: s.getsockname()[1] for n,s in zip(names, socks)}
    finally:
        for s in socks: s.close()

def begin():
    quick = dict(health_check_initial_delay_ms=0, health_check_period_ms=1000, health_check_failure_threshold=5)
    c = Cluster()
    c.add_node(num_cpus=0, _system_config=quick, include_dashboard=False, **ports()) # The first is the head
    c.workers = [c.add_node(num_cpus=1, **ports()) for _ in range(2)]
    return c

@pytest.fixture
def cluster():
    "A head that does no runs, and two workers of one core each"
    c = begin()
    yield c
    if ray.is_initialized(): ray.shutdown()
    c.shutdown()

@pytest.fixture(scope='module')
def truth(tmp_path_factory):
    d = tmp_path_factory.mktemp('truth')
    ends(start(d, 'local'))
    return table(d)

def test_as_local(tmp_path, truth, cluster):
    ends(start(tmp_path, cluster.address))
    assert table(tmp_path) == truth and counted(tmp_path) == [N, N]
    assert sorted(s for _,s in log(tmp_path)) == list(range(N)) and len({p for p,_ in log(tmp_path)}) > 1
    assert ends(start(tmp_path, cluster.address)).count('False') == N == len(log(tmp_path)) # Nothing is run again

def test_a_worker_is_killed(tmp_path, truth, cluster):
    p = start(tmp_path, cluster.address)
    seen = until(p, SLOW + 1)
    pid, lost = next((q, s) for q,s in reversed(log(tmp_path)) if str(s) not in seen)
    os.kill(pid, signal.SIGKILL)
    ends(p, seen)
    assert table(tmp_path) == truth and counted(tmp_path) == [N, N]
    assert sorted(s for _,s in log(tmp_path)) == sorted([*range(N), lost]) # Given out again, and nothing else

def test_a_machine_is_lost(tmp_path, truth, cluster):
    p = start(tmp_path, cluster.address)
    seen = until(p, SLOW + 1)
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    ends(p, seen)
    assert table(tmp_path) == truth and counted(tmp_path) == [N, N]
    assert {s for _,s in log(tmp_path)} == set(range(N)) and N <= len(log(tmp_path)) <= N + 2

def test_the_head_is_started_again(tmp_path, truth, cluster):
    p = start(tmp_path, cluster.address)
    until(p, SLOW + 1)
    cluster.shutdown()
    with suppress(subprocess.TimeoutExpired): p.wait(60)
    assert p.poll() != 0, 'it cannot have finished'
    p.kill()
    p.communicate()
    stored = counted(tmp_path)[0]
    assert SLOW < stored < N
    again = begin()
    try: out = ends(start(tmp_path, again.address))
    finally: again.shutdown()
    assert out.count('False') == stored and table(tmp_path) == truth and counted(tmp_path) == [N, N]
    assert len(log(tmp_path)) <= N + 2, 'more than the runs in flight were lost'

def test_gpus(tmp_path, cluster):
    "GPUs are resources of Ray's: here one that is only declared"
    with pytest.raises(BadInput, match='no room for a run, which takes a core and 1 GPU'):
        RayWorkers(len, address=cluster.address, gpus=1)
    cluster.add_node(num_cpus=8, num_gpus=1, **ports())
    def run(spec): return dict(cards=os.environ['CUDA_VISIBLE_DEVICES'], loss=1.)
    with RayWorkers(run, address=cluster.address, gpus=.5) as ws:
        assert ws.slots() == 2
        res = sweep([dict(seed=i) for i in range(3)], Records(tmp_path/'r.db'), ws, progress=False)
    assert [r['cards'] for r in res] == ['0']*3

def test_errors(tmp_path, cluster):
    "What a run raises, and what cannot be sent"
    def run(spec):
        if spec['seed'] == 1: raise BadInput('too few pictures')
        return dict(x=lambda: 0) if spec['seed'] == 2 else dict(loss=1.)
    from tlcourse.sweep import SweepFailed
    with RayWorkers(run, address=cluster.address) as ws:
        with pytest.raises(BadInput, match='too few pictures'):
            sweep([dict(seed=1)], Records(tmp_path/'r.db'), ws, progress=False)
        with pytest.raises(SweepFailed, match='1 of 2 runs failed .1 of 2 runs are stored'):
            sweep([dict(seed=2), dict(seed=3)], Records(tmp_path/'r.db'), ws, progress=False)

def test_no_cluster():
    with pytest.raises(BadInput, match='no Ray cluster answers at 127.0.0.1:1 '): RayWorkers(len, address='127.0.0.1:1')

def test_compare(tmp_path, cluster):
    "The same table as on this machine"
    def run(name, *more):
        cmd = [sys.executable, '-c', 'from tlcourse.cli import main; raise SystemExit(main())', 'compare', 'digits',
               '--strategies', 'feature-extraction,fine-tuning', '--shots', '1,3', '--seeds', '3', '--steps', '4',
               '--out', tmp_path/name, '--json', tmp_path/f'{name}.json', *more]
        r = subprocess.run(cmd, cwd=tmp_path, capture_output=True, text=True)
        assert r.returncode == 0, r.stderr
        cells = json.loads((tmp_path/f'{name}.json').read_text())['cells']
        return [{k: v for k,v in c.items() if k != 'seconds'} for c in cells]
    there = run('ray', '--engine', 'ray', '--address', cluster.address)
    assert len(there) == 4 and there == run('local', '--workers', '1')
