"Checks take no empty answer, the lessons' solutions pass them, and the score card loses nothing."
import ast, dis, json, os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import pytest
from tlcourse import cli, exercises
from tlcourse.base import BadInput
from tlcourse.dev import cells
from tlcourse.exercises import Verdict, _checks, _exercises, check, log_score, scores
from conftest import PAGES

LESSONS = {p.stem[3:]: p for p in PAGES if p.parent.name == 'lessons'}
EXERCISES = sorted((lesson, n) for lesson in LESSONS for n in _checks(lesson))

@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    "A reader called Ada, in an empty folder."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('IN_TEST', raising=False)
    monkeypatch.setenv('TLCOURSE_NAME', 'Ada')
    monkeypatch.setattr(exercises, '_told', set())

def card(path='scores.json'): return json.loads(open(path, encoding='utf-8').read())

# --- what does not pass

class Any: pass

def leaves(*a): raise SystemExit('done')

TRIVIAL = ['', 'a', None, [], (), {}, set(), 0, 1, -1, True, False, .5, float('nan'), float('inf'), set('abcdefgh'),
           'abcdefgh', [...], Any, Any(), np.zeros, np.zeros(3), print, list, dict, set, str, float, len, leaves,
           lambda: None, lambda *a: None, lambda *a: a[0], lambda *a: a[-1], lambda *a: a, lambda *a: [], lambda *a: {},
           lambda *a: 0, lambda *a: 1, lambda *a: .5, lambda *a: True, lambda *a: '', lambda *a: np.zeros(3),
           lambda *a: ...]

@pytest.mark.parametrize('at', EXERCISES, ids=lambda o: f'{o[0]}.{o[1]}')
def test_no_empty_answer_passes(at):
    for a in TRIVIAL:
        v = check(*at, a)
        assert v.state == 'not yet' and v.hint, (a, v)
    assert not card()[-1]['right']

def test_a_check_that_takes_anything_is_found(monkeypatch):
    monkeypatch.setitem(_exercises, ('freezing', 99), lambda a: None)
    assert check('freezing', 99, '') and check(5, 99, '') # by its name, and by its number

def test_open_and_unknown():
    for at in EXERCISES: assert check(*at, ...).state == 'open'
    for at in ('freezing', 99), (0, 1), ('nowhere', 1), ([], {}), (None, 'x'):
        assert 'no such exercise' in check(*at, 1).hint
    assert not os.path.exists('scores.json')

LOADED = """
import sys
from tlcourse.exercises import check, scores
def pages(): return sorted(m for m in sys.modules if m.startswith('tlcourse.checks.'))
assert not pages() and 'no such exercise' in check('nowhere', 1, 1).hint and not pages()
assert check(4, 1, [.25, .19, .49, .56, .41]) and pages() == ['tlcourse.checks.inside']
scores(sys.argv[1])
assert pages() == ['tlcourse.checks.freezing', 'tlcourse.checks.inside']
assert not {'torch', 'fastai'} & set(sys.modules)
"""

def test_a_page_of_checks_is_loaded_when_asked_for(tmp_path):
    "By the lesson's number too, and by the teacher's table; what is not asked for stays where it is."
    log_score('freezing', 1, True, path=tmp_path/'a.json')
    r = subprocess.run([sys.executable, '-c', LOADED, str(tmp_path/'a.json')], capture_output=True, text=True)
    assert not r.returncode, r.stderr

def test_every_cell_has_its_check():
    "The checks that the lessons call are those there are."
    called = {(a, int(b)) for p in LESSONS.values() for c in cells(p, 'code')
              for a,b in re.findall(r"^check\('(\w+)', (\d+),", c['source'], re.M)}
    assert called == set(EXERCISES)

def test_hints_of_letters():
    "Each letter of a choice that is wrong has a hint of its own."
    for at,(task, solution, _) in TASKS.items():
        options = re.findall(r'^- (\w): ', task, re.M)
        if not options: continue
        right = ast.literal_eval(re.search(r'\{.*?\}', solution)[0])
        assert check(*at, right) and right < set(options)
        hints = [check(*at, {o}).hint for o in options if o not in right]
        assert len(set(hints)) == len(hints) and not [h for h in hints if 'there is no' in h], at
        assert 'there is no' in check(*at, {*right, 'z'}).hint and not check(*at, set(sorted(right)[1:]))

