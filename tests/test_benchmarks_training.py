"The benchmarks of training, compare, start-up, growth and CUDA run, and what they compute from their seconds is right."
import json, os, subprocess, sys
from types import SimpleNamespace
import numpy as np, pytest
from conftest import ROOT, python

BENCH = ROOT/'benchmarks'

@pytest.fixture(autouse=True)
def on_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))

def run(script, *args, **env):
    "What a script prints; it must end well"
    r = subprocess.run([*python(), '-W', 'ignore', BENCH/f'{script}.py', *map(str, args)], capture_output=True,
                       text=True, env={**os.environ, **env})
    assert not r.returncode, r.stderr
    return r.stdout

# --- the scripts

ROWS = dict(speed_training=24, speed_compare=2, speed_start=3, speed_growth=10, speed_predict=3)

@pytest.mark.slow
@pytest.mark.parametrize('script', ROWS)
def test_smoke(script, tmp_path):
    "A smoke run prints a table and says what it is; JSON goes to --out alone, with every row and the raw figures."
    stored, out = (BENCH/f'{script}.json'), tmp_path/'out.json'
    before = stored.read_bytes() if stored.exists() else None
    text = run(script, '--smoke', '--out', out)
    assert (stored.read_bytes() if stored.exists() else None) == before
    got = json.loads(out.read_text())
    assert got['smoke'] is True and got['date'] and got['versions']['torch'] and got['device']['cores']
    for r in got['rows']:
        assert r['name'] in text and np.isfinite([r['value'], r['low'], r['high']]).all(), r
        assert r['reached'] in (True, False) if r['target'] else r['reached'] is None, r
    n = ROWS[script]
    if script == 'speed_training' and 'bfloat16: left out' in text: n -= 5
    if script == 'speed_growth' and sys.platform != 'linux': n = len(got['rows'])
    assert len(got['rows']) == n, [r['name'] for r in got['rows']]
    raw = got['points'] if script == 'speed_growth' else got['step'] if script == 'speed_compare' else got['seconds']
    assert raw and all(raw)

def test_gpu_without_cuda(tmp_path):
    "It says so, ends well and writes nothing; and refuses a long run on a CPU."
    before = set(BENCH.iterdir())
    assert run('gpu', '--out', tmp_path/'gpu.json', CUDA_VISIBLE_DEVICES='') == 'no CUDA here\n'
    assert not (tmp_path/'gpu.json').exists() and {p for p in BENCH.iterdir() if p.suffix == '.json'} <= before
    r = subprocess.run([sys.executable, BENCH/'gpu.py', '--device', 'cpu'], capture_output=True, text=True)
    assert r.returncode == 1 and 'add --smoke' in r.stderr

# --- speed_training

def test_photos_are_all_different(tmp_path):
    from speed_training import photos
    photos(tmp_path, 12, classes=3)
    files = sorted(tmp_path.rglob('*.jpg'))
    assert len(files) == 12 and len({p.read_bytes() for p in files}) == 12 and len({p.parent for p in files}) == 3

def test_the_plain_loop_trains(tmp_path):
    "The limit learns what the Learner learns, so both do the work."
    import torch
    from speed_training import network, ours, plain, train
    from tlcourse.backbones import arch
    from tlcourse.data import target
    t, acc = target('digits'), {}
    def right(m):
        with torch.no_grad(): return float((m.eval()(x).argmax(1) == t.train.y).float().mean())
    mean, std = (torch.tensor(o).view(1, 3, 1, 1) for o in arch('glyphnet').stats)
    x = (t.train.x.float()/255 - mean)/std
    torch.manual_seed(0)
    m = network('glyphnet')
    plain(m, t.train, arch('glyphnet').stats, t.augments, 64, 40)
    learn = ours(t.dls(bs=64, device='cpu'), 'glyphnet')
    before = [p.clone() for p in learn.model.parameters()]
    train(learn, 40)
    assert all(not torch.equal(a, b) for a,b in zip(before, learn.model.parameters())), (
        'a frozen arm would be no comparison')
    assert learn.opt.hypers[0]['lr'] < 1e-3 and len(learn.recorder.losses) == 40
    assert right(m) > .5 and right(learn.model) > .5

def test_ten_groups_hold_every_parameter_once():
    from speed_training import in_groups, network
    m = network('resnet18')
    gs = in_groups(10)(m)
    assert len(gs) == 10 and all(len(g) for g in gs)
    assert sorted(id(p) for g in gs for p in g) == sorted(id(p) for p in m.parameters())

