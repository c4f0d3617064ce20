"""The main job from the outside: the table survives kills, the second start is quick,
bad input is one line and exit code 2."""
import json, os, random, re, signal, sqlite3, subprocess, sys, time
from contextlib import closing
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from tlcourse.cli import main
from conftest import python

cmd = ['-c', 'import sys; from tlcourse.cli import main; sys.exit(main())', 'compare']
quick = ['digits', '--shots', '1,5', '--seeds', '3', '--steps', '5', '--tune', 'none']

def start(*args, by=(sys.executable,), **kw):
    return subprocess.Popen([*by, *cmd, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **kw)

def run(*args, **kw):
    p = start(*args, **{'by': python(), **kw})
    out, err = p.communicate(timeout=600)
    return p.returncode, out, err

def table(f):
    d = json.loads(f.read_text())
    return [{k: v for k,v in c.items() if k != 'seconds'} for c in d['cells']], d['pairs']

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    d = tmp_path_factory.mktemp('whole')
    code, out, err = run(*quick, '--out', d/'o', '--json', d/'j.json', by=[sys.executable]) # a real start
    assert code == 0, err
    return d, out

def test_json_and_report(whole):
    d, out = whole
    j = json.loads((d/'j.json').read_text())
    assert {'target', 'backbone', 'classes', 'parts', 'cells', 'pairs', 'recommendation', 'stage', 'notes', 'versions',
            'missing', 'clock'} <= set(j)
    assert (j['target'], j['backbone'], j['stage']) == ('digits', 'glyphnet', 3)
    cells = [c for c in j['cells'] if not c['strategy'].endswith('-4x')]
    heads, trained, beside = {'feature-extraction'}, {'scratch', 'fine-tuning'}, {'k-nn', 'random-features'}
    assert {(c['strategy'], c['shots']) for c in cells} == {(s, k) for s in heads | trained | beside for k in (1, 5)}
    for c in j['cells']:
        assert {'strategy', 'shots', 'mean', 'low', 'high', 'n_test', 'seeds', 'tries', 'seconds'} <= set(c)
        assert 0 <= c['low'] <= c['mean'] <= c['high'] <= 1 and c['n_test'] == 500 and c['seconds'] > 0
    assert all(c['seeds'] == (3 if c['strategy'] in trained else 20) for c in cells)
    assert all({'shots', 'a', 'b', 'diff', 'low', 'high', 'p', 'p_holm', 'family'} <= set(p) for p in j['pairs'])
    assert not {p[x] for p in j['pairs'] for x in 'ab'} & beside, 'what stands beside has no part in verdicts'
    assert {'strategy', 'shots', 'text'} <= set(j['recommendation']) and j['recommendation']['shots'] == 5
    assert j['recommendation']['text'].count('. ') >= 1 and j['recommendation']['text'] in out
    assert {p.name for p in (d/'o').iterdir()} >= {'report.html', 'curve.png', 'records.db'}
    assert re.search(r'Stage 1, frozen features: \d,\d+ pictures at \d+ a second', out)
    assert re.search(r'Stage 2 takes about \d+ (s|min)', out)
    assert len(re.findall(r'CPU s a run', out)) >= 10

def test_each_stage_has_a_table(whole):
    "All but the last say that they are not the last word; a random body is spoken of after the table"
    d, out = whole
    first, rest = out.split('Stage 2 takes')
    assert '-4x' not in first and 'fine-tuning' in rest
    assert re.findall(r'So far \((?:frozen features alone, )?stage (\d) of 3\): at 5 labels', out) == ['1', '2']
    tables = re.split(r'labels +strategy +accuracy', out)[1:]
    assert len(tables) == 3 and 'So far' not in tables[2] and 'So far' in first
    assert first.index('So far') < first.index('random-features')

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
        with closing(sqlite3.connect(f'file:{db}?mode=ro', uri=True)) as c:
            return c.execute('SELECT count(*) FROM runs').fetchone()[0]
    except sqlite3.OperationalError: return 0

@pytest.mark.slow
def test_killed_five_times_gives_the_same_table(whole, tmp_path):
    """Twice before it has stored anything, as soon as the first head is stored, among the heads of the control,
    and in the runs that train."""
    d, _ = whole
    for n in (0, 0, 1, 90, 128):
        p = start(*quick, '--out', tmp_path/'o', '--json', tmp_path/'j.json')
        if n == 0: time.sleep(random.uniform(.1, 3))
        while n and p.poll() is None and stored(tmp_path/'o'/'records.db') < n: time.sleep(.02)
        p.send_signal(signal.SIGKILL if os.name == 'posix' else signal.SIGTERM)
        p.communicate()
        assert p.returncode, f'it ended before {n} rows were stored'
    before = stored(tmp_path/'o'/'records.db')
    assert (tmp_path/'o'/'report.html').is_file() and json.loads((tmp_path/'j.json').read_text())['stage'] == 1, (
        'the first stage was told')
    code, out, err = run(*quick, '--out', tmp_path/'o', '--json', tmp_path/'j.json')
    assert code == 0, err
    assert table(tmp_path/'j.json') == table(d/'j.json')
    assert before >= 128 and stored(tmp_path/'o'/'records.db') == stored(d/'o'/'records.db') > before

def test_budget_trims_and_says_so(tmp_path, capsys):
    few = 'digits', '--shots', '1', '--steps', '20', '--tune', 'none', '--workers', '1', '--out', tmp_path
    def run(*args):
        "In this process: three starts of Python fewer"
        return main(['compare', *map(str, args)]), *capsys.readouterr()
    code, out, err = run(*few, '--strategies', 'fine-tuning', '--budget', '1e-4')
    assert code == 2 and 'raise --budget' in err and not (tmp_path/'report.html').exists()
    code, out, err = run(*few, '--strategies', 'feature-extraction,fine-tuning', '--budget', '1e-4', '--json',
                         tmp_path/'j.json')
    j = json.loads((tmp_path/'j.json').read_text())
    assert code == 0 and [c['strategy'] for c in j['cells']] == ['feature-extraction'], (
        'the first stage is never left out')
    assert [(m['strategy'], m['shots']) for m in j['missing']] == [('fine-tuning', 1)]
    assert j['missing'][0]['minutes'] > 0
    assert re.search(r'Not run within 0.0001 minutes: fine-tuning at 1 label per class, '
                     r'which takes about \d+ s more', out), out
    code, out, err = run(*few, '--strategies', 'fine-tuning', '--seeds', '900', '--budget', '.3')
    assert code == 0 and re.search(r'To fit the budget: \d+ seeds instead of 900', out), out + err

def test_a_damaged_store_is_kept_aside(tmp_path, capsys):
    (tmp_path/'records.db').write_bytes(b'SQLite format 3\0' + b'rubbish'*1000)
    args = '--shots', '1', '--seeds', '3', '--steps', '2', '--tune', 'none', '--strategies', 'feature-extraction'
    code, (out, err) = main(['compare', 'digits', *args, '--out', str(tmp_path)]), capsys.readouterr()
    assert code == 0, err
    aside = [p for p in tmp_path.iterdir() if '.damaged-' in p.name]
    assert len(aside) == 1 and b'rubbish' in aside[0].read_bytes()
    assert 'damaged' in out + err

bad = [(['digit'], "did you mean 'digits'"), (['--backbone', 'glyphnett'], "'glyphnet'"),
       (['--backbone', 'resnet18', '--weights', 'no.pth'], 'no.pth'),
       (['--strategies', 'finetuning'], "'fine-tuning'"),
       (['--shots', '1,200'], 'lower --shots'), (['--shots', 'few'], 'whole number'),
       (['--shots', '0'], 'whole number'), (['--seeds', '1'], '3 or more'),
       (['--steps', '0'], '1 or more'), (['no/such/folder'], 'no/such/folder'),
       (['--budget', '-1'], 'more than 0'), (['--budget', 'soon'], 'or none'),
       (['emoji', '--strategies', 'feature-extraction+aug'], 'feature-extraction'),
       (['--strategies', 'fine-tuning+aug'], 'leave +aug out'), (['--device', 'tpu9'], 'device'),
       (['--tune', 'test'], 'known: none, valid'),
       (['one-class'], "one class only ('dark')"), (['two-pictures'],
                                                    "class 'light' has 2 pictures to split into 3 parts"),
       (['unreadable'], "class 'light' has no picture that can be read"),
       (['whole', '--shots', '500'], 'has 18 training pictures: lower --shots, or say all'),
       (['whole', '--valid-pct', '.9', '--test-pct', '.3'], 'leave nothing to train on'),
       (['whole', '--valid-pct', '2'], 'between 0 and 1'),
       (['whole', '--strategies', 'feature-extraction', '--seeds', '2'], '3 or more'),
       (['whole', '--split-seed', '-1'], 'whole number'),
       (['digits', '--valid-pct', '.3'], 'digits comes with its parts'),
       (['whole', '--strategies', ''], 'name one of'), (['whole', '--shots', ''], 'no shots'),
       (['--backbone', 'squeezenet1_0', '--weights', 'damaged.pth'], 'cannot be read')]

def photos(d):
    "Folders of pictures: whole, with one class, with too few pictures in a class, with none that can be read"
    rng = np.random.default_rng(0)
    for folder,n in ('whole', 30), ('one-class', 30), ('two-pictures', 30), ('unreadable', 30):
        for c in ('dark', 'light')[:1 if folder == 'one-class' else 2]:
            (d/folder/c).mkdir(parents=True)
            for i in range(2 if (folder, c) == ('two-pictures', 'light') else n):
                f = d/folder/c/f'{i}.png'
                if (folder, c) == ('unreadable', 'light'): f.write_bytes(b'no picture')
                else:
                    Image.fromarray(rng.integers(128*(c == 'light'), 128 + 128*(c == 'light'), (32, 32, 3),
                                                 dtype=np.uint8)).save(f)

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
    photos(tmp_path)
    args = [[*a, '--out', str(tmp_path/f'o{i}')] for i,(a,_) in enumerate(bad)]
    p = subprocess.run([*python(), '-c', code, json.dumps(args)], capture_output=True, text=True, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    for (a,words),(c,err) in zip(bad, json.loads(p.stdout.splitlines()[-1])):
        assert c == 2, (a, err)
        assert words in err and err.strip().count('\n') == 0, (a, err)
    assert not list(tmp_path.glob('o*/report.html'))
    assert not (tmp_path/f'o{len(bad)-1}').exists(), 'weights that cannot be read are refused before a folder is made'

def test_fixed_rates_are_the_measured_ones():
    from tlcourse.strategy import STRATEGIES
    stored = json.loads((Path(__file__).parent.parent/'grids/rates.json').read_text())
    assert ({k: f.rate for k,f in STRATEGIES.items() if f.rate is not None and not getattr(f, 'untuned', False)}
            == stored['chosen'])
