"The site, built once from the notebooks as they are saved: whole, self-contained, and built without a warning."
import ast, json, re, shutil
from html import unescape
import pytest
from tlcourse import docs
from tlcourse.base import BadInput
from tlcourse.course import _text as text, install_cell, lessons
from tlcourse.dev import cells, main, pages, without_widgets
from tlcourse.docs import WIDGET_VIEW, build_site, site_faults
from conftest import PAGES, ROOT, name, once

@pytest.fixture(scope='session')
def html(site): return {f.relative_to(site).as_posix(): f.read_text(encoding='utf-8') for f in site.rglob('*.html')}

# Pages beside the index, in the sidebar's order
BESIDE = 'beyond', 'cards', 'cheatsheet', 'glossary', 'reading', 'speed'

def page(p):
    "The page that Quarto would make of a notebook: without the number."
    return re.sub(r'(^|/)\d+_', r'\1', name(p)) + '.html'

def symbols():
    src = (ROOT/'tlcourse/_modidx.py').read_text(encoding='utf-8')
    return {k: v for m in ast.literal_eval(src.partition('d = ')[2])['syms'].values() for k,v in m.items()}

def test_what_is_kept_is_of_the_same_files(tmp_path, tmp_path_factory, monkeypatch):
    "Another text, another name, another file: each is another state; and what failed is not kept."
    made, files = [], [tmp_path/o for o in 'ab']
    for f in files: f.write_text('1')
    monkeypatch.setenv('TLCOURSE_KEPT', str(tmp_path/'kept'))
    monkeypatch.setattr('conftest.ROOT', tmp_path)
    def get(): return once(tmp_path_factory, 'x', made.append, files)
    assert get() == get() and len(made) == 1
    files[0].write_text('2')
    get()
    files[0] = files[0].rename(tmp_path/'c')
    get()
    files.pop()
    get()
    assert len({*made}) == len(made) == 4
    def fails(d): raise ZeroDivisionError
    for _ in range(2):
        with pytest.raises(ZeroDivisionError): once(tmp_path_factory, 'y', fails, files)

def test_tree_stays_clean(site): assert site.git_before == site.git_after

def test_pages(html):
    assert {page(p) for p in PAGES} | {'search.html'} == set(html)
    links = [re.search(r'^Docs: \S+?/tlcourse/(\S+)\.md$', p.read_text(encoding='utf-8'), re.M)
             for p in (ROOT/'tlcourse').rglob('*.py')]
    assert {m[1] for m in links if m} <= set(html)

def test_anchors(html):
    ids = {k: set(re.findall(r'\bid="([^"]+)"', v)) for k,v in html.items()}
    missing = [k for k,(link,_) in symbols().items() for p,a in [link.split('#')] if a not in ids[p]]
    assert not missing

def test_a_function_before_a_heading_of_its_name(html):
    assert re.search(r'<section id="true_freeze">\s*<h3>true_freeze', html['lessons/freezing.html'])

def test_no_faults(site): assert not site_faults(site)

