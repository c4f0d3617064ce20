"The report: one file that stands alone, with the numbers of the comparison, for any names and in any folder."
import os, re
from html.parser import HTMLParser
from types import SimpleNamespace
import numpy as np, pytest
from tlcourse.base import BadInput, versions
from tlcourse.comparison import Comparison
from tlcourse.records import Records
from tlcourse.report import report_html, write_report
from staged import made_staged

ACC = {'scratch': .5, 'feature-extraction': .8, 'fine-tuning': .82}
ODD = ['<b>bold</b>', 'Möwe & Co', 'قطة', '猫', '"quoted" \x07\udcff']

def made_up(d, classes=ODD, name='<i>my photos</i>', strategies=tuple(ACC), shots=(1, 5), seeds=3, tune='valid', notes=(), pictures=True, size=32, right=False):
    "A comparison of made-up runs."
    rng = np.random.default_rng(0)
    y = np.arange(60) % len(classes)
    recs = Records(d/'records.db')
    recs.put_labels('px', y, dict(classes=[c.encode('utf-8', 'replace').decode() for c in classes]))
    def spec(s, k, seed, kind, lr=.003, steps=30):
        return dict(kind=kind, pixel_hash='px', strategy=s, shots=k, seed=seed, lr=lr, steps=steps)
    cells, rates = [], []
    for k in shots:
        for s in [*strategies, *(['scratch-4x'] if k == 1 and 'scratch' in strategies else [])]:
            one = s == 'scratch-4x'
            specs = [spec('scratch' if one else s, k, i, 'report', steps=120 if one else 30) for i in range(1 if one else seeds)]
            for sp in specs:
                ok = np.full(len(y), True) if right else rng.random(len(y)) < ACC.get(s, .6)
                recs.add(sp, dict(pred=np.where(ok, y, (y+1) % len(classes)).astype(np.uint16), prob=np.full(len(y), .75, np.float16),
                                  seconds=2., train_acc=.9, valid_acc=.7))
            cells.append([s, k, specs])
            if one: continue
            tried = [[.001, .61], [.003, .72], [.009, .68]] if tune == 'valid' else []
            for lr,acc in tried: recs.add(spec(s, k, 1000, 'tune', lr), dict(valid_acc=acc, seconds=1.5))
            rates.append(dict(strategy=s, shots=k, lr=.003, edge=0, tried=tried))
    what = dict(kind='study', pixel_hash='px', target=name, size=size, backbone='glyphnet', weights='sha256:ab', head='pool-flatten-linear',
                strategies=list(strategies), shots=list(shots), seeds=seeds, steps=30, bs=32, tune=tune, V=5, augment=[], device='cpu', code=0)
    recs.add(what, dict(rates=rates, cells=cells, notes=list(notes), versions=versions()))
    x = rng.integers(0, 256, (len(y), 3, size, size)).astype(np.uint8)
    c = Comparison(recs, what, SimpleNamespace(_test_arrays=(x, y), classes=classes) if pictures else None)
    c.classes = classes # with what JSON could not keep
    return c

VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}

class Page(HTMLParser):
    "Tags that nest, the ids, the references, and the text of each table row."
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.refs, self.rows, self.heads = [], [], [], [], [], []
        self.feed(text); self.close()
        assert not self.open, self.open
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        assert len(a) == len(attrs), f'an attribute twice in {tag}'
        self.tags.append((tag, a))
        if 'id' in a: self.ids.append(a['id'])
        self.refs += [v for k,v in attrs if k in ('src', 'href', 'srcset', 'poster', 'data', 'action', 'xlink:href')]
        if tag == 'tr': self.rows.append([])
        if tag in ('td', 'th') : self.rows[-1].append('')
        if tag not in VOID: self.open.append(tag)
    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID: self.open.pop()
    def handle_endtag(self, tag): assert self.open.pop() == tag, tag
    def handle_data(self, data):
        if self.open and self.open[-1] in ('td', 'th'): self.rows[-1][-1] += data

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    d = tmp_path_factory.mktemp('report')
    c = made_up(d, notes=['skipped 1 file that cannot be used:', '  Möwe/ein <b>Bild</b>.jpg: damaged'])
    files = write_report(c, d/'a new folder')
    return c, files, files[1].read_text(encoding='utf-8')

def test_files(made):
    _, files, _ = made
    assert [f.name for f in files] == ['curve.png', 'report.html'] and sorted(os.listdir(files[0].parent)) == ['curve.png', 'report.html']
    assert files[0].read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'

def test_stands_alone(made):
    text = made[2]
    p = Page(text)
    assert '://' not in text and '@import' not in text
    assert all(r.startswith(('#', 'data:image/')) for r in p.refs), p.refs
    assert not {t for t,_ in p.tags} & {'script', 'link', 'iframe', 'object', 'embed', 'base'}
    assert not [a for _,a in p.tags if any(k.startswith('on') for k in a)]
    assert not re.search(r'url\((?!#)', text)