@pytest.mark.parametrize('at,answer,words', [
    (('first_transfer', 1), .04, 'Learner itself'),
    (('first_transfer', 2), .15, 'what `compare` returns'),
    (('first_transfer', 4), {'c'}, 'c is not a fault'),
    (('how_much_data', 1), .04, 'between 0 and 100'), (('how_much_data', 3), lambda *a: 'x', 'no number'),
    (('how_much_data', 5), {2: 1}, 'three or more'),
    (('honest_data', 2), lambda a, b: np.zeros(30), 'each *test* picture'),
    (('honest_data', 4), .04, 'target(folder, groups=...)'),
    (('inside', 1), [.28, .27, .25, .17, .14], 'random weights'),
    (('feature_extraction', 3), lambda w, b, mu, sd: (w*sd, b), 'multiplied by its spread'),
    (('fine_tuning', 3), lambda s, g: 7, 'another kind'),
    (('fine_tuning', 3), lambda s, g: 1/0, 'your answer raises ZeroDivisionError'),
    (('learning_rates', 1), .68, 'in %'), (('learning_rates', 2), lambda lr, n: [1e-3]*n, 'table of this page'),
    (('extraction_or_tuning', 1), 45, 'still ahead'), (('extraction_or_tuning', 4), {'a', 'd'}, 'not mean equal'),
    (('extraction_or_tuning', 3), ([True]*20, [True]*19), 'same pictures for both'),
    (('how_much_data', 3), .04, 'function itself'),
    (('near_and_far', 1), '1', 'one number'), (('near_and_far', 2), [], 'class itself'),
    (('near_and_far', 3), ([True]*20, [True]*19), 'same validation pictures'),
    (('which_backbone', 1), '1', 'one number'), (('which_backbone', 2), [], 'function itself'),
    (('which_backbone', 3), {'glyphnet': 41., 'resnet18': 43., 'tf_efficientnet_lite0': 62.}, 'a share from 0 to 1'),
    (('which_backbone', 3), {'glyphnet': .4, 'resnet18': .5}, 'three backbones'),
    (('imbalance', 1), .9, 'in %'), (('imbalance', 2), [], 'metric itself'),
    (('imbalance', 3), dict(accuracy=.8), 'with the keys'),
    (('imbalance', 3), dict(accuracy=80, balanced=.7, adjusted=.7), 'not in %'),
    (('overfitting', 1), .56, 'in %'), (('overfitting', 2), [], 'function itself'),
    (('overfitting', 3), [(f'{i}.png', 'cat', i) for i in range(10)], 'largest loss comes first')])
def test_hint_fits(at, answer, words): assert words in check(*at, answer).hint

def test_hints_of_first_transfer(monkeypatch):
    "A Learner is known by its body, its pictures and what it has learned; a comparison by its rows and what came out."
    import torch
    from fastai.vision.all import accuracy, vision_learner
    from tlcourse.backbones import glyphnet
    from tlcourse.comparison import stored_comparison
    from tlcourse.data import target
    from tlcourse.stored_tables import lesson_records
    digits = target('digits')
    def learn(shots=5, **kwargs):
        return vision_learner(digits.dls(shots=shots, bs=10), glyphnet, metrics=accuracy, **kwargs)
    def said(n, answer): return check('first_transfer', n, answer).hint
    assert 'train longer' in said(1, learn()) and 'not the pretrained one' in said(1, learn(pretrained=False))
    assert 'it has 10 training pictures' in said(1, learn(shots=1))
    moved = learn()
    with torch.no_grad(): next(p for p in moved.model[0].parameters() if p.dim() > 1).mul_(1.01)
    assert 'trained too' in said(1, moved)
    c, heads = (stored_comparison(lesson_records('first_transfer'), tune='none'),
                ('feature-extraction', 'random-features'))
    assert said(2, c) == '' and "the course's targets" in said(3, c)
    monkeypatch.setattr(c, 'correct', {**c.correct, (heads[0], 20): c.correct[heads[1], 20]})
    assert 'no lead' in said(2, c)
    del c.correct[heads[1], 20]
    assert 'at 20 labels' in said(2, c)

# --- the solutions of the lessons pass