def test_nothing_from_elsewhere(site, html):
    "Said again without the library's reader: no resource has a host, in no page, style or script of ours."
    for k,s in html.items():
        s = re.sub(r'<script(?! src).*?</script>', '', s, flags=re.S)
        tags = 'script|img|iframe|link|source|video|audio|embed|object'
        assert not re.findall(rf'<(?:{tags})\b[^>]*?\b(?:src|href|data|srcset)="(?:https?:)?//[^"]*', s), k
        assert not re.search(r'mathjax\.js|mathjax@|require\.js|html-manager|fonts\.g', s, re.I), k
    for f in site.rglob('*.css'):
        assert not re.search(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', f.read_text(encoding='utf-8')), f

def test_no_widget_state(html):
    assert not [k for k,s in html.items() if re.search(r'<script[^>]*widget-(?:view|state)\+json', s)]

def test_search(site):
    s = (site/'searchindex.js').read_text(encoding='utf-8')
    idx = json.loads(s[len('Search.setIndex('):-1])
    at = idx['docnames'].index('core/audit')
    found = idx['titleterms'].get('freeze_audit', [])
    assert at in (found if isinstance(found, list) else [found]) # as a word of a heading, not as one of the text
    assert [at, 'freeze_audit'] in idx['alltitles']['freeze_audit']

def test_docments_and_source(html):
    s = html['core/data.html']
    sec = s[s.index('<section id="kshot">'):]
    sec = sec[:sec.index('</section>')]
    rows = [[unescape(re.sub('<.*?>', '', c)).strip() for c in re.findall(r'<t[hd].*?>(.*?)</t[hd]>', r, re.S)]
            for r in re.findall(r'<tr.*?</tr>', sec, re.S)]
    assert rows[0][1:] == ['Type', 'Default', 'Details']
    assert ['k', 'int', '', 'Pictures a class'] in rows and ['seed', 'int', '0'] in [r[:3] for r in rows]
    line = int(re.search(r'class="source" href="https://github\.com/\S+/tlcourse/data\.py#L(\d+)"', sec)[1])
    assert (ROOT/'tlcourse/data.py').read_text(encoding='utf-8').splitlines()[line-1].startswith('def kshot(')

LESSONS = [p for p in PAGES if p.parent.name == 'lessons']

@pytest.mark.parametrize('p', LESSONS, ids=name)
def test_lesson_page(p, site, html):
    "Solutions folded, raw HTML as it was, a notebook to take along, and a way to Colab."
    s, md = html[page(p)], '\n'.join(c['source'] for c in cells(p, 'markdown'))
    assert s.count('<details><summary>Solution</summary>') == md.count('<summary>Solution</summary>') > 0
    assert s.count('<details') == s.count('</details>') and not re.search(r'<details open>\s*<summary>Solution', s)
    shown = [c for c in cells(p, 'code') if not re.search(r'^#\|\s*(export|hide|output|include)', c['source'], re.M)]
    raw = [text(o['data']['text/html']).strip() for c in shown
           for o in c['outputs'] if 'text/html' in o.get('data', {})]
    assert not [o[:200] for o in raw if o not in s]
    copy = json.loads((site/f'lessons/{p.name}').read_text(encoding='utf-8'))
    assert not any(c.get('outputs') for c in copy['cells']) and f'href="{p.name}" download' in s
    assert f'https://colab.research.google.com/github/tlcourse/tlcourse/blob/main/nbs/lessons/{p.name}' in s

def test_sidebar(html):
    s = html['core/stats.html']
    links = (re.findall(r'<li class="toctree-l1[^"]*"><a class="[^"]*" '
                        r'href="([^"]*)">(.*?)</a>', s[:s.index('<article')], re.S))
    ls = lessons()
    assert [re.sub(' <small.*', '', t) for _,t in links[:len(ls)]] == [f'{l.number} {unescape(l.title)}' for l in ls]
    for (_,t),l in zip(links, ls): assert f'>{l.seconds}\xa0s\xa0·\xa0{l.device}</small>' in t
    rest = [h for h,_ in links[len(ls):]]
    assert rest[0] == 'base.html' and rest[-6:] == [f'../{o}.html' for o in BESIDE] and '../tools/compare.html' in rest
    assert rest[-6-len(ls):-6] == [f'../checks/{p.stem[3:]}.html' for p in LESSONS]

def test_times_on_the_front_page(html):
    row = next(r for r in re.findall(r'<tr.*?</tr>', html['index.html'], re.S) if 'lessons/freezing.html' in r)
    assert re.search(r'\d+\xa0s\xa0·\xa0\w+', row)

def test_formulas(html):
    s = html['core/stats.html']
    assert s.count('<math') > 10
    assert '\\sqrt' not in re.sub(r'<pre.*?</pre>|<annotation.*?</annotation>', '', s, flags=re.S)

def test_glossary(html):
    zh = '迁移学习 特征提取 微调 冻结 判别式学习率 灾难性遗忘 预训练 层组 负迁移 数据泄漏'.split()
    assert not [o for o in zh if o not in html['glossary.html']]

def test_cheatsheet(html):
    "Its tables come from runs whose code stays out of sight, and lead to the lessons; so does that of symptoms."
    s = html['cheatsheet.html']
    s = s[s.index('<article'):s.index('</article>')]
    assert s.count('<table') >= 4 and 'exec(' not in s and s.count('<pre') == 0 # no code at all
    rows = [r for r in re.findall(r'<tr.*?</tr>', s, re.S) if '<td' in r]
    assert len(rows) > 20 and not [r for r in rows if 'href="lessons/' not in r and 'href="reading.html"' not in r]

# --- what is refused

def cell(kind, s):
    return {'cell_type': kind, 'metadata': {}, 'id': f'c{abs(hash(s))}',
            'source': s} | ({'outputs': [], 'execution_count': None} if kind == 'code' else {})

@pytest.fixture
def clone(tmp_path):
    "A clone with an index and the cells that a test gives to one lesson."
    def make(*cs):
        d = tmp_path/'clone'
        shutil.copytree(ROOT/'tlcourse', d/'tlcourse', ignore=shutil.ignore_patterns('__pycache__', 'assets'))
        (d/'tlcourse/_modidx.py').write_text("d = {'settings': {}, 'syms': {}}\n", encoding='utf-8')
        shutil.copy(ROOT/'pyproject.toml', d)
        for p,nb in {'index': [cell('markdown', '# A course\n\n> Small.')],
                     'lessons/01_one': [cell('markdown', '# One\n\n> First.'), *cs]}.items():
            (f := d/f'nbs/{p}.ipynb').parent.mkdir(parents=True, exist_ok=True)
            f.write_text(json.dumps({'cells': nb, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}),
                         encoding='utf-8')
        return d
    return make

def test_planted_faults(clone, tmp_path):
    "Broken links, a lost anchor and a picture from elsewhere: each is named, and the older site stays."
    out = tmp_path/'site'
    out.mkdir()
    for o in ('searchindex.js', 'old.html'): (out/o).touch()
    bad = ('[a](02_two.ipynb) [b](#nowhere) [c](../index.ipynb#lost) [fine](../index.ipynb) [fine](#here) '
           '[fine](https://a.org)\n\n<img src="https://a.org/i.png">')
    with pytest.raises(BadInput) as e: build_site(clone(cell('markdown', '## Here'), cell('markdown', bad)), out)
    said = str(e.value).splitlines()
    assert said[0] == 'the site has 4 faults:' and len(said) == 5
    for o in ('lessons/one.html links to lessons/02_two.ipynb, which is not there',
              'lessons/one.html links to lessons/one.html#nowhere, and',
              'lessons/one.html links to index.html#lost, and',
              'lessons/one.html loads https://a.org/i.png from elsewhere'):
        assert any(l.startswith(o) for l in said[1:]), o
    assert sorted(p.name for p in out.iterdir()) == ['old.html', 'searchindex.js']

@pytest.mark.parametrize('src,why', [('![](no.png)', 'no.png'),
                                     ('::: {.panel-tabset}\n\nx\n\n:::', 'fenced division'),
                                     (r'$\nosuch x$', 'cannot be shown')])
def test_planted_warning(src, why, clone, tmp_path):
    with pytest.raises(BadInput, match=re.escape(why)): build_site(clone(cell('markdown', src)), tmp_path/'site')
    assert not (tmp_path/'site').exists()

def test_options(clone, tmp_path):
    "Quarto's options, callouts and captions arrive; a widget's view does not, its HTML does."
    def out(c, *data):
        return {**c, 'outputs': [{'output_type': 'display_data', 'metadata': {}, 'data': d} for d in data]}
    png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
    twin = '<div class="tlc-control"><script>const a = "x & y < z";</script></div>'
    site = build_site(clone(
        out(cell('code', '#| echo: false\nsecret_code'), {'text/plain': 'shown output'}),
        out(cell('code', '#| output: false\nshown_code'), {'text/plain': 'secret output'}),
        out(cell('code', '#| include: false\nsecret_code'), {'text/plain': 'secret output'}),
        cell('code', '#| hide\nsecret_code'),
        out(cell('code', '#| fig-cap: "Of one dot"\n#| fig-alt: "a dot"\nplot()'), {'image/png': png}),
        out(cell('code', 'control()'), {WIDGET_VIEW: {'model_id': 'a1'}, 'text/html': twin, 'text/plain': 'Control()'}),
        cell('code', '#| code-fold: true\nfolded_code'),
        cell('markdown', '::: {.callout-warning}\n## Mind\n\nThe `gap`.\n:::')), tmp_path/'site')
    s = (site/'lessons/one.html').read_text(encoding='utf-8')
    body = re.sub('<[^>]+>', '', s)
    assert 'secret' not in s and '#|' not in s and 'model_id' not in s
    assert 'shown output' in body and 'shown_code' in body and 'time and device not stated' in body
    assert twin in s and 'Control()' not in s
    assert re.search(r'<figcaption>.*?Of one dot.*?</figcaption>', s, re.S) and 'alt="a dot"' in s
    assert re.search(r'<div class="[^"]*\bwarning\b[^"]*">\s*<p class="admonition-title">Mind</p>', s)
    assert re.search(r'<details[^>]*hide[^>]*>(?:(?!</details>).)*folded_code', s, re.S)

def test_needs_the_extra(monkeypatch, tmp_path):
    find = docs.importlib.util.find_spec
    monkeypatch.setattr(docs.importlib.util, 'find_spec', lambda n: None if n == 'furo' else find(n))
    with pytest.raises(BadInput, match=r"needs furo.*pip install -e '\.\[docs\]'"): build_site(ROOT, tmp_path/'site')

def test_a_foreign_folder_stays(monkeypatch, tmp_path, capsys):
    (tmp_path/'thesis.txt').touch()
    monkeypatch.chdir(ROOT)
    assert main(['docs', '--out', str(tmp_path)]) == 2
    assert 'is no site' in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ['thesis.txt']

def test_imports_have_cells_of_their_own():
    """nbdev runs a cell with an import anew, alone but for the exported ones: other code in it would fail there,
    or show what was not saved."""
    mixed = []
    for p in PAGES:
        code = [c['source'] for c in cells(p, 'code')]
        if not any(re.search(r'^#\|\s*export', s, re.M) for s in code): continue
        for s in code:
            if re.search(r'^#\|\s*(export|default_exp)', s, re.M) or 'nbdev_export()' in s or install_cell() in s:
                continue
            kinds = {isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(s).body}
            if len(kinds) > 1: mixed.append(f'{name(p)}: {s[:80]!r}')
    assert not mixed

# --- the pages beside the index, and saved outputs

def test_pages_of_the_root():
    names = [p.name for p in pages(root=ROOT)]
    assert names[0] == 'index.ipynb' and names[-6:] == [f'{o}.ipynb' for o in BESIDE]

def test_without_widgets():
    nb = {'metadata': {'widgets': {'state': 1}, 'kernelspec': {}}, 'cells': [
        {'cell_type': 'code', 'outputs': [{'output_type': 'display_data',
                                           'data': {WIDGET_VIEW: {}, 'text/html': '<p>'}},
                                           {'output_type': 'stream', 'text': 'a'}]},
        {'cell_type': 'markdown', 'source': 'a'}]}
    assert without_widgets(nb)['metadata'] == {'kernelspec': {}}
    assert nb['cells'][0]['outputs'][0]['data'] == {'text/html': '<p>'} and len(nb['cells'][0]['outputs']) == 2
    assert not [p.name for p in PAGES if WIDGET_VIEW in p.read_text(encoding='utf-8').replace('\\"', '"') and
                any(WIDGET_VIEW in o.get('data', {}) for c in cells(p, 'code') for o in c['outputs'])]
