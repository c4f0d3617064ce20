"""Inputs at random, from a fixed seed, for what reads what others have written.

Each kind is a function of a random number generator that makes one input and hands it over. Allowed is a result, or
`BadInput`; anything else is a fault, and so are five seconds. `tests/test_faults.py` runs a few; by hand, for 200,000
of them:

    TLCOURSE_FUZZ=200000 python -m pytest tests/test_faults.py -m slow -n0 -s -k fuzz
"""
import io, json, os, random, signal, string, time, warnings
from contextlib import contextmanager
from pathlib import Path
import numpy as np
from tlcourse.base import BadInput

ODD = ['', ' ', '\0', '\n', '..', '/', '~', '~root', 'nan', 'inf', '-1', '1e400', '0', '5', 'all', 'None', 'a\x1b[31m',
       '\udcff', '猫', 'x'*300, '🦆', '<b>', '"', "'", ',', ';', '%s', '{x}', '../../x', 'digits',
       'train', 'valid', 'test', 'label', 'path', 'split', 'True', '9'*40, '-0', '0x10', '1_0', '٣', '(', '[a-',
       '(?P<a', '*', '.*(', r'\1', 'cuda:99', 'cpu', 'meta', 'glyphnet', 'fine-tuning', 'scratch+aug+aug']

def text(r):
    return r.choice(ODD) if r.random() < .6 else ''.join(r.choice(string.printable + 'é猫\udcff\x9b')
                                                         for _ in range(r.randrange(12)))

def value(r, depth=0):
    "Anything that JSON can hold"
    k = r.randrange(9 if depth < 3 else 6)
    if k < 2: return text(r)
    if k < 4: return r.choice([0, 1, -1, 3, 10**30, 2**31, .5, -1e308, float('nan'), float('inf'), 1e-300])
    if k < 6: return r.choice([None, True, False])
    if k < 8: return [value(r, depth + 1) for _ in range(r.randrange(4))]
    return {text(r): value(r, depth + 1) for _ in range(r.randrange(4))}

def mutated(r, data):
    "Bytes with something changed, cut, doubled or put in"
    data = bytearray(data)
    for _ in range(r.choice([1, 1, 2, 8])):
        i, j = sorted((r.randrange(len(data) + 1), r.randrange(len(data) + 1)))
        how = r.randrange(6)
        if how < 3 and data: data[min(i, len(data)-1)] ^= 1 << r.randrange(8)
        elif how == 3: del data[i:min(j, i + r.choice([1, 4, 10**6]))]
        elif how == 4: data[i:i] = data[i:min(j, i + 64)]
        else:
            data[i:i+4] = r.choice([b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff',
                                    bytes(r.randrange(256) for _ in range(4))])
    return bytes(data)

def changed(r, x):
    "A JSON value with one thing in it replaced"
    if isinstance(x, dict) and x and r.random() < .9:
        k = r.choice(list(x))
        if r.random() < .1: return {i: o for i,o in x.items() if i != k}
        return {**x, k: changed(r, x[k])}
    if isinstance(x, list) and x and r.random() < .8:
        i = r.randrange(len(x))
        return [*x[:i], changed(r, x[i]), *x[i+1:]]
    return value(r)

# --- the kinds; each gets a folder of its own

def _card_row(r): return dict(name=text(r), lesson='freezing', n=1, kind='exercise', tries=1, right=True, time='2026')
def cards(d):
    from tlcourse.exercises import scores
    def one(r):
        rows = [_card_row(r) for _ in range(r.randrange(1, 4))]
        if r.random() < .8: rows = changed(r, rows)
        data = json.dumps(rows).encode()
        (d/'s.json').write_bytes(mutated(r, data) if r.random() < .4 else data)
        scores(d/'s.json').to_string()
    return one

def pictures(d):
    from PIL import Image
    from tlcourse.pictures import read_picture
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 20, 3)).astype(np.uint8))
    made = []
    for kind,how in [('PNG', {}), ('JPEG', {}), ('JPEG', dict(progressive=True)), ('GIF', {}), ('BMP', {}),
                     ('TIFF', {}), ('TIFF', dict(compression='tiff_lzw')), ('WEBP', {}), ('WEBP', dict(lossless=True)),
                     ('PPM', {})]:
        buf = io.BytesIO()
        im.save(buf, kind, **how)
        made.append(buf.getvalue())
    for mode in 'I;16', 'L', 'CMYK', 'RGBA', 'P', '1', 'LA':
        buf = io.BytesIO()
        (Image.fromarray(np.full((9, 9), 900, np.uint16)) if mode == 'I;16'
         else im.convert(mode)).save(buf, 'TIFF' if mode == 'CMYK' else 'PNG')
        made.append(buf.getvalue())
    def one(r): read_picture(mutated(r, r.choice(made)), top=r.choice([255, 4095, 65535]))
    return one

