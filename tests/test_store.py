"Written whole or not at all; stored once, checked on every reading, swept and pruned."
import json, os, shutil, signal, stat, subprocess, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import pytest
import tlcourse.store
from tlcourse import cli
from tlcourse.base import BadInput, cache_dir, writable_folder
from tlcourse.store import Store, _code_hash, entries, prune, writable_file, write_bytes, write_text, writing

unix = pytest.mark.skipif(os.name != 'posix', reason='Windows has no such files, limits or signals')

@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    d = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('TLCOURSE_CACHE', str(d))
    return d

def hidden(d): return [f.name for f in Path(d).iterdir() if f.name[0] == '.']

def child(code, *args, before=(), **kw):
    return subprocess.Popen([*before, sys.executable, '-c', code, *map(str, args)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

# --- one way to write

def test_whole_and_nothing_beside_it(tmp_path):
    f = tmp_path/'a.txt'
    write_text(f, 'Möwe\n')
    write_bytes(tmp_path/'b', b'\0\xff')
    assert f.read_bytes() == 'Möwe\n'.encode() and (tmp_path/'b').read_bytes() == b'\0\xff'
    write_text(f, 'new')
    assert f.read_text() == 'new' and sorted(os.listdir(tmp_path)) == ['a.txt', 'b']

def test_an_error_inside_leaves_the_old_one(tmp_path):
    f = tmp_path/'a.txt'
    write_text(f, 'old')
    for error in RuntimeError, KeyboardInterrupt:
        with pytest.raises(error), writing(f) as p:
            p.write_text('half')
            raise error
    with pytest.raises(BadInput, match='cannot write .*a.txt \\(No space left on device\\)'), writing(f) as p:
        p.write_text('half')
        raise OSError(28, 'No space left on device')
    assert f.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']

@unix
def test_symbolic_links_are_followed(tmp_path):
    "To a file, through another link, and to a file that is not there yet; the link stays in each case"
    (tmp_path/'far').mkdir()
    (tmp_path/'far'/'real').write_text('old')
    (tmp_path/'one').symlink_to('far/real')
    (tmp_path/'two').symlink_to(tmp_path/'one')
    (tmp_path/'new').symlink_to(tmp_path/'far'/'missing')
    for n,real in ('one', 'real'), ('two', 'real'), ('new', 'missing'):
        write_text(writable_file(tmp_path/n), n)
        assert (tmp_path/n).is_symlink() and (tmp_path/'far'/real).read_text() == n
    assert sorted(os.listdir(tmp_path/'far')) == ['missing', 'real'] and not hidden(tmp_path)
    (tmp_path/'self').symlink_to(tmp_path/'self')
    for f in writable_file, lambda p: write_text(p, 'x'):
        with pytest.raises(BadInput, match='symbolic links'): f(tmp_path/'self')

@unix
def test_a_pipe_is_written_into(tmp_path):
    pipe, got = tmp_path/'pipe', []
    os.mkfifo(pipe)
    assert writable_file(pipe) == pipe # Asked without waiting for a reader
    t = threading.Thread(target=lambda: got.append(pipe.read_text()))
    t.start()
    write_text(pipe, 'into the pipe')
    t.join(10)
    assert got == ['into the pipe'] and stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ['pipe']

@unix
def test_a_device_is_written_into(tmp_path):
    (tmp_path/'null').symlink_to(os.devnull)
    for p in os.devnull, tmp_path/'null': write_text(writable_file(p), 'x')
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and os.listdir(tmp_path) == ['null']
    if Path('/dev/full').exists(): # Not on a Mac
        with pytest.raises(BadInput, match='/dev/full .No space left'): write_text('/dev/full', 'x')

@unix
def test_what_the_shell_opened(tmp_path):
    "`--json /dev/stdout`, with stdout a pipe and with stdout a file that goes on being written"
    code = ("from tlcourse.store import write_text; print('first', flush=True); "
            "write_text('/dev/stdout', 'second\\n'); print('third')")
    with open(tmp_path/'out', 'a') as f: subprocess.run([sys.executable, '-c', code], stdout=f, check=True)
    assert (tmp_path/'out').read_text() == 'first\nsecond\nthird\n' and not hidden(tmp_path)
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert r.stdout == 'first\nsecond\nthird\n'

@unix
def test_rights_stay(tmp_path):
    f = tmp_path/'mine'
    write_text(f, 'a')
    f.chmod(0o600)
    write_text(f, 'b')
    assert f.stat().st_mode & 0o777 == 0o600

@unix
def test_any_name_that_the_file_system_takes(tmp_path):
    write_text(tmp_path/('x'*255), 'long')
    with pytest.raises(BadInput, match='name too long'): write_text(tmp_path/('x'*256), 'longer')
    odd = tmp_path/os.fsdecode(b'a\xff')
    write_text(odd, f'{odd.name} in JSON: {json.dumps(odd.name, ensure_ascii=False)}') # Bytes that are no UTF-8
    assert json.loads(odd.read_text().split('JSON: ')[1]) == odd.name and len(os.listdir(tmp_path)) == 2

@pytest.mark.parametrize('place,says',
                         [('.', 'is a folder'), ('no/such.json', 'make it first'), ('file/a.json', 'Not a directory')])
def test_asked_before_the_work(place, says, tmp_path, capsys):
    (tmp_path/'file').touch()
    with pytest.raises(BadInput, match=says): writable_file(tmp_path/place)
    assert cli.main(['lessons', '--json', str(tmp_path/place)]) == 2
    o = capsys.readouterr()
    assert not o.out and says in o.err and o.err.count('\n') == 1

def test_home_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TLCOURSE_CACHE', '~/kept')
    write_text('~/a.txt', 'x')
    assert cache_dir() == tmp_path/'kept' and writable_folder('~/b/c') == tmp_path/'b'/'c'
    assert sorted(os.listdir()) == ['a.txt', 'b', 'kept']
    for f in writable_folder, writable_file, lambda p: write_text(p, 'x'):
        with pytest.raises(BadInput, match='no such user'): f('~nobody-of-this-name/x')

def test_threads_and_processes_write_one_file(tmp_path):
    f, texts = tmp_path/'a.txt', [str(i)*50_000 for i in range(8)]
    with ThreadPoolExecutor(8) as ex: list(ex.map(lambda t: [write_text(f, t) for _ in range(20)], texts))
    assert f.read_text() in texts and os.listdir(tmp_path) == ['a.txt']

# --- arrays: many writers

def rows(n=64, d=33, seed=0): return np.random.RandomState(seed).normal(size=(n,d)).astype(np.float32)

def put(store, key, x, about='rows', k=16):
    with store.sink(len(x)) as sink:
        for i in range(0, len(x), k): sink.add(x[i:i+k])
        return store.keep(sink, key, about, note=about)

@pytest.fixture
def store(): return Store('features')

def test_found_as_it_was_put(store, cache):
    for x in rows(), rows().astype(np.float16), np.zeros((5,3,4,4),
                                                         np.uint8), np.arange(6), np.zeros((0,3), np.float32):
        key = store.key(str(x.dtype), x.shape)
        assert store.find(key) == (None, None, '')
        if len(x) == 0:
            with store.sink(0) as s: s.add(x); put_x = store.keep(s, key, 'none')
        else: put_x = put(store, key, x)
        y, card, wrong = store.find(key)
        assert wrong == '' and y.dtype == x.dtype and card['code'] == store.code
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x, put_x)
    assert len(list((cache/'features').iterdir())) == 5 and not hidden(cache/'features')

def test_maps(cache):
    for kind,mode in ('features', 'r'), ('pictures', 'c'):
        s = Store(kind, mode)
        k = s.key()
        put(s, k, rows())
        x = s.find(k)[0]
        assert isinstance(x, np.memmap) and x.flags.writeable == (mode == 'c')
        if mode == 'c': x[:] = 0
        np.testing.assert_array_equal(s.find(k)[0], rows())

def test_threads_put_the_same_key(store, cache):
    "Eight threads, each with rows of its own under one key: all succeed, and what is found is whole and of one of them"
    key, xs = store.key('same'), [rows(seed=i) for i in range(8)]
    go, errors, found = threading.Barrier(8), [], []
    def work(x):
        try:
            go.wait()
            for _ in range(25):
                put(store, key, x)
                y, _, wrong = store.find(key)
                found.append((wrong, None if y is None else float(y[0,0])))
        except BaseException as e: errors.append(e)
    ts = [threading.Thread(target=work, args=(x,)) for x in xs]
    for t in ts: t.start()
    for t in ts: t.join()
    assert not errors and len(found) == 200
    assert {o for o in found} <= {('', float(x[0,0])) for x in xs}
    assert len(list((cache/'features').iterdir())) == 1

def test_processes_put_the_same_key(store, cache):
    code = '''import sys, numpy as np
from tlcourse.store import Store
s = Store('features'); k = s.key('same')
sys.stdin.read(1)
for i in range(40):
    x = np.full((50,40), int(sys.argv[1]), np.float32)
    with s.sink(50) as sink:
        for j in range(0, 50, 5): sink.add(x[j:j+5])
        s.keep(sink, k, 'same')
    y, card, wrong = s.find(k)
    assert wrong == '' and len(np.unique(y)) == 1, wrong'''
    ps = [child(code, i) for i in range(3)]
    for p in ps: p.stdin.write('x'); p.stdin.flush()
    for p in ps:
        _, err = p.communicate(timeout=120)
        assert not p.returncode, err
    assert store.find(store.key('same'))[2] == '' and len(os.listdir(cache/'features')) == 1

def test_features_of_three_threads(cache):
    "Fault 10: they said that the features cannot be stored"
    torch = pytest.importorskip('torch')
    from tlcourse.loaders import Part
    from tlcourse.features import extract
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU()).eval()
    part = Part('train', torch.randint(0, 256, (600, 3, 16, 16), dtype=torch.uint8), torch.arange(600) % 3, list('abc'))
    def one(_): return extract(body, part, stats=([.5]*3, [.25]*3), progress=False)
    for i in range(3):
        shutil.rmtree(cache/'features', ignore_errors=True)
        with ThreadPoolExecutor(3) as ex: fs = list(ex.map(one, range(3)))
        for f in fs: np.testing.assert_array_equal(f.x, fs[0].x)
        assert len(os.listdir(cache/'features')) == 1 and one(0).cached

