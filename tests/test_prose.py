"Each number in the prose of a page is bound to a value of the page, and a number that is changed a little is reported."
import ast, json, re
import pytest
from tlcourse.dev import cells, prose_numbers, prose_pages, unbound
from conftest import ROOT, name

PAGES = prose_pages(ROOT)

def bound(c): return [n for n in prose_numbers(c['source']) if n.name] if c['cell_type'] == 'markdown' else []
def says(c): return c['cell_type'] == 'code' and re.search(r'\bprose\(', c['source'])

# Without the cells that have no part in it, one check takes milliseconds
SAID = {p: cs for p in PAGES if any(map(bound, cs := [c for c in cells(p) if bound(c) or says(c)]))}
said = pytest.mark.parametrize('page', SAID, ids=name)

@pytest.mark.parametrize('page', PAGES, ids=name)
def test_saved(page): assert not unbound(page)

@pytest.mark.parametrize('page', PAGES, ids=name)
def test_executed(page, executed):
    "What the prose says comes out again; a number that differs from machine to machine does not belong there."
    assert not unbound(executed[page].path)

def test_lessons(): assert {p for p in PAGES if p.parent.name == 'lessons'} <= set(SAID)

@pytest.fixture
def reports(tmp_path):
    "f(page, sources, more): the reports of a page with other sources, {place of a cell: source}, and with more cells"
    def f(page, sources, more=()):
        cs = [{**c, 'source': sources.get(i, c['source'])} for i,c in enumerate(SAID[page])]
        (tmp_path/'page.ipynb').write_text(json.dumps({'cells': [*cs, *more]}), encoding='utf-8')
        return unbound(tmp_path/'page.ipynb')
    return f

@said
def test_as_it_is(page, reports): assert not reports(page, {}) # So what the tests below find comes from the change

@pytest.mark.parametrize('wrong', ['98.76 %', '0.98765', '387.6 points', '398.7x', '12 s', '`98.76%`',
                                   'from 98.76 to 99.87 %', '6 of the 94'])
def test_planted(wrong, reports):
    planted = {'cell_type': 'markdown', 'source': f'It was {wrong}, as we saw.'}
    assert len(reports(next(iter(SAID)), {}, [planted])) == len(prose_numbers(wrong)) >= 1

# --- a bound number, changed a little

def numbers(page): return [(i, n) for i,c in enumerate(SAID[page]) for n in bound(c)]

def placed(page, *changes):
    "The sources of a page's cells with other texts at numbers: changes (place of the cell, number, text)"
    res = {}
    for i,n,text in sorted(changes, key=lambda o: -o[1].start):
        s = res.get(i, SAID[page][i]['source'])
        assert s[n.start:n.start+len(n.text)] == n.text
        res[i] = s[:n.start] + text + s[n.start+len(n.text):]
    return res

def digits(text):
    "A number as written with its last digit one more, and one less"
    *_,last = re.finditer(r'\d', text)
    d = int(last[0])
    return [text[:last.start()] + str(o) + text[last.end():] for o in (d + 1, d - 1) if 0 <= o < 10]

def turned(text): return text[1:] if text[0] in '-−' else '-' + text.lstrip('+')

def other(n, rest):
    "The nearest to `n` of the numbers that read differently, however they are rounded; None if there is none"
    far = [(i, o) for i,o in rest if abs(o.value - n.value) >= 10.**-min(o.decimals, n.decimals)]
    return min(far, key=lambda o: abs(o[1].value - n.value), default=None)

def values(c):
    shown = (o['data']['text/plain'] for o in c['outputs'] if 'text/plain' in o.get('data', {}))
    return json.loads(''.join(next(shown)))

def as_near(page, n, text):
    "Does the value lie in the middle between the number and `text`, so that either is the value rounded?"
    value = {k: v for c in SAID[page] if says(c) for k,v in values(c).items()}[n.name]
    new,*_ = prose_numbers(f'{text} of 2') # A bare count is a number in "n of m" only
    return abs(new.value - value) == pytest.approx(abs(n.value - value), abs=1e-9)

@said
def test_last_digit(page, reports):
    new = [(i, n, t) for i,n in numbers(page) for t in digits(n.text) if not as_near(page, n, t)]
    assert len(new) >= len(numbers(page)) # The digit on one side at least
    assert not [(n.text, t) for i,n,t in new if not reports(page, placed(page, (i, n, t)))]

@said
def test_sign(page, reports):
    new = [(i, n, turned(n.text)) for i,n in numbers(page) if n.value] # Zero has none
    assert not [(n.text, t) for i,n,t in new if not reports(page, placed(page, (i, n, t)))]

@said
def test_swapped(page, reports):
    "Both are reported"
    missed = []
    for i,n in numbers(page):
        if not (pair := other(n, numbers(page))): continue
        j,o = pair
        if len(reports(page, placed(page, (i, n, o.text), (j, o, n.text)))) < 2: missed.append((n.text, o.text))
    assert not missed

# --- a value that is typed in

def given(page):
    "The places of the cells that call `prose`, each with a name that it gives"
    return [(i, k.arg) for i,c in enumerate(SAID[page]) if says(c) for k in keywords(ast.parse(c['source']))]

def keywords(tree):
    calls = [o for o in ast.walk(tree) if isinstance(o, ast.Call) and getattr(o.func, 'id', '') == 'prose']
    return [k for o in calls for k in o.keywords]

def replaced(source, key, code):
    "A cell with `code` in place of what it gives to `prose` under this name"
    tree = ast.parse(source)
    for k in keywords(tree):
        if k.arg == key: k.value = ast.parse(code, mode='eval').body
    return ast.unparse(tree)

def literal(c, key):
    "What the cell gave under this name, as a number or a dict of them"
    vs = values(c)
    return repr(vs[key] if key in vs else {k: v for k,v in vs.items() if k.startswith(f'{key}.')})

@said
def test_typed_in(page, reports):
    "The right value, but as a literal, or under a name that is set to one"
    for i,key in given(page):
        c = SAID[page][i]
        assert not reports(page, {i: ast.unparse(ast.parse(c['source']))})
        want = [f'prose({key}=...) is typed in']
        assert reports(page, {i: replaced(c['source'], key, literal(c, key))}) == want
        typed = {'cell_type': 'code', 'source': f'typed = {literal(c, key)}', 'outputs': []}
        assert reports(page, {i: replaced(c['source'], key, 'typed')}, [typed]) == want