def tables(d):
    from PIL import Image
    from tlcourse.folders import list_folder
    for i in range(6): Image.new('RGB', (2, 2)).save(d/f'{i}.png')
    def one(r):
        sep = r.choice(',;\t')
        head = [r.choice(['path', 'label', 'split', 'id', 'file', text(r)]) for _ in range(r.randrange(1, 5))]
        rows = [[r.choice([f'{i % 6}.png', f'{i % 6}', './1.png', 'cat', 'dog', 'train', 'test', '0', '1', text(r)])
                 for _ in head] for i in range(r.randrange(9))]
        data = '\n'.join(sep.join(o) for o in [head, *rows]).encode('utf-8', 'surrogateescape')
        (d/'split.csv').write_bytes(mutated(r, data) if r.random() < .3 else data)
        list_folder(d, groups=r.choice([None, None, text(r)]), min_class=r.choice([None, None, 2]))
    return one

def trees(d):
    import shutil
    from tlcourse.folders import list_folder
    parts = ['train', 'Test Set', 'val', 'cats', 'dogs', '.hidden', 'seg_train', 'images', 'a\udcff', '猫', 'x y']
    def one(r):
        shutil.rmtree(d/'t', ignore_errors=True)
        (d/'t').mkdir()
        for i in range(r.randrange(8)):
            inside = Path(*r.choices(parts, k=r.randrange(4)))
            p = d/'t'/inside/r.choice([f'{i}.png', f'{i}.JPG', 'notes.txt', '.x.png', 'labels.csv', f'{i}'])
            if any(o.is_file() for o in p.parents): continue
            p.parent.mkdir(parents=True, exist_ok=True)
            how = r.randrange(12)
            if p.exists() or p.is_symlink(): continue
            if how == 0: p.symlink_to(r.choice(['.', '..', 'nowhere', p.name]))
            elif how == 1 and hasattr(os, 'mkfifo'): os.mkfifo(p)
            elif how == 2: p.mkdir()
            else: p.write_bytes(b'x')
        list_folder(d/'t', groups=r.choice([None, r'(\d)', text(r)]), min_class=r.choice([None, 2]))
    return one

def weights(d):
    import torch
    from safetensors.torch import save
    from tlcourse.weights import _read_weights
    sd = {'fc.weight': torch.arange(12.).view(3, 4), 'bn.running_var': torch.ones(3), 'n': torch.tensor(3)}
    made = []
    for how in dict(), dict(_use_new_zipfile_serialization=False):
        buf = io.BytesIO()
        torch.save(sd, buf, **how)
        made.append(('.pth', buf.getvalue()))
    made.append(('.safetensors', save(sd)))
    def one(r):
        kind, data = r.choice(made)
        f = d/f'w{kind}'
        f.write_bytes(mutated(r, data))
        for v in _read_weights(f).values(): assert not v.is_floating_point() or v.isfinite().all()
    return one

def model_cards(d):
    from tlcourse.card import VERSION, _check, _read_card
    card = dict(kind='tlcourse model', version=VERSION, classes=['a', 'b'], fit='crop', range=[0, 255], size=32,
                backbone='glyphnet', head='pool-flatten-linear', statistics=dict(mean=[.5]*3, std=[.25]*3),
                weights=dict(file='model.safetensors', sha256='0'*64), accuracy=None, notes=[], versions={})
    (d/'card.json').write_text(json.dumps({**card, 'check': _check(card)}))
    _read_card(d)
    def one(r):
        new = changed(r, card)
        if isinstance(new, dict) and r.random() < .9:
            try: new = {**new, 'check': _check(new)}
            except (TypeError, ValueError): pass
        data = json.dumps(new).encode()
        (d/'card.json').write_bytes(mutated(r, data) if r.random() < .2 else data)
        _read_card(d)
    return one

def arrays(d):
    from tlcourse.rows import _array, _blob, _Wrong
    def one(r):
        a = np.random.default_rng(r.randrange(99)).integers(0, 9, r.choice([0, 1, 40]))
        a = a.astype(r.choice(['u1', 'f2', 'i8', 'U3', '?']))
        row = list(_blob(a, 'a'))
        i = r.randrange(3)
        row[i] = r.choice([text(r), value(r),
                           mutated(r, row[i] if isinstance(row[i],
                                                           bytes) else row[i].encode('utf-8', 'surrogatepass')),
                                                           json.dumps(value(r))])
        if i < 2 and isinstance(row[i], bytes): row[i] = row[i].decode('latin1')
        try: _array(*row)
        except _Wrong: pass
    return one

def studies(d):
    from tlcourse.comparison import Comparison
    from tlcourse.report import report_html
    import staged
    (d/'s').mkdir()
    c = staged.made_staged(d/'s', pictures=False)
    row = c.records.rows(kind='study')[0]
    def one(r):
        what, res = (changed(r, row.spec), row.result) if r.random() < .3 else (row.spec, changed(r, row.result))
        if not isinstance(what, dict) or not isinstance(res, dict): return
        try: c.records.add(what, res, again=True)
        except (TypeError, ValueError): return # Nothing that a store can hold
        if what.get('pixel_hash') != 'px': return
        repr(Comparison(c.records, what))
    return one