def test_pictures_of_three_threads(cache, tmp_path):
    from PIL import Image
    from tlcourse.data import target
    for i in range(40):
        (tmp_path/'ab'[i % 2]).mkdir(exist_ok=True)
        x = np.random.RandomState(i).randint(0, 255, (40,40,3)).astype(np.uint8)
        Image.fromarray(x).save(tmp_path/'ab'[i % 2]/f'{i}.png')
    with ThreadPoolExecutor(3) as ex: ts = list(ex.map(lambda _: target(tmp_path, size=32), range(3)))
    assert len({t.pixel_hash for t in ts}) == 1 and all(t.train._file for t in ts)
    assert len(os.listdir(cache/'pictures')) == 1

# --- arrays: damage

def test_every_bit_counts(store):
    "Each byte of an entry spoilt in turn, in the array, the card and the last line: it is never served"
    x = rows(6, 5)
    key = store.key('small')
    put(store, key, x)
    f = store._path(key)
    good = f.read_bytes()
    for i in range(len(good)):
        for bit in 1, 32, 128:
            f.write_bytes(good[:i] + bytes([good[i] ^ bit]) + good[i+1:])
            y, card, wrong = store.find(key)
            assert y is None and card is None and wrong, (i, bit)
    for n in range(len(good)):
        f.write_bytes(good[:n])
        assert store.find(key)[2] == 'the file is cut short, or its card is damaged'
    for more in good + good, good + b'\n', b'\0' + good, good[:x.nbytes] + b'\0'*8 + good[x.nbytes:]:
        f.write_bytes(more)
        assert store.find(key)[0] is None and store.find(key)[2]
    f.write_bytes(good)
    np.testing.assert_array_equal(store.find(key)[0], x)