def tasks(page):
    "{(lesson, n): (task, solution, name of the answer)} of a lesson."
    cs, res = cells(page), {}
    for i,c in enumerate(cs):
        m = (re.search(r"^(\w+) = \.\.\.\ncheck\('(\w+)', (\d+), \1\)", c['source']) if c['cell_type'] == 'code'
             else None)
        if m:
            res[m[2], int(m[3])] = (cs[i-1]['source'],
                                    next(d['source'] for d in cs[i+1:] if '<details>' in d['source']), m[1])
    return res

TASKS = {k: v for p in LESSONS.values() for k,v in tasks(p).items()}

def ops(code):
    "The instructions of some code and of the functions in it."
    yield from dis.get_instructions(code)
    for o in code.co_consts:
        if hasattr(o, 'co_code'): yield from ops(o)

def defines(code): return {o.argval for o in dis.get_instructions(code) if o.opname == 'STORE_NAME'}
def uses(code): return {o.argval for o in ops(code) if o.opname in ('LOAD_NAME', 'LOAD_GLOBAL')}

def needed(code, before):
    "The cells of `before` that define what `code` uses, in order; what no cell defines is the library's."
    todo, res = [(len(before), code)], set()
    while todo:
        at, code = todo.pop()
        for n in uses(code) - defines(code):
            j = next((j for j in reversed(range(at)) if n in defines(before[j])), None)
            if j is None: continue
            patches = [i for i in range(j, at) if {'patch', n} <= uses(before[i])] # methods of this class
            for i in {j, *patches} - res:
                res.add(i)
                todo.append((i, before[i]))
    return [before[j] for j in sorted(res)]

@pytest.fixture(scope='module')
def library():
    ns = {}
    exec('from tlcourse.all import *\nfrom fastai.vision.all import *', ns)
    return ns

# Where the last line of a solution applies it to the page's own study, the definition alone is run
APPLIED = {('how_much_data', 3): 'the last line reads `single`, a table made of the whole stored study'}

@pytest.mark.parametrize('at', EXERCISES, ids=lambda o: f'{o[0]}.{o[1]}')
def test_solution_passes(at, library):
    task, solution, answer = TASKS[at]
    blocks = re.findall(r'```python\n(.*?)```', solution, re.S)
    ns = {**library, '__name__': 'solution'}
    if blocks:
        tree = ast.parse('\n'.join(blocks))
        if at in APPLIED: tree.body.pop()
        code, *before = [compile(o, 'solution', 'exec')
                         for o in (tree, *(c['source'] for c in cells(LESSONS[at[0]], 'code')))]
        for o in [*needed(code, before), code]: exec(o, ns)
    else: ns[answer] = ast.literal_eval(re.search(r'`(\{.*?\})`', solution)[1])
    for _ in range(3 if callable(ns[answer]) else 1): assert check(*at, ns[answer]), check(*at, ns[answer])

# --- a verdict

def test_verdict_html():
    for state,word in ('open', 'open'), ('right', 'right'), ('not yet', 'not yet'):
        v = Verdict(1, 2, state, 'a < b & c')
        assert word in v._repr_html_() and 'a &lt; b &amp; c' in v._repr_html_() and 'role="status"' in v._repr_html_()
    # a mark each, not only a colour
    assert len({Verdict(1, 1, s)._repr_html_().split('<strong>')[1][0] for s in Verdict._marks}) == 3

# --- the score card

def answers(*rights):
    for r in rights: check('first_transfer', 4, {'a', 'b', 'd'} if r else {'a'})

def test_card(capsys):
    answers(False, False, True, True, False)
    assert [(r['tries'], r['right']) for r in card()] == [(1, False), (2, False), (3, True)] # right stays right
    assert ({k: v for k,v in card()[0].items() if k != 'time'}
            == dict(name='Ada', lesson='first_transfer', n=4, kind='exercise', tries=1, right=False))
    assert capsys.readouterr().out.count("under the name 'Ada'") == 1
    log_score('first_transfer', 'gain', True, 'prediction')
    log_score('first_transfer', 'gain', False, 'prediction')
    # the first guess counts
    assert [(r['n'], r['right']) for r in card() if r['kind'] == 'prediction'] == [('gain', True)]
    check(1.0, np.int64(1), 0) # numbers of other kinds
    assert card()[-1]['n'] == 1 and scores('scores.json').tries.sum() == 4

