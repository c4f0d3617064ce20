"The report: one file that stands alone, with the numbers of the comparison, for any names and in any folder."
import os, re
from html.parser import HTMLParser
from types import SimpleNamespace
import numpy as np, pytest
from tlcourse.base import BadInput, versions
from tlcourse.comparison import Comparison
from tlcourse.records import Records
from tlcourse.report import report_html, write_report

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