@pytest.mark.parametrize('change',
                         [dict(shape=[3,3]), dict(shape=[10**6, 5]), dict(shape=[-6,-5]), dict(shape='65'),
                          dict(shape=None), dict(dtype='O'), dict(dtype='O', shape=[3,5]),
                                    dict(dtype='>f8'), dict(dtype='no'), dict(dtype=None), dict(sha256=None),
                                    dict(key=7)], ids=str)
def test_a_card_with_a_right_checksum_and_wrong_words(change, store):
    key = store.key('small')
    put(store, key, rows(6, 5))
    f = store._path(key)
    with open(f, 'rb') as o: card, n = tlcourse.store._read_card(o)
    f.write_bytes(f.read_bytes()[:n] + tlcourse.store._card_bytes({**card, **change}))
    x, _, wrong = store.find(key)
    assert x is None and wrong
    for k in change: card.pop(k)
    f.write_bytes(f.read_bytes()[:n] + tlcourse.store._card_bytes(card)) # Without it
    assert store.find(key)[0] is None and store.find(key)[2]
    for odd in [], 'text', None:
        f.write_bytes(f.read_bytes()[:n] + tlcourse.store._card_bytes(odd))
        assert store.find(key)[0] is None and store.find(key)[2]
    assert [e.state for e in entries()] == ['damaged']