@pytest.mark.parametrize('net', ['glyphnet', 'resnet18'])
def test_three_stages_are_frozen(net):
    "What the rows of a frozen part call the last stage is one of four, with the head."
    from speed_training import CUTS, last_stage, network
    m = network(net)
    early, late, head = last_stage(CUTS[net])(m)
    size = lambda ps: sum(p.numel() for p in ps)
    assert len(early) > 2*len(late) and size(late) > size(early) > size(head)
    assert len(early) + len(late) + len(head) == len(list(m.parameters()))

# --- speed_compare

def spec(s, k, n=None): return dict(strategy=s, shots=k, bs=32, **({} if n is None else dict(steps=n)))

def test_total_of_the_steps():
    "Steps by their batch, and each frozen body once, however many heads stand on it"
    from speed_compare import digits, total
    step = {('scratch', 10): [1., 2.], ('scratch', 32): [3., 4.]}
    pas = {'feature-extraction': [7., 8.], 'random-features': [50., 60.]}
    specs = [spec('scratch', 1, 10), spec('scratch', 5, 100), spec('scratch', 'all', 1),
             *[spec('feature-extraction', k) for k in (1, 1, 5)], spec('k-nn', 1)]
    assert len(digits().train) > 32
    assert [total(specs, step, pas, i) for i in (0, 1)] == [10 + 300 + 3 + 7, 20 + 400 + 4 + 8]

def test_costs_add_up():
    from speed_compare import costs
    runs = [SimpleNamespace(spec=spec('scratch', k, 10), result=dict(seconds=2.)) for k in (1, 5)]
    runs += [SimpleNamespace(spec=spec('feature-extraction', 1), result=dict(seconds=9.))]*2
    arm, frozen, rest = costs(runs, {('scratch', 10): [.1], ('scratch', 32): [.2]}, {'feature-extraction': [.5]}, 7.)
    assert (arm['runs'], arm['steps'], arm['seconds'], arm['alone']) == (2, 20, 4., pytest.approx(3.))
    assert (frozen['runs'], frozen['alone']) == (2, .5) and rest['seconds'] == 3.

# --- speed_start

def test_imports_are_read():
    from speed_start import imports, slow_imports, statement
    ms = imports(statement('import fractions'), None)
    assert 'fractions' in ms and 'decimal' in ms
    assert not any(l.endswith(' fractions') for l in slow_imports(statement('import fractions'), None, but=ms))

def test_a_command_that_fails_is_no_time():
    from speed_start import run, statement
    with pytest.raises(RuntimeError, match='no_such_module'): run(statement('import no_such_module'), None)

# --- speed_growth

def test_slope_of_a_power():
    from speed_growth import line, slope
    ps = [dict(n=n, seconds=3*n**1.5, mb=20., peak_mb=0.) for n in (10, 100, 1000)]
    assert slope(ps, 'seconds') == pytest.approx((1.5, 1.5, 1.5)) and slope(ps, 'mb') == pytest.approx((0, 0, 0))
    assert [r['reached'] for r in line(ps, 'extract')] == [False, True]
    for p in ps: p['seconds'], p['mb'] = 3*p['n'], p['n']
    assert [r['reached'] for r in line(ps, 'extract')] == [True, False]

@pytest.mark.skipif(sys.platform != 'linux', reason='no /proc')
def test_memory_is_seen():
    from speed_growth import Watch
    with Watch() as w:
        x = np.ones(2**23) # 64 MB
        x.sum()
        del x
    assert 32 < w.mb < 200

# --- gpu

def test_the_model_is_on_the_device_before_it_is_graphed(monkeypatch):
    "fastai moves it when a fit begins; on 'meta' nothing is computed, and what is left behind is seen"
    import gpu, torch
    from tlcourse.data import target
    seen = []
    monkeypatch.setattr(gpu, 'graphed', lambda m, x, *_: seen.extend([*m.parameters(), *m.buffers(), x]) or m)
    gpu.mine(target('digits'), 'glyphnet', 32, torch.device('meta'), 'fp32', graphs=True)
    assert seen and all(o.is_meta for o in seen)

def test_parts_that_there_are_not():
    r = subprocess.run([*python(), '-W', 'ignore', BENCH/'gpu.py', '--device', 'cpu', '--smoke', '--parts',
                        'lesson'], capture_output=True, text=True)
    assert r.returncode == 1 and "'lesson' is none of throughput" in r.stderr

# --- card.sh

