"What a reader sees and touches of the site, in chromium, from the disk."
import re
import pytest
from conftest import PAGES, ROOT, name
from browser import INPUTS, KINDS, LESSONS, PHONE, answer, having, move, names, tab, wait_until

pytestmark = pytest.mark.browser
SCREENS = ROOT/'_proc/screens'

def site_page(page): # core/08_world.ipynb is core/world.html
    return re.sub(r'(\A|/)\d+_', r'\1', name(page)) + '.html'

# --- the watch itself

def test_nothing_leaves_unseen(chrome, tmp_path):
    "Planted requests by name, by address and by socket: each is seen, none gets out; so is an error of a script."
    (tmp_path/'a.html').write_text('''<title>a</title><img src="http://example.com/i.png"><img src="gone.png"><script>
        fetch('http://192.0.2.1/').catch(() => 0); new WebSocket('ws://192.0.2.1/s')
        throw Error('planted')</script>''')
    with pytest.raises(AssertionError, match='outside the machine'), tab(chrome) as (page, guard):
        page.goto((tmp_path/'a.html').as_uri())
        wait_until(lambda: page.title() and len(guard.outside) == 3 and len(guard.errors) >= 5, 'all is seen')
        assert set(guard.outside) == {'http://example.com/i.png', 'http://192.0.2.1/', 'ws://192.0.2.1/s'}
        said = '\n'.join(guard.errors)
        assert 'planted' in said and 'gone.png' in said and said.count('ERR_NAME_NOT_RESOLVED') == 3

# --- the site, from the disk

def ready(page):
    "Each control has unpacked its states."
    page.wait_for_function('[...document.querySelectorAll("[data-tlc]")].every(o => o.dataset.ready)')

def open_page(page, site, p):
    page.goto((site/p).as_uri())
    ready(page)

@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'guesses'])
def test_control_on_the_site(kind, chrome, site):
    "Without a kernel: by keyboard and by mouse the figure changes; each input has a name."
    pages = having(kind, LESSONS) or having(kind, PAGES)
    with tab(chrome) as (page, guard):
        open_page(page, site, site_page(pages[0]))
        what = {'slider': 'input[type=range]', 'list': 'select', 'box': 'input[type=checkbox]',
                'pictures': 'select'}[kind]
        c = page.locator(f'.tlc-control:has({what})', **({'has_text': KINDS[kind]} if kind == 'pictures' else {})).first
        said = c.locator('form').aria_snapshot()
        assert c.get_attribute('aria-label') and all(all(names(said, r)) for r in ('slider', 'combobox', 'checkbox')), (
            said)
        move(c.locator(what).all(), c.locator('.tlc-frame'), f'{site_page(pages[0])}, {kind}')
        assert not guard.errors

def guess_on_the_site(page):
    "Answer and commit by the keys; the verdicts of the page's table."
    form = page.locator('.tlc-guesses').first
    for q in form.locator('[data-q]').all(): answer(q)
    form.get_by_role('button', name='Commit').press('Enter')
    n = form.locator('[data-q]').count()
    form.get_by_text(f'{n} of {n} kept').wait_for()
    verdicts = page.locator('.tlc-reveal').first.locator('tbody td:last-child').all_inner_texts()
    assert len(verdicts) == n and set(verdicts) <= {'foreseen', 'a surprise'}
    return n, verdicts.count('foreseen')

def test_guesses_on_the_site(chrome, site):
    "A guess is committed to, revealed further down, kept over a reload, and counted over the course."
    pages = (having('guesses', LESSONS) or having('guesses', PAGES))[:2]
    with tab(chrome) as (page, guard):
        asked = foreseen = 0
        for p in pages:
            open_page(page, site, site_page(p))
            n,k = guess_on_the_site(page)
            asked,foreseen = asked+n, foreseen+k
            tally = f'Over the course: {foreseen} of {asked} foreseen.'
            assert page.locator('.tlc-reveal output').first.inner_text() == tally
            page.reload(); ready(page)
            assert page.locator('.tlc-reveal output').first.inner_text() == tally
            assert all(q.input_value() for q in page.locator('.tlc-guesses').first.locator('[data-q]').all())
        assert not guard.errors

def test_guesses_of_the_first_edition(chrome, site):
    "They were kept by the lesson's number, in a count of nine: each is shown on the page that it was made on."
    with tab(chrome) as (page, guard):
        open_page(page, site, 'lessons/honest_data.html')
        q = page.locator('.tlc-guesses [data-q]').first.get_attribute('data-q').split('/')[1]
        page.evaluate("o => localStorage.setItem('tlcourse-guesses', JSON.stringify(o))",
                      {f'2/{q}': dict(guess='3'), f'3/{q}': dict(guess='7')})
        page.reload(); ready(page)
        assert page.locator('.tlc-guesses [data-q]').first.input_value() == '3'
        assert not guard.errors

def test_search(chrome, site):
    with tab(chrome) as (page, guard):
        page.goto((site/'search.html').as_uri() + '?q=true_freeze')
        page.locator('#search-results a[href*="lessons/freezing.html"]').first.click()
        page.wait_for_url('**/lessons/freezing.html*')
        assert page.locator('[id="true_freeze"]').count() == 1 and not guard.errors

_ground = 'getComputedStyle(document.body).backgroundColor'

def test_dark_and_light(chrome, site):
    "The button takes each page from one to the other, and the choice is kept."
    with tab(chrome, color_scheme='light') as (page, guard):
        open_page(page, site, 'index.html')
        light = page.evaluate(_ground)
        for _ in range(3): # auto, light, dark in turn
            if page.evaluate('document.body.dataset.theme') == 'dark': break
            page.locator('.theme-toggle:visible').first.click()
        assert page.evaluate(_ground) != light
        open_page(page, site, 'lessons/freezing.html')
        assert page.evaluate(_ground) != light and not guard.errors

def wide(page):
    "How many pixels the page is wider than its window."
    return page.evaluate('document.documentElement.scrollWidth - innerWidth')

def test_phone(chrome, site):
    with tab(chrome, viewport=PHONE) as (page, guard):
        for p in ('index.html', site_page(LESSONS[0])):
            open_page(page, site, p)
            assert wide(page) <= 1, p

# --- the full sweep

def html_pages(site): return sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))

@pytest.mark.sweep
def test_every_control(chrome, site):
    seen = 0
    with tab(chrome) as (page, guard):
        for p in html_pages(site):
            open_page(page, site, p)
            for i,c in enumerate(page.locator('.tlc-control').all()):
                move(c.locator(INPUTS).all(), c.locator('.tlc-frame'), f'{p}, control {i}')
                seen += 1
            if page.locator('.tlc-guesses').count(): guess_on_the_site(page)
            assert not guard.errors, (p, guard.errors)
    assert seen >= 1

@pytest.mark.sweep
@pytest.mark.parametrize('look', ['light', 'dark', 'phone'])
def test_every_page(look, chrome, site):
    "No error, nothing wider than the window; a picture of each page in _proc/screens."
    bad = {}
    options = {'viewport': PHONE} if look == 'phone' else {'color_scheme': look}
    with tab(chrome, **options) as (page, guard):
        for p in html_pages(site):
            open_page(page, site, p)
            if (w := wide(page)) > 1: bad[p] = f'{w} px too wide'
            if guard.errors: bad[p] = guard.errors[:]
            guard.errors.clear()
            to = SCREENS/look/p.replace('/', '-').replace('.html', '.png')
            to.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=to, full_page=True)
    assert not bad