def test_names(monkeypatch):
    answers(False)
    monkeypatch.setenv('TLCOURSE_NAME', 'Bo')
    answers(True)
    monkeypatch.setenv('TLCOURSE_NAME', ' ')
    monkeypatch.setattr('getpass.getuser', lambda: 'login')
    answers(False)
    def fails(): raise KeyError('no such user')
    monkeypatch.setattr('getpass.getuser', fails)
    answers(False)
    assert [(r['name'], r['tries']) for r in card()] == [('Ada', 1), ('Bo', 1), ('login', 1), ('unknown', 1)]

def test_nothing_written_in_tests(monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    answers(True, False)
    assert log_score('first_transfer', 1, True) is None and not os.listdir()
    assert log_score('first_transfer', 1, True, path='mine.json')['right'] and card('mine.json')

BROKEN = ['', '{', '{"name": "Ada"}', '[1]', '[{"name": "Ada"}]',
          '[{"name":"A","lesson":true,"n":1,"kind":"exercise","tries":1,"right":true,"time":""}]',
          '[{"name":"A","lesson":1,"n":1,"kind":"exam","tries":1,"right":true,"time":""}]',
          '[{"name":"A","lesson":1,"n":1,"kind":"exercise","tries":0,"right":true,"time":""}]',
          '[{"name":"A","lesson":0,"n":1,"kind":"exercise","tries":1,"right":true,"time":""}]', # It had lessons 1 to 9
          '[{"name":"A","lesson":10,"n":1,"kind":"exercise","tries":1,"right":true,"time":""}]',
          '[{"name":"A","lesson":"nowhere","n":1,"kind":"exercise","tries":1,"right":true,"time":""}]', b'\xff\xfe',
          '['*100_000]

@pytest.mark.parametrize('text', BROKEN, ids=range(len(BROKEN)))
def test_broken_card_is_kept(text, capsys):
    text = text if isinstance(text, bytes) else text.encode()
    for i in 1, 2:
        with open('scores.json', 'wb') as f: f.write(text)
        answers(True)
        assert len(card()) == 1
        with open(f'scores-unreadable-{i}.json', 'rb') as f: assert f.read() == text
    assert capsys.readouterr().err.count('kept as') == 2
    with pytest.raises(BadInput, match='no score card'): scores('scores-unreadable-1.json')

OLD = ('first_transfer', 'honest_data', 'inside', 'freezing', 'feature_extraction', 'fine_tuning', 'learning_rates',
       'extraction_or_tuning', 'how_much_data')

@pytest.mark.parametrize('number,page', [*enumerate(OLD, 1)])
def test_card_of_the_first_edition(number, page):
    """Its numbers mean the pages that had them; what was right stays right, and later tries stand beside
    it under the page's name."""
    row = dict(name='Ada', lesson=number, n=2, kind='exercise', tries=3, right=True, time='2026-01-05T10:00:00+00:00')
    with open('scores.json', 'w') as f: json.dump([row, {**row, 'n': 'gain', 'kind': 'prediction', 'tries': 1}], f)
    shown, = scores('scores.json').to_dict('records')
    assert shown['lesson'] == int(LESSONS[page].name[:2])
    assert (shown['right'], shown['tries'], shown['guessed']) == (1, 3, 1)
    check(page, 2, 'wrong')
    log_score(page, 'gain', False, 'prediction')
    assert len(card()) == 2
    check(page, 1, 'wrong')
    assert ([(r['lesson'], r['n'], r['tries'], r['right']) for r in card()]
            == [(page, 2, 3, True), (page, 'gain', 1, True), (page, 1, 1, False)])

def test_card_that_cannot_be_written(capsys):
    os.mkdir('scores.json')
    assert check('first_transfer', 4, {'a', 'b', 'd'}) and not check('first_transfer', 4, {'a'})
    assert capsys.readouterr().err.count('No score is kept') == 1

FOLDER = '''
import os, sys
from pathlib import Path
from tlcourse.exercises import check
import tlcourse.checks.first_transfer # Nobody may be unable to read the folder of the course
os.chdir(sys.argv[1])
if os.getuid() == 0: os.setgid(65534); os.setuid(65534)
assert check('first_transfer', 4, {'a', 'b', 'd'}) and not check('first_transfer', 4, {'a'})
'''

@pytest.mark.parametrize('mode', [0o555] if hasattr(os, 'getuid') else []) # Windows knows no such folder
def test_read_only_folder(mode, tmp_path_factory):
    d = tmp_path_factory.mktemp('ro')
    (d/'scores.json').write_text('[]')
    (d/'scores.json').chmod(0o444)
    d.chmod(mode)
    env = {k: v for k,v in os.environ.items() if k != 'IN_TEST'}
    r = subprocess.run([sys.executable, '-c', FOLDER, str(d)], capture_output=True, text=True, env=env)
    assert not r.returncode, r.stderr
    assert r.stderr.count('No score is kept') == 1 and (d/'scores.json').read_text() == '[]'

MANY = '''
import sys
from tlcourse.exercises import log_score
for i in range(25):
    log_score('first_transfer', f'{sys.argv[1]}-{i}', True, 'prediction')
    log_score('honest_data', 1, False)
'''

def test_two_kernels_lose_nothing():
    def kernel(i): return subprocess.run([sys.executable, '-c', MANY, str(i)], capture_output=True, text=True)
    with ThreadPoolExecutor(2) as ex: rs = list(ex.map(kernel, range(2)))
    assert not [r.stderr for r in rs if r.stderr or r.returncode]
    rows = card()
    assert ({r['n'] for r in rows if r['lesson'] == 'first_transfer'}
            == {f'{j}-{i}' for j in range(2) for i in range(25)})
    assert [r['tries'] for r in rows if r['lesson'] == 'honest_data'] == list(range(1, 51))

def test_a_killed_write_leaves_the_card(monkeypatch):
    answers(False)
    before = card()
    def full(*a): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr('os.replace', full)
        answers(True)
    assert card() == before and not [f for f in os.listdir() if f[0] == '.' and not f.endswith('.lock')]

# --- the teacher's table

def said(capsys, *args):
    code = cli.main([str(a) for a in args])
    o = capsys.readouterr()
    return code, o.out, o.err

def test_scores_command(tmp_path, capsys):
    for file,who,done in ('a.json', 'root', (1, 2)), ('b.json', 'root', (1, 2, 3, 4)), ('c.json', 'Cy', ()):
        for n in done: log_score('first_transfer', n, True, name=who, path=file)
        log_score('honest_data', 1, False, name=who, path=file)
    log_score('first_transfer', 'gain', True, 'prediction', name='root', path='a.json')
    log_score('first_transfer', 99, True, name='root', path='a.json') # no such exercise
    capsys.readouterr()
    code, out, err = said(capsys, 'scores', 'a.json', 'b.json', 'c.json', 'a.json', '--json', 'out.json')
    assert (code, err) == (0, '') and 'Self-reported' in out
    rows = card('out.json')
    assert rows['self_reported']
    got = {(r['file'], r['lesson']): (r['right'], r['of'], r['tries'], r['guessed']) for r in rows['scores']}
    assert got == {('a.json', 1): (2, 4, 3, 1), ('b.json', 1): (4, 4, 4, 0),
                   **{(f'{f}.json', 3): (0, 4, 1, 0) for f in 'abc'}}
    assert 'a.json' in out and 'a.json' not in said(capsys, 'scores', 'a.json')[1].split('\n')[0]

@pytest.mark.parametrize('args,words',
                         [(['none.json'], 'cannot read'), (['.'], 'is a folder'), (['bad.json'], 'no score card'),
                                        (['good.json', '--json', 'no/out.json'], 'make it first')])
def test_scores_bad_input(args, words, capsys):
    with open('good.json', 'w') as f: f.write('[]')
    with open('bad.json', 'w') as f: f.write('{}')
    code, out, err = said(capsys, 'scores', *args, *([] if '--json' in args else ['--json', 'out.json']))
    assert (code, out) == (2, '') and words in err and err.count('\n') == 1
    assert not os.path.exists('out.json')

def test_empty_card(capsys):
    with open('good.json', 'w') as f: f.write('[]')
    code, out, _ = said(capsys, 'scores', 'good.json')
    assert code == 0 and 'No tries' in out
