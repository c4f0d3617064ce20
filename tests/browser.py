"""A real browser for the tests: chromium driven by playwright, JupyterLab in folders of its own, nothing that leaves
the machine.

Each wait is for a condition; the time-outs are generous because other work may share the cores."""
import json, os, re, subprocess, sys, time
from contextlib import contextmanager
from urllib.parse import quote, urlsplit
from playwright.sync_api import sync_playwright
from tlcourse.course import _text
from tlcourse.dev import cells
from conftest import PAGES, chromium

WAIT = 90 # seconds for one thing on a page
RUN = 900 # seconds for all cells of a notebook
PHONE = {'width': 390, 'height': 844}
# Names resolve to this machine or not at all, and no proxy is asked: a request that leaves is seen and gets nowhere.
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--no-proxy-server',
         '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']

def stays(url):
    "Is this the machine itself?"
    u = urlsplit(url)
    return u.scheme in ('file', 'data', 'blob', 'about') or u.hostname in ('127.0.0.1', 'localhost')

class Guard:
    "What the pages of a browser context asked for outside the machine, and what went wrong in them."
    def __init__(self, context):
        self.outside,self.errors = [],[]
        context.on('request', lambda r: self.ask(r.url))
        context.on('requestfailed', lambda r: stays(r.url) and 'ERR_ABORTED' not in (r.failure or '')
                                              and self.errors.append(f'{r.url}: {r.failure}'))
        context.on('console', lambda m: m.type == 'error' and self.errors.append(m.text))
        context.on('weberror', lambda e: self.errors.append(str(e.error)))
        context.on('page', lambda p: p.on('websocket', lambda w: self.ask(w.url)))
    def ask(self, url):
        if not stays(url): self.outside.append(url)

@contextmanager
def launch():
    "Chromium without a window, with a profile of its own."
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        try: yield b
        finally: b.close()

@contextmanager
def tab(browser, **options):
    "A page in a context of its own (viewport, colour scheme, storage), and its guard: nothing may leave the machine."
    options = {'viewport': {'width': 1280, 'height': 900}, 'service_workers': 'block', **options}
    c = browser.new_context(**options)
    c.set_default_timeout(1000*WAIT)
    guard = Guard(c)
    try:
        yield c.new_page(), guard
        assert not guard.outside, f'asked for outside the machine: {guard.outside[:5]}'
    finally: c.close()

# --- JupyterLab

# No question about news, no look for a newer version; the seconds of each cell are kept
_settings = {'@jupyterlab/apputils-extension/notification.jupyterlab-settings':
             {'fetchNews': 'false', 'checkForUpdates': False, 'doNotDisturbMode': True},
             '@jupyterlab/notebook-extension/tracker.jupyterlab-settings': {'recordTiming': True}}
_panel = '''path => [...window.jupyterapp.shell.widgets('main')].find(w => w.context?.path == path)'''

@contextmanager
def lab(work, private):
    "JupyterLab on a free port of 127.0.0.1, in the folder `work`, with its own folders under `private`: its address."
    other = 'MPLBACKEND', 'IN_TEST', 'TLCOURSE_ASSETS' # a reader has none of them
    env = {k:v for k,v in os.environ.items() if k not in other and k.lower() != 'all_proxy'}
    for k in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR',
              'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR'): env[k] = str(private/k.lower())
    # closed: kernels stay inside too
    for k in ('http_proxy', 'https_proxy'): env[k] = env[k.upper()] = 'http://127.0.0.1:9'
    env['no_proxy'] = env['NO_PROXY'] = '127.0.0.1,localhost'
    for name,values in _settings.items():
        p = private/'jupyterlab_settings_dir'/name
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(json.dumps(values))
    args = ['--ServerApp.ip=127.0.0.1', '--ServerApp.port=0', '--ServerApp.open_browser=False', '--allow-root',
            f'--ServerApp.root_dir={work}', '--LabApp.expose_app_in_browser=True',
            '--LabApp.extension_manager=readonly']
    log = private/'log.txt'
    with open(log, 'w') as f:
        proc = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *args], env=env, cwd=work, stdout=f, stderr=f)
        try:
            info = wait_until(lambda: _running(proc, private/'jupyter_runtime_dir', log), 'JupyterLab starts')
            # without the notebooks that a former page had open
            yield f"{info['url']}lab{{}}?token={info['token']}&reset"
        finally:
            proc.terminate() # it shuts its kernels down
            try: proc.wait(60)
            except subprocess.TimeoutExpired: proc.kill()

def _running(proc, folder, log):
    "What the server says about itself once it listens."
    if proc.poll() is not None: raise RuntimeError(f'JupyterLab ended:\n{log.read_text()[-3000:]}')
    for p in folder.glob('jpserver-*.json'):
        try: return json.loads(p.read_text())
        except json.JSONDecodeError: pass # half-written

def wait_until(f, what, seconds=WAIT):
    "The first true value of `f()`."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if res := f(): return res
        time.sleep(.05)
    raise TimeoutError(f'{what}: not within {seconds} s')