def test_valid_and_accessible(made):
    p = Page(made[2])
    assert len(p.ids) == len(set(p.ids))
    assert {r[1:] for r in p.refs if r[0] == '#'} <= set(p.ids)
    assert set(re.findall(r'url\(#([^)]+)\)', made[2])) <= set(p.ids)
    get = lambda tag: [a for t,a in p.tags if t == tag]
    assert get('html') == [{'lang': 'en'}] and len(get('h1')) == len(get('title')) == len(get('main')) == 1
    assert all(a.get('alt') for a in get('img')) and len(get('img')) >= 12
    assert all(a.get('scope') in ('col', 'row') for a in get('th'))
    assert len(get('caption')) == len(get('table')) and all(a.get('aria-label') for a in get('svg')) and len(get('svg')) == 2

def test_numbers_of_the_comparison(made):
    c, _, text = made
    rows = Page(text).rows
    for df in c.table, c.differences:
        assert [*df.columns] in rows
        for r in df.itertuples(index=False): assert [str(v) for v in r] in rows
    assert ['1', 'scratch', '0.003', '0.001:\xa061.0 · 0.003:\xa072.0 · 0.009:\xa068.0', 'no'] in rows
    assert ['1', 'scratch', '2.0', '3', '6.0', '3', '4.5'] in rows and ['1', 'scratch-4x', '2.0', '1', '2.0', '0', '0.0'] in rows
    runs = sum(map(len, c.specs.values()))
    assert f'opened {runs} times' in text and f'{len(c.pairs)} comparisons were made' in text
    assert ['tlcourse', versions()['tlcourse']] in rows

def test_names_are_escaped(made):
    text = made[2]
    for bad in '<b>bold', '<i>my photos', '<b>Bild', '\x07', '\udcff', '"quoted" ': assert bad not in text
    for good in '&lt;b&gt;bold&lt;/b&gt;', 'Möwe &amp; Co', 'قطة', '猫', '&quot;quoted&quot; \ufffd\ufffd', '&lt;i&gt;my photos&lt;/i&gt;', 'Möwe/ein &lt;b&gt;Bild': assert good in text

def test_recommendation_comes_first(made):
    c, _, text = made
    assert 0 < text.index('class="answer"') < text.index('<svg') < text.index('<table')

def test_same_comparison_same_file(made, tmp_path):
    c, files, text = made
    assert write_report(c, tmp_path)[1].read_text(encoding='utf-8') == text

def test_photos_are_jpeg(tmp_path):
    text = report_html(made_up(tmp_path, size=96))
    assert 'data:image/jpeg' in text and 'data:image/png' not in text

@pytest.mark.parametrize('kw,words', [(dict(strategies=('fine-tuning',), shots=(5,)), 'nothing to compare'), (dict(tune='none'), 'rates are fixed'),
                                      (dict(pictures=False), 'not at hand'), (dict(right=True), '60 pictures are right in every run')])
def test_other_comparisons(tmp_path, kw, words):
    text = report_html(made_up(tmp_path, **kw))
    Page(text)
    assert words in text

def test_refused_and_nothing_half_written(made, tmp_path, monkeypatch):
    c = made[0]
    (tmp_path/'file').write_text('mine')
    with pytest.raises(BadInput, match='cannot write'): write_report(c, tmp_path/'file')
    assert (tmp_path/'file').read_text() == 'mine'
    d = tmp_path/'full'
    d.mkdir()
    for n in 'curve.png', 'report.html': (d/n).write_text('old')
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(BadInput, match='No space left'): write_report(c, d)
    assert {n: (d/n).read_text() for n in os.listdir(d)} == {'curve.png': 'old', 'report.html': 'old'}


# A study in stages

def staged_page(d, **kw):
    c = made_staged(d, **kw)
    text = report_html(c)
    return c, text, Page(text)

def sub(text): return re.search(r'<p class="sub">(.*?)</p>', text)[1]