@unix
def test_what_is_no_file(store):
    key = store.key('x')
    f = store._path(key)
    f.parent.mkdir()
    os.mkfifo(f) # Opened, it would wait for ever
    assert store.find(key) == (None, None, '') and entries() == [] and prune() == []
    np.testing.assert_array_equal(put(store, key, rows()), rows())
    f.unlink()
    f.mkdir()
    assert store.find(key) == (None, None, '')
    with pytest.raises(OSError): put(store, key, rows())
    assert not hidden(f.parent)

# --- arrays: places without room, without leave, and killed writers

@unix
def test_disk_full(store, cache):
    code = '''import resource, sys, numpy as np
from tlcourse.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,)*2)
s = Store('features'); k = s.key('large')
try:
    with s.sink(100) as sink:
        for i in range(100): sink.add(np.zeros((1, 300), np.float32))
        s.keep(sink, k, 'large')
except OSError as e: print(e.strerror, s.find(k))'''
    out, err = child(code).communicate(timeout=60)
    assert out == "File too large (None, None, '')\n", err
    assert os.listdir(cache/'features') == []

@unix
def test_disk_full_under_write_text(tmp_path):
    (tmp_path/'a').write_text('old')
    code = '''import resource, sys
from tlcourse.base import BadInput
from tlcourse.store import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,)*2)
try: write_text(sys.argv[1], 'x'*10**6)
except BadInput as e: print(e)'''
    out, err = child(code, tmp_path/'a').communicate(timeout=60)
    assert out == f'cannot write {tmp_path/"a"} (File too large): free some space, or name another place\n', err
    assert (tmp_path/'a').read_text() == 'old' and os.listdir(tmp_path) == ['a']

READONLY = '''import os, sys, warnings
import numpy as np, torch
from tlcourse.base import BadInput
from tlcourse.loaders import Part
from tlcourse.features import extract
from tlcourse.store import Store, entries, prune, write_text
warnings.simplefilter('error')
s = Store('features')
print(s.find(s.key('here'))[1]['about'])
try: write_text(sys.argv[1] + '/a.txt', 'x')
except BadInput as e: print(e)
try: prune(max_bytes=0)
except BadInput as e: print(e)
part = Part('train', torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ['a', 'b'])
try: extract(torch.nn.Conv2d(3, 2, 1), part, stats=([.5]*3, [.25]*3))
except BadInput as e: print(e)
print(len(entries()))'''