class Notebook:
    "A notebook open in JupyterLab."
    def __init__(self, page, address, path):
        self.page,self.path = page,path
        page.goto(address.format('/tree/' + quote(path)))
        self.wait("w.context.isReady && w.sessionContext.session?.kernel?.status == 'idle'")
    def js(self, code, arg=None):
        "The value of an expression about its panel `w`."
        return self.page.evaluate(f'async ([path, arg]) => {{ const w = '
                                  f'({_panel})(path); return {code} }}', [self.path, arg])
    def wait(self, code, seconds=WAIT):
        self.page.wait_for_function(f'path => {{ const w = window.jupyterapp && '
                                    f'({_panel})(path); return w && ({code}) }}',
                                    arg=self.path, timeout=1000*seconds)
    def run_all(self, seconds=RUN):
        "Run All as the menu does it: did every cell pass?"
        self.page.evaluate('''() => { delete window.ran
            const run = window.jupyterapp.commands.execute('notebook:run-all-cells')
            run.then(o => window.ran = [o], e => window.ran = [String(e)]) }''')
        self.page.wait_for_function('window.ran', timeout=1000*seconds)
        self.wait("w.sessionContext.session.kernel.status == 'idle'", seconds)
        return self.page.evaluate('window.ran[0]')
    def run(self, i, seconds=RUN):
        "Run one cell."
        self.js("(w.content.activeCellIndex = arg, window.jupyterapp.commands.execute('notebook:run-cell'))", i)
        self.wait("w.sessionContext.session.kernel.status == 'idle'", seconds)
    def close(self):
        "End its kernel."
        self.js('await w.sessionContext.shutdown()')
    @property
    def cells(self): return self.js('w.context.model.toJSON().cells')
    def show(self, i):
        "Bring a cell into view: its output as a locator."
        self.js('await w.content.scrollToItem(arg, "center")', i)
        return self.page.locator('.jp-Notebook .jp-Cell').nth(i).locator('.jp-OutputArea').first

def errors(cells):
    return ['\n'.join(o['traceback'][-3:]) for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error']
def unrun(cells):
    return [c['source'] for c in cells if c['cell_type'] == 'code' and c['source'].strip() and not c['execution_count']]

# --- controls, live and on the site

INPUTS = 'select, input[type=range], input[type=checkbox], [role=slider]'
_kind = 'o => o.matches("select") ? "list" : o.type == "checkbox" ? "box" : "slider"'
_steps = """o => o.matches('select') ? o.options.length - 1 : o.matches('[role=slider]') ?
    o.getAttribute('aria-valuemax') - o.getAttribute('aria-valuemin') : o.type == 'range' ? o.max - o.min : 1"""

def choose(el):
    "The next choice of a list that is open: the list is no part of the page, only keys reach it."
    el.press('ArrowDown')
    el.press('Enter')

def by_keyboard(el):
    "One step of an input, by the keys alone."
    kind = el.evaluate(_kind)
    el.focus()
    assert el.evaluate('o => o == document.activeElement && o.tabIndex >= 0'), 'the keyboard does not reach it'
    if kind == 'list': # in JupyterLab a plain arrow goes to the next cell
        el.press('Alt+ArrowDown')
        choose(el)
    else: el.press('Space' if kind == 'box' else 'ArrowRight')

def by_mouse(el):
    "Another value of an input: a click on a box, on the far end of a slider, into a list."
    kind = el.evaluate(_kind)
    if kind != 'slider': el.click()
    if kind == 'list': choose(el)
    if kind == 'slider':
        track = el.locator('xpath=ancestor-or-self::*[contains(@class,"noUi-target") or @type="range"]')
        box = track.bounding_box()
        track.click(position={'x': .96*box['width'], 'y': box['height']/2}, force=True)

def back(el):
    "The first value of an input again."
    kind = el.evaluate(_kind)
    if kind == 'list': el.select_option(index=0)
    else: el.press('Space' if kind == 'box' else 'Home')

def pixels(frame):
    "A picture of a figure that has come to rest."
    last = frame.screenshot(animations='disabled')
    while (now := frame.screenshot(animations='disabled')) != last: last = now
    return now

def move(inputs, frame, what):
    "Each input by keyboard and by mouse, from where it starts until the figure is another; then back."
    start, seen = frame.inner_html(), pixels(frame)
    def other(): return frame.inner_html() != start and pixels(frame) != seen
    for i,el in enumerate(inputs):
        for act in by_keyboard, by_mouse:
            say, n = f'{what}, input {i}, {act.__name__}', el.evaluate(_steps)
            for k in range(n): # neighbours may look alike
                act(el)
                try: wait_until(other, f'{say}: the figure changes', 3 if k < n-1 else WAIT)
                except TimeoutError:
                    if k == n-1: raise
                else: break
            back(el)
            wait_until(lambda: frame.inner_html() == start, f'{say}: and changes back')

# --- what is asked of a page

LESSONS = [p for p in PAGES if p.parent.name == 'lessons']
# What the saved page of each kind of control holds
KINDS = {'slider': 'type="range"', 'list': '<select data-n=', 'box': 'type="checkbox"',
         'guesses': 'class="tlc tlc-guesses"',
         'pictures': 'To try pictures of your own'}

def shown(page):
    "The HTML that a saved notebook shows."
    data = (o.get('data', {}).get('text/html', '') for c in cells(page, 'code') for o in c['outputs'])
    return '\n'.join(map(_text, data))

def having(kind, pages): return [p for p in pages if KINDS[kind] in shown(p)]

def names(snapshot, role): return re.findall(rf'- {role}(?: "(.*?)")?', snapshot)

def answer(q):
    "A guess by the keys alone: a word of a list, or a number."
    q.focus()
    if q.evaluate('o => o.matches("select")'):
        q.press('Alt+ArrowDown')
        return choose(q)
    q.press_sequentially('50')