@pytest.mark.parametrize('stage', [1, 2, 3])
def test_staged_report(tmp_path, stage):
    c, text, p = staged_page(tmp_path, stage=stage)
    assert len(p.ids) == len(set(p.ids)) and '://' not in text
    assert 0 < text.index('class="answer"') < text.index('<svg') < text.index('<table')
    said = {1: 'So far (frozen features alone, stage 1 of 3). ', 2: 'So far (stage 2 of 3). ', 3: 'So far (1 cell left out by the budget). '}
    assert sub(text).startswith(said[stage] + '6 classes, 300 test pictures, ')
    steps = re.search(r'seeds, (?:(.*) steps a run)?', sub(text))[1]
    assert steps == {1: None, 2: '255', 3: '80 to 255'}[stage] and '1, 5, 20 and all (816) labels' in sub(text)
    for df in [c.table] + [c.differences]*bool(c.pairs):
        assert [*df.columns] in p.rows
        for r in df.itertuples(index=False): assert [str(v) for v in r] in p.rows
    assert ('id="left-out"' in text) == (stage == 3) == ('would take about 7 more minutes' in text)
    assert text.count('A random body, its statistics estimated') == 1 and 'in no comparison: k-nn and random-features' in text
    assert ('draws no verdict' in text or 'nothing to compare it with yet' in text) == (stage == 1)
    assert '5 passes or more, by the size' in text

def test_nothing_left_out_no_section(tmp_path):
    _, text, _ = staged_page(tmp_path, missing=(), arms=['feature-extraction', 'last-layers', 'fine-tuning'])
    assert 'left-out' not in text and 'So far' not in text and '(2 comparisons)' in text

def test_staged_rates(tmp_path):
    _, text, p = staged_page(tmp_path, edges=[('last-layers', 'all')])
    assert ['1', 'feature-extraction', 'weight decay', '0.01', 'fixed', '', ''] in p.rows
    assert ['5', 'fine-tuning', 'learning rate', '0.003', 'taken over from all labels', '', 'no'] in p.rows
    tried = '0.001:\xa00.500* · 0.003:\xa00.510* · 0.009:\xa00.700'
    assert ['all (816)', 'last-layers', 'learning rate', '0.003', 'chosen', tried, 'the highest tried'] in p.rows
    assert ['all (816)', 'fine-tuning', 'learning rate', '0.003', 'chosen, after a race over a third of the steps', tried, 'no'] in p.rows
    assert 'nothing is claimed' in text

def test_staged_cost_counts_the_runs_that_chose(tmp_path):
    rows = staged_page(tmp_path)[2].rows
    assert ['all (816)', 'last-layers', '82.0', '3', '246.0', '3', '9.0'] in rows
    assert ['5', 'feature-extraction', '0.4', '20', '8.0', '4', '12.0'] in rows and ['5', 'fine-tuning', '82.0', '3', '246.0', '0', '0.0'] in rows

def test_staged_without_choosing(tmp_path):
    _, text, _ = staged_page(tmp_path, tune='none')
    assert 'The rates are fixed' in text and 'tuning runs' not in text

def test_staged_forecast(tmp_path):
    c, text, p = staged_page(tmp_path)
    f, b = c.forecast, c.forecast['back_test']
    def row(what, x, *more): return [what, more[0], f"{100*x['mean']:.1f}", f"[{100*x['low']:.1f}, {100*x['high']:.1f}]", *more[1:]]
    assert row('1,632 training pictures', f, '5, 20 and all', '', '') in p.rows
    assert row('with all 816 labels', b, '5 and 20', f"{100*f['measured']:.1f}", f"{100*b['miss']:+.1f}") in p.rows

def test_one_run_is_said_as_one(tmp_path):
    text = staged_page(tmp_path, stage=1)[1]
    assert '1 run on 300 test pictures' in text and 'of 1 runs' not in text and 'one run, whose interval' in text

def test_others_see_better_by_their_own_number_of_runs(tmp_path):
    acc = {'feature-extraction': {'all': .9}, 'fine-tuning': {'all': .91}}
    plan = {1: [('feature-extraction', 'all')], 2: [('fine-tuning', 'all')], 3: []}
    text = staged_page(tmp_path, acc=acc, plan=plan, shots=['all'], arms=['feature-extraction', 'fine-tuning'], missing=())[1]
    assert 'Seen better by another strategy' in text and re.search(r'(fine-tuning: wrong in [01] of 3|feature-extraction: wrong in 0 of 1)', text)

def test_report_before_any_strategy_ran(tmp_path):
    assert 'No strategy has run yet' in staged_page(tmp_path, stage=1, plan={1: [('k-nn', 'all')]}, arms=['fine-tuning', 'last-layers'])[1]

def test_a_report_is_not_replaced_by_another_studys(tmp_path): # I16
    one, two = (made_up(tmp_path, seeds=n) for n in (3, 4))
    two.settings = {**two.settings, 'weights': 'sha256:cd'}
    first, second = write_report(one, tmp_path/'o'), write_report(two, tmp_path/'o')
    assert [f.name for f in first] == ['curve.png', 'report.html'] and first[1].read_text(encoding='utf-8') == report_html(one)
    assert not {*first} & {*second} and all(f.is_file() for f in second)
    assert write_report(one, tmp_path/'o') == first and write_report(two, tmp_path/'o') == second