@unix
def test_a_place_that_can_only_be_read(monkeypatch):
    with tempfile.TemporaryDirectory() as d: # Not below pytest's own folder, which other users may not enter
        monkeypatch.setenv('TLCOURSE_CACHE', d)
        s = Store('features')
        put(s, s.key('here'), rows(), 'found all the same')
        for f in Path(d)/'features', Path(d): f.chmod(0o555)
        # Root may write everywhere. Another user might not read the library, which can lie in root's own folder
        plain = ['setpriv', '--bounding-set=-all', '--inh-caps=-all']*(os.getuid() == 0)
        try: out, err = child(READONLY, d, before=plain).communicate(timeout=120)
        finally:
            for f in Path(d), Path(d)/'features': f.chmod(0o755)
    assert out.count("\n") == 5, err
    found, text, pruned, features, n = out.splitlines()
    assert (found, n) == ('found all the same', '1')
    assert 'a.txt (Permission denied)' in text and '1 of the stored files cannot be removed' in pruned
    assert 'cannot be stored in' in features and 'Permission denied' in features and 'cache=False' in features

KILLED = '''import sys, time, numpy as np
from tlcourse.store import Store
s = Store('features')
with s.sink(1000) as sink:
    for i in range(1000):
        sink.add(np.zeros((1, 1000), np.float32))
        if i == 100: print('writing', flush=True)
        if i > 100: time.sleep(.05)'''

@unix
def test_killed_in_mid_write(store, cache):
    "SIGKILL: a file stays behind; the next writer removes it, and not that of a process that is still writing"
    p, live = child(KILLED), child(KILLED)
    try:
        for o in p, live: assert o.stdout.readline() == 'writing\n'
        p.send_signal(signal.SIGKILL)
        p.wait()
        assert len(hidden(cache/'features')) == 2
        put(store, store.key('next'), rows())
        left, = hidden(cache/'features')
        assert f'-{live.pid}-' in left
    finally:
        live.kill()
        live.wait()
    assert prune() == [] and not hidden(cache/'features') and len(entries()) == 1

def test_leftovers_of_another_machine(store, cache):
    "Whether a process of another machine runs cannot be asked: an hour without a write"
    d = cache/'features'
    d.mkdir()
    # The last as former versions named it
    old, new, older = d/'.tlcourse-0a0a0a0a-1-2b', d/'.tlcourse-0a0a0a0a-1-3c', d/'.name.4711'
    for f in old, new, older: f.write_bytes(b'x')
    for f in old, older: os.utime(f, (1,1))
    mine = d/f'.tlcourse-{tlcourse.store._host}-{os.getpid()}-4d' # Of a process that runs: a day
    mine.write_bytes(b'x')
    two_hours_ago = time.time() - 7200
    os.utime(mine, (two_hours_ago,)*2)
    with store.sink(1): pass
    assert sorted(hidden(d)) == sorted([new.name, mine.name])
    os.utime(mine, (1,1))
    with store.sink(1): pass
    assert hidden(d) == [new.name]

# --- the rule for code, listing and pruning

def test_code_hash(tmp_path, monkeypatch):
    "One byte of one module"
    lib = tmp_path/'tlcourse'
    lib.mkdir()
    for m in 'store', 'pictures', 'data': shutil.copy(Path(tlcourse.__file__).parent/f'{m}.py', lib)
    before = _code_hash('store', 'pictures', 'data')
    monkeypatch.setattr(tlcourse, '__file__', str(lib/'__init__.py'))
    assert _code_hash('store', 'pictures', 'data') == before != _code_hash('store', 'data', 'pictures')
    with open(lib/'pictures.py', 'a') as f: f.write('#')
    assert _code_hash('store', 'pictures', 'data') != before and _code_hash('store', 'data') != before

def test_the_code_is_in_the_key(store):
    k = store.key('x')
    store.code = '0'*16
    assert store.key('x') != k

def of_age(store, name, days, n=10):
    k = store.key(name)
    put(store, k, rows(n), name)
    t = time.time() - days*86400
    os.utime(store._path(k), (t, t))
    return k