def specs(d):
    from tlcourse.rows import spec_hash
    def one(r):
        v = {text(r): value(r) for _ in range(3)}
        assert spec_hash(v) == spec_hash(dict(reversed(v.items()))) == spec_hash(json.loads(json.dumps(v)))
    return one

def words(d):
    "What stands behind the options of the command line"
    from tlcourse.base import lesson_number, pick_device, user_path
    from tlcourse.budget import _budget
    from tlcourse.course import lessons
    from tlcourse.strategy import STRATEGIES
    from tlcourse.store import prune, writable_file
    from tlcourse.study import _looks, _names, _whole
    t = type('T', (), dict(backbone='glyphnet'))()
    ways = [pick_device, _looks, lambda s: _names(s, STRATEGIES, 'strategy'), lambda s: _whole(s, 'shots'),
            lambda s: _budget(s, t, 'cpu'), user_path, lambda s: writable_file(s if '/' in s else f'w{s}'),
            lambda s: lessons([s]), lesson_number, lambda s: lessons(s.split(','))]
    def one(r): r.choice(ways)(text(r))
    return one

def command_lines(d):
    "Whole command lines whose target is not there"
    from contextlib import redirect_stderr, redirect_stdout
    import tlcourse.backbones, tlcourse.fetch # What takes seconds once is no slow input
    from tlcourse import cli
    options = ['--backbone', '--weights', '--strategies', '--shots', '--seeds', '--steps', '--tune', '--size',
               '--budget', '--device', '--workers', '--out', '--json', '--fit', '--min-class', '--groups', '--study',
               '-o', '--top', '--at-least', '--csv', '--days', '--gb', '--prune', '--to', '--force']
    def one(r):
        a = [r.choice(['scores', 'compare', 'train', 'predict', 'look', 'cache', 'fetch', text(r)]),
             r.choice(['./nothing', text(r).replace('digits', 'digit').replace('/', '') + 'nothing'])]
        for _ in range(r.randrange(4)): a += [r.choice(options), text(r)]
        a = [o.replace('\0', '') for o in a]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try: code = cli.main(a)
            except SystemExit as e: code = e.code
        assert code in (0, 1, 2), (a, code)
        if not any('\n' in o for o in a): # argparse quotes its own arguments as they are
            assert all(l.startswith(('tlcourse', 'usage:', ' ')) for l in err.getvalue().split('\n')[:-1]), (
                (a, err.getvalue()))
        assert not set('\x1b\x9b\udcff') & set(out.getvalue()), (a, out.getvalue())
    return one

def manifests(d):
    "The list of a stick"
    from tlcourse.base import sha256
    from tlcourse.stick import MANIFEST, read_manifest, whole
    (d/'data').mkdir()
    (d/'data'/'a.tgz').write_bytes(b'abc')
    kept = dict(files=[dict(name=f'data/{n}.tgz', bytes=3, sha256=sha256(b'abc'), what='pets') for n in 'ab'])
    def one(r):
        data = json.dumps(changed(r, kept)).encode()
        (d/MANIFEST).write_bytes(mutated(r, data) if r.random() < .4 else data)
        for k in read_manifest(d).values():
            if whole(d, k): assert (k.name, k.bytes) == ('data/a.tgz', 3)
    return one

def notebooks(d):
    "Lessons of a damaged or a crafted copy"
    from tlcourse.course import _lesson, lesson_copy
    f = d/'05_x.ipynb'
    outs = [dict(output_type='execute_result', data={'text/plain': 'a · cpu · 3 s'})]
    nb = dict(cells=[dict(cell_type='markdown', source='# A'), dict(cell_type='code', source=['#| hide\n', '1'],
                                                                   outputs=outs)], metadata={}, nbformat=4)
    def one(r):
        data = json.dumps(changed(r, nb)).encode()
        f.write_bytes(mutated(r, data) if r.random() < .4 else data)
        _lesson(f)
        json.dumps(lesson_copy(f), ensure_ascii=False).encode()
    return one

KINDS = {cards: 20, pictures: 40, tables: 8, trees: 8, weights: 25, model_cards: 25, arrays: 30, studies: 2, specs: 20,
         words: 15, command_lines: 7, manifests: 20, notebooks: 20}

class Slow(Exception): pass

@contextmanager
def at_most(seconds):
    "Raises `Slow` after so long, where the system has alarms"
    if not hasattr(signal, 'setitimer'): yield; return
    def late(*_): raise Slow(f'over {seconds} s')
    was = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, was)

def run(kind, n, folder, seed=0):
    "Hand over `n` inputs of a kind; how many of them were refused, and the seconds of the slowest"
    one, refused, slowest = kind(folder), 0, 0.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i in range(n):
            r, t0 = random.Random(f'{kind.__name__} {seed} {i}'), time.perf_counter()
            try:
                with at_most(5): one(r)
            except BadInput: refused += 1
            except Exception as e: raise AssertionError(f'{kind.__name__} {seed} {i}: {type(e).__name__}: {e}') from e
            slowest = max(slowest, time.perf_counter() - t0)
    return refused, slowest
