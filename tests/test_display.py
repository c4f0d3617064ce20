"What a reader sees: bars only where somebody watches, tables that anyone can read, pictures as they are, one style."
import io, os, re, subprocess, sys
from html.parser import HTMLParser
import matplotlib, matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from tlcourse.base import Bar, BadInput, html_table, watched
from tlcourse.strategy import STRATEGIES
from tlcourse.plots import look, okabe_ito, picture_grid, style
from conftest import python, written_to

# --- bars

class Screen(io.StringIO):
    def isatty(self): return True

@pytest.mark.parametrize('stream,term,seen',
                         [(Screen(), 'xterm', 'terminal'), (Screen(), 'dumb', ''), (io.StringIO(), 'xterm', ''),
                                              (object(), 'xterm', '')])
def test_watched(stream, term, seen, monkeypatch):
    monkeypatch.setenv('TERM', term)
    assert watched(stream) == seen
    monkeypatch.setattr(sys, 'stderr', stream)
    assert watched() == seen

def test_watched_without_streams(monkeypatch): # As in a program without a console
    monkeypatch.setattr(sys, 'stderr', None)
    assert watched() == '' and list(Bar(2).over('ab')) == ['a', 'b']

@pytest.mark.parametrize('show,stream', [(True, Screen), (False, Screen), (True, io.StringIO)])
def test_bar(show, stream, monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setattr(sys, 'stderr', s := stream())
    for _ in Bar(40, 'runs', show).over(range(40)): pass
    if show and stream is Screen:
        assert '40/40 runs' in s.getvalue() and '\n' not in s.getvalue() and s.getvalue().endswith(' \r')
    else: assert s.getvalue() == ''

def test_bar_goes_when_the_loop_fails(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setattr(sys, 'stderr', s := Screen())
    def fails():
        yield 1
        raise ValueError
    with pytest.raises(ValueError): list(Bar(3).over(fails()))
    assert s.getvalue().endswith(' \r')

def test_one_bar_at_a_time(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setattr(sys, 'stderr', s := Screen())
    for _ in Bar(2, 'outer').over(range(2)):
        for _ in Bar(3, 'inner').over(range(3)): pass
    assert 'outer' in s.getvalue() and 'inner' not in s.getvalue()
    for _ in Bar(3, 'next').over(range(3)): pass
    assert 'next' in s.getvalue()

def seen_by_a_worker():
    os.environ['TERM'] = 'xterm'
    return watched(Screen())

def test_workers_show_no_bar():
    import multiprocessing as mp
    with mp.get_context('spawn').Pool(1) as pool: assert pool.apply(seen_by_a_worker) == ''

LONG = '''
import sys
from tlcourse.data import target
from tlcourse.strategy import STRATEGIES
from tlcourse.pretrain import pretrain
dls = target('digits').dls(shots=1, valid_shots=1)
for s in ('fine-tuning', 'lp-ft', 'feature-extraction'): STRATEGIES[s](dls, 'glyphnet', steps=3)
STRATEGIES['scratch'](dls, 'glyphnet', steps=1, progress=False)
pretrain(steps=2, bs=4, n_glyphs=8, out=sys.argv[1])
print('done')
'''

def test_silent_in_a_pipe(tmp_path):
    r = subprocess.run([*python(), '-c', LONG, tmp_path], capture_output=True, text=True, timeout=300)
    assert (r.returncode, r.stdout) == (0, 'done\n'), r.stderr
    assert not re.search('[\r\b\x1b█|]', r.stderr)

def test_bars_on_a_terminal(tmp_path):
    import pty
    ours, theirs = pty.openpty()
    p = subprocess.Popen([*python(), '-c', LONG, tmp_path], stdout=theirs, stderr=theirs,
                         env={**os.environ, 'TERM': 'xterm'})
    os.close(theirs)
    text = written_to(ours)
    assert p.wait(10) == 0, text
    assert '█' in text and '[3/3' in text and 'train_loss' in text # fastai's, of the fits
    assert text.count('train_loss') == 4 # One of each phase, none of the quiet one
    assert '2/2 steps' in text and text.rstrip().endswith('done')

# --- tables

class Tables(HTMLParser):
    "What a test asks of HTML"
    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.captions = [], [], 0
        self.feed(html)
        assert not self.open, f'left open: {self.open}'
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        assert tag not in ('script', 'b', 'i', 'img', 'live'), f'a name became a tag: {tag}'
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def get(self, tag): return [a for t,a in self.tags if t == tag]

def readable(html):
    "Is it a block of tables that anyone can read?"
    t = Tables(html)
    n = len(t.get('table'))
    assert n and len(t.get('caption')) == n
    assert len([a for a in t.get('div') if a.get('role') == 'region' and a.get('aria-label')]) == n
    assert all(a.get('scope') in ('row', 'col') for a in t.get('th'))
    css = re.findall(r'(?:color|background)\s*:\s*([^;}]+)', html)
    # The colours of the page, light or dark
    assert css and set(css) <= {'inherit', 'none'} and 'overflow-x:auto' in html
    assert not re.search(r'\b(?:width|min-width):\s*\d{3,}px', html)
    return t

@pytest.fixture(scope='module')
def digits():
    from tlcourse.data import target
    return target('digits')

@pytest.fixture(scope='module')
def learn(digits):
    from tlcourse.finetune import fine_tuning
    return fine_tuning(digits.dls(shots=5), 'glyphnet', steps=12, progress=False)

def shown(what, digits, learn):
    from tlcourse.backbones import arch
    from tlcourse.comparison import stored_comparison
    from tlcourse.audit import freeze_audit
    from tlcourse.findings import Finding
    from tlcourse.lint import lint
    from tlcourse.pretrain import weights_card
    from tlcourse.stored_tables import lesson_records
    return dict(card=lambda: digits.card, weights=weights_card, pip=lambda: weights_card('tf_efficientnet_lite0'),
                arch=lambda: arch('glyphnet'), audit=lambda: freeze_audit(learn),
                comparison=lambda: stored_comparison(lesson_records('first_transfer')),
                findings=lambda: lint(learn, digits),
                finding=lambda: Finding('<live> & "so"', '<b>', 'a & b', "x = '<i>'", 4))[what]()

@pytest.mark.parametrize('what', ['card', 'weights', 'pip', 'arch', 'audit', 'comparison', 'finding'])
def test_readable(what, digits, learn): readable(shown(what, digits, learn)._repr_html_())

def test_findings(digits, learn):
    from tlcourse.findings import Findings
    t = readable(Findings([shown('finding', 0, 0)]*2, ['<a>'], {'<c>': 'a & b'})._repr_html_())
    assert len(t.get('code')) == 2 and len(t.get('tr')) == 3

def test_names_are_escaped(digits):
    from copy import copy
    from tlcourse.audit import freeze_audit
    from fastai.vision.all import Learner, nn
    card = copy(digits.card)
    card.name, card.source = '<b> & "x"', '<script>alert(1)</script>\x07'
    html = card._repr_html_()
    readable(html)
    assert '&lt;b&gt; &amp; &quot;x&quot;' in html and '\x07' not in html
    net = nn.Sequential()
    net.add_module('<live>', nn.Linear(3, 2))
    learn = Learner(digits.dls(shots=1), net, loss_func=nn.functional.mse_loss)
    assert '&lt;live&gt;' in (html := freeze_audit(learn)._repr_html_()) and readable(html)

def test_table_of_a_frame():
    df = pd.DataFrame(dict(labels=[1, 1, 5], name=['5', '<b>', 'é'], accuracy=['79.0', '[8, 9]', '1e-05'],
                           text=['x'*50, '', 'y']))
    t = Tables(html := html_table(df, 'Rows & columns', 2, {2}))
    kinds = [a.get('class') for a in t.get('th')[:4]]
    assert kinds == ['num', None, 'num', 'text'] # Digits in a name are no number
    assert len(t.get('tbody')) == 2 and [a.get('class') for a in t.get('tr')] == [None, None, None, 'mark']
    assert '<caption><span>Rows &amp; columns</span></caption>' in html

def test_a_card_needs_no_header():
    t = Tables(html_table({'a': 'b', 'c': 'd'}, 'A card'))
    assert not t.get('thead') and [a['scope'] for a in t.get('th')] == ['row', 'row']

# --- pictures

def test_top_losses_show_the_pictures(digits, learn):
    from fastai.vision.all import ClassificationInterpretation
    with learn.no_bar():
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(6)
        axs = [a for a in plt.gcf().axes if a.images]
        loss, ids, items = interp.top_losses(6, items=True)
        assert len(interp.losses) == len(digits.valid) # The test is sealed
        for ax,l,item in zip(axs, loss, items):
            said, true = ax.get_title().split(' / ')[0].split('/')
            assert true == item.label and said in digits.classes and f'{float(l):.2f}' in ax.get_title()
            got = np.asarray(ax.images[0].get_array()).transpose(2, 0, 1).astype(float)
            want = digits.valid.x[item.i].numpy().astype(float)
            assert np.abs(got*(255 if got.max() <= 1 else 1) - want).max() <= 1.5 # Not normalised, not augmented
        cm = interp.confusion_matrix()
        assert cm.sum() == len(digits.valid) and (cm.sum(1) == list(digits.valid.counts.values())).all()
        interp.plot_confusion_matrix()
        assert [t.get_text() for t in plt.gca().get_xticklabels()] == digits.classes
        assert all(a in digits.classes and b in digits.classes and n > 1 for a,b,n in interp.most_confused(2))
    assert digits.openings == 0
    plt.close('all')

@pytest.fixture
def photos(tmp_path):
    "A folder of 13 classes with names that a figure could stumble over"
    from tlcourse.data import target
    names = ['$ and $x_$', 'a_very_long_name_of_a_class_that_nobody_should_type_again', 'é', *map(str, range(10))]
    for i,c in enumerate(names):
        (tmp_path/'photos'/c).mkdir(parents=True)
        for j in range(6):
            a = np.random.RandomState(10*i + j).randint(0, 255, (80, 120, 3), dtype=np.uint8)
            Image.fromarray(a).save(tmp_path/'photos'/c/f'{j}.png')
    return target(tmp_path/'photos', size=96)

def test_show_a_folder(photos):
    fig = photos.show(n=2)
    fig.canvas.draw()
    assert isinstance(fig, Figure) and not plt.get_fignums() # Shown once, as the value of a cell
    assert fig.get_suptitle() == 'photos: training pictures of 10 of 13 classes' and len(fig.axes) == 20
    titles = [a.get_title() for a in fig.axes if a.get_title()]
    assert len(titles) == 10 and '$ and $x ' in ' '.join(titles).replace('\n', ' ') + ' '
    assert all(t.count('\n') < 3 for t in titles)

def test_show_more_than_there_are(photos):
    fig = photos.show(n=30, max_classes=50)
    assert len(fig.axes) == 30*13 and sum(bool(a.images) for a in fig.axes) == len(photos.train)
    assert fig.get_suptitle().endswith('all 13 classes')

@pytest.mark.parametrize('kw', [dict(n=0), dict(max_classes=0), dict(n=1.5), dict(n='6')])
def test_show_refuses(kw, digits):
    with pytest.raises(BadInput, match='whole number'): digits.show(**kw)

# --- one style

def colours(ax):
    lines = {to_hex(l.get_color()).upper() for l in ax.lines}
    return lines | {to_hex(c).upper() for o in ax.collections for c in o.get_colors()}

def test_comparison_draws_in_the_style(digits, learn):
    c = shown('comparison', digits, learn)
    allowed = {v.upper() for v in okabe_ito.values()} | {'#444444'} # Grey: the line at zero
    for ax in (c.plot(), c.plot_differences()):
        assert colours(ax) and colours(ax) <= allowed
        assert not ax.spines['top'].get_visible() and ax.get_xlabel() and ax.get_ylabel()
    ax = plt.subplots()[1]
    assert c.plot(ax) is ax and c.plot_differences(ax) is ax
    plt.close('all')

def test_each_strategy_has_a_look_of_its_own():
    "The same in every figure, whatever else is drawn; an augmented arm is its base, dashed"
    names = [*STRATEGIES, 'k-nn', 'scratch-4x']
    seen = {(look(n)['color'], look(n)['marker']) for n in names}
    assert len(seen) == len(names) and all(look(n) == look(n, ['resnet18', 'some other']) for n in names)
    plain = {n: look(n) for n in names}
    assert all({**look(f'{n}+aug'), **plain[n]} == look(f'{n}+aug') != plain[n] for n in names)
    # A name without one takes what is free
    assert look('resnet18', ['scratch', 'resnet34', 'resnet18']) != look('resnet18')

def unstyled(src):
    "Calls in a module that make a figure outside of `with style()`: the function's name and the line."
    import ast
    def go(node, name, inside):
        if isinstance(node, ast.FunctionDef): name, inside = node.name, False
        if isinstance(node, ast.With):
            inside = inside or any(isinstance(i.context_expr, ast.Call) and ast.unparse(i.context_expr.func) == 'style'
                                   for i in node.items)
        made = isinstance(node, ast.Call) and ast.unparse(node.func) in ('plt.subplots', 'plt.figure', 'Figure')
        if made and not inside: yield name, node.lineno
        for n in ast.iter_child_nodes(node): yield from go(n, name, inside)
    return list(go(ast.parse(src), '', False))

def test_figures_share_one_style():
    from conftest import ROOT
    found = {p.stem: o for p in (ROOT/'tlcourse').rglob('*.py') if (o := unstyled(p.read_text(encoding='utf-8')))}
    inside = {('plots', '_axes'), ('widgets', '_draw_probs')} # Their callers hold the style
    assert {(m, f) for m,o in found.items() for f,_ in o} <= inside

def test_unstyled_is_found():
    assert unstyled('def f():\n    with style(): fig = plt.figure()') == []
    assert unstyled('def f():\n    with style(): pass\n    fig = plt.subplots()') == [('f', 3)]

def test_style_leaves_nothing_behind():
    before = dict(matplotlib.rcParams)
    with style(): assert matplotlib.rcParams['axes.spines.top'] is False
    picture_grid([np.zeros((3, 8, 8), np.uint8)], ['$\\a_$'], title='$\\b_$')
    plt.gcf().canvas.draw() # A dollar in a name is a dollar
    assert dict(matplotlib.rcParams) == before
    plt.close('all')