def test_prune_by_age_and_size(store, cache):
    pics = Store('pictures')
    for s,name,days in (store, 'new', 1), (pics, 'week', 7), (store, 'month', 30), (pics, 'year', 365):
        of_age(s, name, days)
    want = ('features', 'new'), ('pictures', 'week'), ('features', 'month'), ('pictures', 'year')
    assert [(e.kind, e.about, e.state) for e in entries()] == [(k, n, 'current') for k,n in want]
    size = max(e.bytes for e in entries())
    assert prune() == [] and prune(days=1000) == [] and prune(max_bytes=10*size) == []
    assert [e.about for e in prune(days=100)] == ['year']
    store.find(store.key('month')) # Used: now it is the newest
    assert [e.about for e in prune(max_bytes=2*size)] == ['week'] and [e.about for e in entries()] == ['month', 'new']
    assert store.find(store.key('new'))[2] == '' and pics.find(pics.key('week')) == (None, None, '')
    assert [e.about for e in prune(days=0)] and entries() == [] and not list(cache.glob('*/*'))

def test_prune_drops_what_is_of_no_use(store, cache):
    of_age(store, 'good', 300)
    was, store.code = store.code, 'of before'
    of_age(store, 'older', 0)
    store.code = was
    bad = store._path(of_age(store, 'bad', 0))
    bad.write_bytes(bad.read_bytes()[:-1])
    for n in 'a.npy', 'a.json', 'b.pixels': (cache/'features'/n).write_bytes(b'of former versions')
    (cache/'models').mkdir() # Not ours
    (cache/'models'/'tmp.pth').write_bytes(b'x')
    assert sorted(e.state for e in entries()) == ['current', 'damaged'] + ['older code']*4
    assert len(prune()) == 5 and [e.about for e in entries()] == ['good'] and (cache/'models'/'tmp.pth').exists()

def test_a_mapped_array_survives_pruning(store):
    x = put(store, store.key('x'), rows())
    assert len(prune(max_bytes=0)) == 1
    np.testing.assert_array_equal(x, rows())

@pytest.mark.parametrize('bad',
                         [dict(days=-1), dict(max_bytes=-1), dict(days=float('nan')), dict(max_bytes='3'),
                          dict(days=True)], ids=str)
def test_prune_refuses(bad, store):
    of_age(store, 'x', 1)
    with pytest.raises(BadInput, match='0 or more'): prune(**bad)
    assert len(entries()) == 1

def said(capsys, *args):
    code = cli.main([*map(str, args)])
    o = capsys.readouterr()
    return code, o.out, o.err

def test_command(store, cache, tmp_path, capsys):
    assert said(capsys, 'cache') == (0, f'0 kept, 0.0 MB in {cache}\n', '')
    of_age(store, 'new \x1b[31m', 1, n=10_000)
    of_age(store, 'old', 50)
    code, out, err = said(capsys, 'cache', '--json', tmp_path/'c.json')
    assert (code, err) == (0, '') and 'features 1.3 MB' in out and r'new \x1b[31m' in out and '\x1b' not in out
    assert '2 kept, 1.3 MB' in out
    told = json.loads((tmp_path/'c.json').read_text())
    assert [e['about'] for e in told['kept']] == ['new \x1b[31m', 'old'] and told['removed'] == []
    code, out, err = said(capsys, 'cache', '--prune', '--days', 20)
    assert code == 0 and out.startswith('removed features') and '1 kept' in out
    assert said(capsys, 'cache', '--prune', '--gb', '.001')[1].endswith(f'0 kept, 0.0 MB in {cache}\n')
    for args,words in [(('--days', 3), 'needs --prune'), (('--gb', 3), 'needs --prune'),
                       (('--prune', '--gb', -1), '0 or more'), (('--prune', '--days', 'nan'), '0 or more')]:
        code, out, err = said(capsys, 'cache', *args)
        assert (code, out) == (2, '') and words in err and err.count('\n') == 1

def test_one_way_to_write():
    "No module but the store renames a file that it has written; `card` and `sources` put whole folders in place"
    lib = Path(tlcourse.__file__).parent
    assert ({f.name for f in lib.rglob('*.py') if 'os.replace' in f.read_text(encoding='utf-8')}
            == {'store.py', 'card.py', 'sources.py'})