def card(tmp_path, *args, **env):
    "A run of card.sh; -> (exit code, its table, its JSON, what it says on stderr)"
    out = tmp_path/'out'
    env = {**os.environ, 'OUT': str(out), 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': '', **env}
    r = subprocess.run(['bash', BENCH/'card.sh', *args], capture_output=True, text=True, env=env, cwd=tmp_path)
    res = json.loads((out/'card.json').read_text()) if (out/'card.json').exists() else {}
    return r.returncode, {p['part']: p for p in res.get('parts', ())}, res, r.stderr

@pytest.mark.slow
def test_card_goes_on_after_a_part_that_fails_and_one_that_runs_over(tmp_path):
    args = ['--smoke', '--skip', 'tests,throughput', '--clock', 'digits=1', '--clock', 'lessons=1', '--clock',
            'cores=1']
    code, parts, res, err = card(tmp_path, *args, PHOTOS=str(tmp_path/'no photos'))
    assert code == 1 and list(parts) == ['tests', 'throughput', 'digits', 'study', 'lessons', 'cores'], err
    assert parts['tests']['how'] == parts['throughput']['how'] == 'left out'
    for p in 'digits', 'lessons', 'cores': assert parts[p]['how'] == 'stopped by its clock' and parts[p]['seconds'] < 9
    assert parts['study']['code'] == 2 and 'no photos' in parts['study']['result']
    assert any('fastai imports in' in o for o in res['facts']) and (tmp_path/'out'/'study.log').exists()
    table = (tmp_path/'out'/'card.txt').read_text().splitlines()[-6:]
    assert [l.split()[0] for l in table] == list(parts)

@pytest.mark.slow
def test_card_says_where_there_is_no_card(tmp_path):
    code, parts, res, err = card(tmp_path)
    assert code == 2 and 'no card here' in err and not parts

@pytest.mark.parametrize('args', [['--skip', 'test'], ['--clock', 'tests'], ['--clock', 'foo=3'], ['tests']])
def test_card_refuses(args, tmp_path):
    code, _, _, err = card(tmp_path, *args)
    assert code == 2 and len(err.splitlines()) == 1 and 'parts: tests throughput' in err
    assert not (tmp_path/'out').exists()

@pytest.mark.slow
def test_card_on_a_cpu(tmp_path):
    "Each part runs; so gpu.py does."
    from speed_training import photos
    photos(tmp_path/'photos', 60, classes=3)
    code, parts, res, err = card(tmp_path, '--smoke',
                                 *(o for p in ('tests', 'throughput', 'digits', 'study', 'lessons', 'cores')
                                   for o in ('--clock', f'{p}=300')),
                                 PHOTOS=str(tmp_path/'photos'))
    assert code == 0 and {p['how'] for p in parts.values()} == {'ended'}, parts
    assert 'skipped' in parts['tests']['result']
    text = (tmp_path/'out'/'throughput.log').read_text()
    assert 'CUDA graphs: left out on a CPU' in text and 'glyphnet at 32 px' in text
    assert set(res['images a second']['glyphnet']) == {'limit', 'Learner'}
    assert any('heads: one by one / together' in r['name'] for r in res['rows'])
    assert 'targets reached' in parts['throughput']['result'] and parts['lessons']['result'] == '1 of 1 passed'
    for p in 'digits', 'study', 'cores': assert parts[p]['result'] == res['compared'][p]['recommendation']['text']
    names = [r['name'] for r in res['rows']]
    assert any('two cores / on the card' in n for n in names)
    assert any('digits, stage 1: true / announced' in n for n in names)
    assert any('share that passes' in r['name'] for r in res['rows']) and len(list((tmp_path/'out').iterdir())) <= 8

def test_a_lesson_that_fails_is_seen(tmp_path):
    import gpu
    def told(*srcs, only=None):
        cell = lambda s: dict(cell_type='code', source=s, metadata={}, outputs=[], execution_count=None)
        p = tmp_path/'01_x.ipynb'
        p.write_text(json.dumps(dict(cells=[cell(s) for s in srcs], metadata={}, nbformat=4, nbformat_minor=5)))
        r = subprocess.run([*python(), '-c', gpu.LESSON, p, *[str(only)]*bool(only)], capture_output=True,
                           text=True, env={**os.environ, 'IPYTHONDIR': str(tmp_path)})
        return json.loads(r.stdout.splitlines()[-1])
    assert told('x = 1\nprint(x)', 'x')['error'] == told('x = 1', 'y', only=1)['error'] == ''
    assert told('x = 1', 'y', 'raise ValueError')['error'] == "NameError: name 'y' is not defined"
    assert 'SyntaxError' in told('x = = 1')['error']
