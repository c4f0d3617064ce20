"The main job from the outside: the table survives kills, the second start is quick, bad input is one line and exit code 2."
import json, os, random, re, signal, sqlite3, subprocess, sys, time
from contextlib import closing
from pathlib import Path
import pytest

cmd = [sys.executable, '-c', 'import sys; from tlcourse.cli import main; sys.exit(main())', 'compare']
quick = ['digits', '--shots', '1,5', '--seeds', '3', '--steps', '20', '--tune', 'none']

def start(*args, **kw):
    return subprocess.Popen([*cmd, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def run(*args, **kw):
    p = start(*args, **kw)
    out, err = p.communicate(timeout=600)
    return p.returncode, out, err

def table(f):
    d = json.loads(f.read_text())
    return [{k: v for k,v in c.items() if k != 'seconds'} for c in d['cells']], d['pairs']

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    d = tmp_path_factory.mktemp('whole')
    code, out, err = run(*quick, '--out', d/'o', '--json', d/'j.json')
    assert code == 0, err
    return d, out

def test_json_and_report(whole):
    d, out = whole
    j = json.loads((d/'j.json').read_text())
    assert {'target', 'backbone', 'cells', 'pairs', 'recommendation', 'versions'} <= set(j)
    assert (j['target'], j['backbone']) == ('digits', 'glyphnet')
    cells = [c for c in j['cells'] if not c['strategy'].endswith('-4x')]
    assert {(c['strategy'], c['shots']) for c in cells} == {(s, k) for s in ('scratch', 'feature-extraction', 'fine-tuning') for k in (1, 5)}
    for c in j['cells']:
        assert {'strategy', 'shots', 'mean', 'low', 'high', 'n_test', 'seeds', 'seconds'} <= set(c)
        assert 0 <= c['low'] <= c['mean'] <= c['high'] <= 1 and c['n_test'] == 500 and c['seconds'] > 0
    assert all(c['seeds'] == 3 for c in cells)
    assert len(j['pairs']) == 6 and all({'shots', 'a', 'b', 'diff', 'low', 'high'} <= set(p) for p in j['pairs'])
    assert set(j['recommendation']) == {'strategy', 'shots', 'text'} and j['recommendation']['shots'] == 5
    assert j['recommendation']['text'].count('. ') >= 1 and j['recommendation']['text'] in out
    assert {p.name for p in (d/'o').iterdir()} >= {'report.html', 'curve.png', 'records.db'}
    assert re.search(r'about \d+ min', out) and len(re.findall(r'CPU s a run', out)) >= 6

def test_second_start_reads_the_records(whole):
    d, _ = whole
    before = table(d/'j.json')
    t = time.time()
    code, out, err = run(*quick, '--out', d/'o', '--json', d/'j.json')
    assert code == 0, err
    assert table(d/'j.json') == before
    assert time.time() - t < 60 # the imports; training takes no part of it: see the next line
    assert json.loads((d/'j.json').read_text())['cells'][0]['seconds'] > 0

def stored(db):
    "Runs in a store that another process writes; 0 where there is none yet."
    try:
        with closing(sqlite3.connect(f'file:{db}?mode=ro', uri=True)) as c: return c.execute('SELECT count(*) FROM runs').fetchone()[0]
    except sqlite3.OperationalError: return 0

def test_killed_five_times_gives_the_same_table(whole, tmp_path):
    "Twice before it has stored anything, and as soon as the 1st, the 6th and the 12th run are stored."
    d, _ = whole
    for n in (0, 0, 1, 6, 12):
        p = start(*quick, '--out', tmp_path/'o', '--json', tmp_path/'j.json')
        if n == 0: time.sleep(random.uniform(.1, 3))
        while n and p.poll() is None and stored(tmp_path/'o'/'records.db') < n: time.sleep(.02)
        p.send_signal(signal.SIGKILL if os.name == 'posix' else signal.SIGTERM)
        p.communicate()
        assert p.returncode, f'it ended before {n} runs were stored'
    before = stored(tmp_path/'o'/'records.db')
    code, out, err = run(*quick, '--out', tmp_path/'o', '--json', tmp_path/'j.json')
    assert code == 0, err
    assert table(tmp_path/'j.json') == table(d/'j.json')
    assert before >= 12 and stored(tmp_path/'o'/'records.db') == stored(d/'o'/'records.db') > before

def test_budget_trims_and_says_so(tmp_path):
    code, out, err = run('digits', '--shots', '1,5', '--steps', '20', '--tune', 'none', '--strategies', 'feature-extraction', '--budget', '1e-4', '--out', tmp_path)
    assert code == 2 and '--budget' in err and not (tmp_path/'report.html').exists()
    code, out, err = run('digits', '--shots', '1', '--seeds', '90', '--steps', '20', '--tune', 'none', '--strategies', 'feature-extraction', '--budget', '.02', '--out', tmp_path)
    assert code == 0 and re.search(r'To fit 0.02 minutes: \d+ seeds instead of 90', out), out + err

def test_a_damaged_store_is_kept_aside(tmp_path):
    (tmp_path/'records.db').write_bytes(b'SQLite format 3\0' + b'rubbish'*1000)
    code, out, err = run('digits', '--shots', '1', '--seeds', '3', '--steps', '2', '--tune', 'none', '--strategies', 'feature-extraction', '--out', tmp_path)
    assert code == 0, err
    aside = [p for p in tmp_path.iterdir() if '.damaged-' in p.name]
    assert len(aside) == 1 and b'rubbish' in aside[0].read_bytes()
    assert 'damaged' in out + err

bad = [(['digit'], "did you mean 'digits'"), (['--backbone', 'glyphnett'], "'glyphnet'"), (['--backbone', 'resnet18', '--weights', 'no.pth'], 'no.pth'),
       (['--strategies', 'finetuning'], "'fine-tuning'"), (['--shots', '1,200'], 'lower --shots'), (['--shots', 'few'], 'whole number'),
       (['--shots', '0'], 'whole number'), (['--seeds', '1'], '3 or more'), (['--steps', '0'], '1 or more'), (['no/such/folder'], 'no/such/folder'),
       (['--budget', '-1'], 'more than 0'), (['--device', 'tpu9'], 'device'), (['--tune', 'test'], 'known: none, valid'),
       (['--backbone', 'squeezenet1_0', '--weights', 'damaged.pth'], 'cannot be read')]

def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    "All of them in one process: fastai is imported once"
    code = '''
import contextlib, io, json, sys
from tlcourse.cli import main
res = []
for args in json.loads(sys.argv[1]):
    o, e = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(o), contextlib.redirect_stderr(e):
        try: c = main(['compare', *args])
        except SystemExit as x: c = x.code
    res.append([c, e.getvalue()])
print(json.dumps(res))
'''
    (tmp_path/'damaged.pth').write_bytes(b'PK rubbish'*99)
    args = [[*a, '--out', str(tmp_path/f'o{i}')] for i,(a,_) in enumerate(bad)]
    p = subprocess.run([sys.executable, '-c', code, json.dumps(args)], capture_output=True, text=True, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    for (a,words),(c,err) in zip(bad, json.loads(p.stdout.splitlines()[-1])):
        assert c == 2, (a, err)
        assert words in err and err.strip().count('\n') == 0, (a, err)
    assert not list(tmp_path.glob('o*/report.html'))
    assert not (tmp_path/f'o{len(bad)-1}').exists(), 'weights that cannot be read are refused before a folder is made'

def test_fixed_rates_are_the_measured_ones():
    from tlcourse.finetune import STRATEGIES
    stored = json.loads((Path(__file__).parent.parent/'benchmarks/rates.json').read_text())
    assert {k: f.rate for k,f in STRATEGIES.items()} == stored['chosen']
