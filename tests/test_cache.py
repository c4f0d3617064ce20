"""Decoded once: the pixels of a folder in a file that is mapped, never other pictures than the folder's,
and memory that stays flat."""
import json, multiprocessing as mp, os, pickle, shutil, subprocess, sys, warnings
from pathlib import Path
import numpy as np
import PIL, pytest, torch
from PIL import Image
from fastai.vision.all import Learner, nn, set_seed
import tlcourse.loaders, tlcourse.pictures, tlcourse.sources
from tlcourse.base import BadInput
from tlcourse.data import target
from tlcourse.copies import Prints, _near_pairs, find_copies, group_copies
from tlcourse.pictures import read_pictures
from tlcourse.records import Records
from tlcourse.sweep import sweep
from conftest import python

@pytest.fixture(autouse=True)
def store(tmp_path_factory, monkeypatch):
    d = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('TLCOURSE_CACHE', str(d))
    return d/'pictures'

@pytest.fixture
def decoded(monkeypatch):
    "Every picture file that is decoded from now on"
    res, was = [], tlcourse.pictures._array
    monkeypatch.setattr(tlcourse.pictures, '_array', lambda src, size, **how: res.append(src) or was(src, size, **how))
    return res

def scene(seed):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (5,6,3)).astype(np.uint8)).resize((48,40))

def make(root, n=10, classes=('cat','dog'), ending='bmp'): # The files of BMPs are equally long
    for i in range(n*len(classes)):
        f = root/classes[i % len(classes)]/f'{i:05d}.{ending}'
        f.parent.mkdir(parents=True, exist_ok=True)
        scene(i).save(f)
    return root

def all_of(t):
    "Everything that a target tells of its pictures"
    x, y = t._test_arrays
    return dict(train=t.train.x.tolist(), valid=t.valid.x.tolist(), test=x.tolist(),
                ys=[t.train.y.tolist(), t.valid.y.tolist(), y.tolist()],
                paths=[t.train.paths, t.valid.paths], hash=t.pixel_hash,
                classes=t.classes, card=t.card, copies=t.report.copies,
                skipped=t.report.skipped, dropped=t.report.dropped,
                notes=[o for o in t.report.notes if not any(s in o for s in ('held in memory', 'decoded again'))])

def fresh(root, **kw):
    "The same without any cache: its folder is a file"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('TLCOURSE_CACHE', __file__)
        t = target(root, **kw)
    assert any('held in memory' in o for o in t.report.notes) and not t.train._file
    return all_of(t)

def quietly(root, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return target(root, **kw)

# Once

def test_decoded_once(tmp_path, store, decoded):
    root = make(tmp_path/'a')
    (root/'cat'/'bad.jpg').write_text('no picture'); (root/'dog'/'x.txt').write_text('x')
    shutil.copy(root/'cat'/'00000.bmp', root/'cat'/'again.bmp')
    seen = []
    first = quietly(root, size=64, progress=lambda *o: seen.append(o))
    assert len(decoded) == 22 and seen[-1] == (22,22)
    second = quietly(root, size=64, progress=lambda *o: seen.append(o))
    assert len(decoded) == 22 and len(seen) == 22
    assert all_of(first) == all_of(second) == fresh(root, size=64)
    assert 'skipped 1 file' in str(second.report) and 'left alone: 1 .txt' in str(second.report)
    assert '1 picture is a copy' in str(second.report)
    for p in (second.train, second.valid): assert (read_pictures(p.paths, 64)[0] == p.x.numpy()).all()
    f, = store.iterdir()
    assert f.suffix == '.array' and 0 < f.stat().st_size - 21*3*64*64 < 5000 # Three bytes a pixel, and a card

def test_another_process_decodes_nothing(tmp_path):
    root = make(tmp_path/'a')
    t = target(root, size=32)
    code = f"""import tlcourse.pictures as p
p._array = None
from tlcourse.data import target
print(target({str(root)!r}, size=32).pixel_hash)"""
    assert (subprocess.run([*python(), '-c', code], capture_output=True, text=True, check=True).stdout.strip()
            == t.pixel_hash)

def test_a_folder_that_moved_keeps_its_file(tmp_path, decoded):
    root = make(tmp_path/'a')
    h = target(root, size=32).pixel_hash
    n = len(decoded)
    root.rename(tmp_path/'b')
    t = quietly(tmp_path/'b', size=32)
    assert len(decoded) == n and t.pixel_hash == h and t.name == 'b' and all(p.is_file() for p in t.train.paths)

def test_the_parts_are_views_of_one_map(tmp_path):
    t = quietly(make(tmp_path/'a'), size=32)
    size, at = 3*32*32, [p.x.data_ptr() for p in (t.train, t.valid, t._sealed)]
    assert ([t.train._file[2], t.valid._file[2], t._sealed._file[2]]
            == [0, len(t.train)*size, (len(t.train) + len(t.valid))*size])
    assert at[1] - at[0] == len(t.train)*size and at[2] - at[1] == len(t.valid)*size

# Never other pictures

def other_file(root, m):
    a, b = root/'cat'/'00000.bmp', root/'dog'/'00001.bmp'
    st = a.stat()
    a.write_bytes(b.read_bytes()[:-1] + b'\7')
    os.utime(a, ns=(st.st_atime_ns, st.st_mtime_ns))
    assert (a.stat().st_size, a.stat().st_mtime_ns) == (st.st_size, st.st_mtime_ns)

def swapped(root, m):
    a, b = root/'cat'/'00000.bmp', root/'dog'/'00001.bmp'
    a.rename(root/'x'); b.rename(a); (root/'x').rename(b)

def listed(root, m):
    fs = sorted(root.rglob('*.bmp'))
    rows = [f"{f.relative_to(root)},{f.parent.name},{('train','valid','test')[i % 3]}\n" for i,f in enumerate(fs)]
    (root/'split.csv').write_text('path,label,split\n' + ''.join(rows))

def no_longer_read(root, m): (root/'cat'/'00000.bmp').write_bytes(b'BM')
def other_code(root, m): m.setattr(tlcourse.sources._store, 'code', 'another')
def other_pillow(root, m): m.setattr(PIL, '__version__', PIL.__version__ + '.1')
def other_decoder(root, m): m.setattr(tlcourse.sources.features, 'version', lambda o: '0')

mutations = dict(file=other_file, swapped=swapped, added=lambda r, m: scene(77).save(r/'cat'/'new.bmp'),
                 removed=lambda r, m: (r/'cat'/'00000.bmp').unlink(),
                 renamed=lambda r, m: (r/'cat'/'00000.bmp').rename(r/'cat'/'1.bmp'),
                 named=lambda r, m: (r/'cat').rename(r/'emu'), listed=listed,
                 unreadable=no_longer_read, code=other_code, pillow=other_pillow, decoder=other_decoder)

@pytest.mark.parametrize('how', mutations)
def test_what_changed_is_decoded_again(tmp_path, how, monkeypatch, decoded):
    root = make(tmp_path/'a')
    old = all_of(target(root, size=32))
    n = len(decoded)
    mutations[how](root, monkeypatch)
    new = all_of(quietly(root, size=32))
    assert len(decoded) - n == len(list(root.rglob('*.bmp')))
    assert new == fresh(root, size=32) and (new == old) == (how in ('code', 'pillow', 'decoder'))

@pytest.mark.parametrize('kw',
                         [dict(size=48), dict(seed=1), dict(valid_pct=.3), dict(test_pct=.3),
                          dict(drop_duplicates=True)], ids=lambda o: next(iter(o)))
def test_what_is_asked_for_is_in_the_key(tmp_path, kw, store):
    root = make(tmp_path/'a')
    (root/'train').mkdir(); (root/'cat').rename(root/'train'/'cat'); (root/'dog').rename(root/'train'/'dog')
    if 'drop_duplicates' in kw:
        for f in (root/'train').rglob('*[0-4].bmp'):
            (root/'valid'/f.parent.name).mkdir(parents=True, exist_ok=True); shutil.copy(f, root/'valid'/f.parent.name)
    if 'test_pct' in kw: root = root/'train'
    base = dict(size=32)
    a = all_of(quietly(root, **base)); b = all_of(quietly(root, **{**base, **kw}))
    assert len(list(store.iterdir())) == 2 and a['hash'] != b['hash']
    assert b == fresh(root, **{**base, **kw}) and a == all_of(quietly(root, **base)) == fresh(root, **base)

def flip(f, m):
    b = bytearray(f.read_bytes()); b[len(b)//2] ^= 1; f.write_bytes(b)

def flip_card(f, m):
    b = bytearray(f.read_bytes()); b[-200] ^= 1; f.write_bytes(b)

def card_told(f, m):
    "A card that is sound JSON, as long as before, and says that two pictures lie in each other's place"
    b = f.read_bytes()
    at = b.index(b'"places": [') + 11
    places = b[at:b.index(b']', at)].split(b', ')
    f.write_bytes(b[:at] + b', '.join(places[1::-1] + places[2:]) + b[at + len(b', '.join(places)):])

damages = dict(bit=(flip, 'was changed'), short=(lambda f, m: f.write_bytes(f.read_bytes()[:-1]), 'cut short'),
               empty=(lambda f, m: f.write_bytes(b''), 'cut short'),
               no_card=(lambda f, m: f.write_bytes(f.read_bytes()[:20*3*32*32]), 'cut short'),
               torn_card=(flip_card, 'card is damaged'), other_card=(card_told, 'card is damaged'))

@pytest.mark.parametrize('how', damages)
def test_a_damaged_file_is_announced_and_made_again(tmp_path, how, store, decoded):
    root = make(tmp_path/'a')
    old = all_of(target(root, size=32))
    spoil, said = damages[how]
    spoil(next(store.iterdir()), None)
    with pytest.warns(UserWarning, match=f'{said}.*decoded again') as w: new = all_of(target(root, size=32))
    assert len(w) == 1 and w[0].filename == __file__
    n = len(decoded)
    assert new == old == all_of(quietly(root, size=32)) and len(decoded) == n == 40

def test_the_file_of_another_folder_is_not_served(tmp_path, store):
    a, b = make(tmp_path/'a'), make(tmp_path/'b')
    swapped(b, None)
    ta = all_of(target(a, size=32)); fa, = store.iterdir()
    tb = all_of(target(b, size=32)); fb, = set(store.iterdir()) - {fa}
    shutil.copy(fa, fb)
    with pytest.warns(UserWarning, match='holds something else.*decoded again'):
        assert all_of(target(b, size=32)) == tb != ta

def test_a_file_that_changes_meanwhile(tmp_path, store, monkeypatch):
    root, was = make(tmp_path/'a'), tlcourse.pictures._array
    def slow(src, size, **how):
        if src.name == '00000.bmp': scene(99).save(src)
        return was(src, size, **how)
    monkeypatch.setattr(tlcourse.pictures, '_array', slow)
    with pytest.raises(BadInput, match='00000.bmp changed while'): target(root, size=32)
    assert not list(store.iterdir())

# Written whole or not at all

def limited(root, cache, most, sizes, before=''):
    "Targets in a process that may write no file longer than `most` bytes"
    code = f"""import json, resource, sys
from tlcourse.data import target
{before}
resource.setrlimit(resource.RLIMIT_FSIZE, ({most},{most}))
for s in {sizes}:
    t = target({str(root)!r}, size=s)
    sys.stdout.write(json.dumps([t.pixel_hash, t.report.notes]) + '\\n')"""
    r = subprocess.run([*python(), '-c', code], capture_output=True, text=True,
                       env={**os.environ, 'TLCOURSE_CACHE': str(cache)})
    assert not r.returncode, r.stderr
    return [json.loads(o) for o in r.stdout.splitlines()]

def test_disk_full(tmp_path, store):
    root = make(tmp_path/'a')
    h = target(root, size=32).pixel_hash
    here = [(o.name, o.read_bytes()) for o in store.iterdir()]
    (h32,n32), (h64,n64) = limited(root, store.parent, 10_000, [32,64]) # The first is there, the second finds no room
    assert h32 == h and not [o for o in n32 if 'kept' in o]
    assert h64 == fresh(root, size=64)['hash']
    assert [o for o in n64 if 'cannot be kept (File too large): they are held in memory' in o]
    assert [(o.name, o.read_bytes()) for o in store.iterdir()] == here

def test_no_folder_for_it(tmp_path, monkeypatch):
    root = make(tmp_path/'a')
    want = all_of(target(root, size=32))
    (tmp_path/'file').write_text('x')
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'file'/'sub'))
    t = quietly(root, size=32)
    assert all_of(t) == want and len([o for o in t.report.notes if 'TLCOURSE_CACHE names another place' in o]) == 1

def test_neither_disk_nor_memory(tmp_path, monkeypatch):
    root, was = make(tmp_path/'a'), np.empty
    def empty(shape, *o, **kw):
        if np.ndim(shape) and len(shape) == 4: raise MemoryError
        return was(shape, *o, **kw)
    monkeypatch.setattr(np, 'empty', empty)
    monkeypatch.setenv('TLCOURSE_CACHE', __file__)
    with pytest.raises(BadInput, match='memory cannot hold them: set TLCOURSE_CACHE'): target(root, size=32)

def test_what_a_killed_process_left(tmp_path, store):
    store.mkdir()
    old, new = store/'.1-2-3', store/'.1-2-4'
    for f in (old, new): f.write_bytes(b'x')
    os.utime(old, (1,1))
    target(make(tmp_path/'a'), size=32)
    assert not old.exists() and new.exists() # Another process may be writing the second

def found(root, together, hashes):
    warnings.simplefilter('error')
    together.wait()
    hashes.put(target(root, size=64).pixel_hash)

def test_two_at_once(tmp_path, store):
    "Three processes that begin in the same moment"
    root = make(tmp_path/'a', n=100)
    together, hashes = mp.Barrier(3), mp.Queue()
    ps = [mp.Process(target=found, args=(root, together, hashes)) for _ in range(3)]
    for p in ps: p.start()
    assert [hashes.get(timeout=120) for _ in ps] == [fresh(root, size=64)['hash']]*3
    for p in ps: p.join(120)
    assert [p.exitcode for p in ps] == [0]*3 and [o.suffix for o in store.iterdir()] == ['.array']
    assert target(root, size=64).pixel_hash == fresh(root, size=64)['hash']

# Used

def net():
    set_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 2))

def fitted(t):
    learn = Learner(t.dls(device='cpu', bs=4), net(), loss_func=nn.CrossEntropyLoss())
    set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    s = t.score(learn, shifts='noise')
    return [o.tolist() for o in (*learn.model.parameters(), s.prob, s.shifts['noise'].prob)]

def test_training_and_scoring(tmp_path, monkeypatch):
    root = make(tmp_path/'a')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not writable')
        mapped = target(root, size=32)
        a = fitted(mapped)
        assert mapped.train._file and mapped.dls(device='cpu').train.gathers
        assert len(mapped.show(2).axes) == 2*2 and str(mapped.dls(device='cpu').valid_ds.items[0]).startswith('Pic(0')
        # Where a map that could be written is refused, one for reading only is taken
        was = np.memmap
        def only_read(*o, mode, **kw):
            if mode == 'c': raise OSError(12, 'Cannot allocate memory')
            return was(*o, mode=mode, **kw)
        with monkeypatch.context() as m:
            m.setattr(np, 'memmap', only_read)
            x = tlcourse.sources._store.map(mapped.train._file[0], mapped.train._file[1])
        assert not x.flags.writeable and tlcourse.loaders._tensor(x).equal(mapped.train.x)
    monkeypatch.setenv('TLCOURSE_CACHE', __file__)
    assert fitted(target(root, size=32)) == a

def test_what_is_written_to_a_target_stays_there(tmp_path):
    root = make(tmp_path/'a')
    t = target(root, size=32)
    want = all_of(t)
    t.train.x.zero_()
    assert all_of(quietly(root, size=32)) == want and not t.train.x.any()

def test_a_pickle_carries_the_name_of_the_file(tmp_path, store):
    root = make(tmp_path/'a', n=50)
    t = target(root, size=64)
    b = pickle.dumps(t)
    assert len(b) < 60_000 < 100*3*64*64 and all_of(pickle.loads(b)) == all_of(t)
    t.valid.x = 255 - t.valid.x # Replaced, and changed in place: then the pixels themselves
    t.train.x[:1] = 7
    assert all_of(pickle.loads(pickle.dumps(t))) == all_of(t) and len(pickle.dumps(t)) > 50*3*64*64
    for f in store.iterdir(): f.unlink()
    with pytest.raises(BadInput, match='make the target again'): pickle.loads(b)

def test_workers_share_it(tmp_path):
    t = target(make(tmp_path/'a'), size=32)
    def run(spec): return dict(sum=int(t.train.x[spec['i']].sum()))
    got = {}
    sweep([dict(i=i) for i in range(6)], Records(tmp_path/'r.db'), run, workers=2, progress=False,
          on_done=lambda s, r, fresh: got.update({s['i']: r['sum']}))
    assert got == {i: int(t.train.x[i].sum()) for i in range(6)}

# Memory and time

measure = """import gc, json, os, sys, threading, time
import torch
from tlcourse.data import target
def anon(): return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])*1024
def use(root):
    t = target(root, size=96)
    # Augmented, the allocator's ups and downs are larger than the rest; and fastai's batches wait for the collector
    for i,(xb,_) in enumerate(t.dls(device='cpu', bs=32, augment=False).train):
        xb.sum()
        if i % 4 == 0: gc.collect()
    return t
gc.freeze() # The collector need not look through the libraries each time
use(sys.argv[1]) # What is imported and allocated once
gc.collect()
start, peak, done = anon(), 0, False
def watch():
    global peak
    while not done: peak = max(peak, anon()); time.sleep(.002)
th = threading.Thread(target=watch); th.start()
use(sys.argv[2]); t = use(sys.argv[2]) # Decoded, then found
done = True; th.join()
print(json.dumps([max(peak, anon()) - start, len(t.train) + len(t.valid) + len(t.test), t.train._file is not None]))"""

def grown(warm, root, cache=None):
    env = {**os.environ, 'MALLOC_TRIM_THRESHOLD_': '0', 'MALLOC_MMAP_THRESHOLD_': '65536',
           **({'TLCOURSE_CACHE': cache} if cache else {})}
    r = subprocess.run([sys.executable, '-c', measure, warm, root], capture_output=True, text=True, env=env)
    assert not r.returncode, r.stderr
    return json.loads(r.stdout)

@pytest.mark.skipif(sys.platform != 'linux', reason='/proc tells the memory of a process on Linux only')
@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """Ten times the pictures, built and used: RssAnon, the memory that is the process's own, grows by less than a
    fifth of the pixels: blocks that are full now, and of each picture a path, a label, a fingerprint, about a
    kilobyte. The pages of the map are not in it: they are the system's copy of a file, which it takes back when it
    needs the room."""
    warm, few, many = (make(tmp_path/'w', n=50), make(tmp_path/'few', n=100, ending='png'),
                       make(tmp_path/'many', n=1000, ending='png'))
    (a,n,mapped), (b,m,_) = grown(warm, few), grown(warm, many)
    assert (n, m, mapped) == (200, 2000, True)
    pixels = (m - n)*3*96*96
    print(f'own memory {a/1e6:.1f} MB at {n:,} pictures, {b/1e6:.1f} MB at {m:,}, whose pixels are '
          f'{pixels/1e6:.0f} MB more')
    assert b - a < pixels/5
    c, _, mapped = grown(warm, many, __file__)
    assert not mapped and c - a > pixels # The same measure sees pixels that are held in memory

def test_copies_are_those_that_comparing_all_pairs_finds():
    rng = np.random.RandomState(0)
    x = rng.randint(0, 255, (120,3,6,6)).astype(np.uint8).repeat(8, 2).repeat(8, 3)
    for i in range(60, 120): # Copies of all kinds: the same, a little noise, much noise, none
        if i % 4 == 3: continue
        noise = rng.randint(-1, 2, (3,6,6)).repeat(8, 1).repeat(8, 2)*(0, 3, 9)[i % 4]
        x[i] = np.clip(x[i-60].astype(int) + noise, 0, 255)
    x[50:60] = np.arange(10)[:,None,None,None] # Without contrast
    x[100:104] = x[3]
    p, ids = Prints(x), np.arange(120)
    i, j = (o.ravel() for o in np.meshgrid(ids, ids))
    d = p.alike(i, j).reshape(120, 120)
    assert ((d < 255) & ~np.eye(120, dtype=bool)).sum() > 20 and len(np.unique(d[d < 255])) > 3
    got = [frozenset(o) for a,b,_ in _near_pairs(p, ids) for o in zip(a.tolist(), b.tolist())]
    assert len(got) == len(set(got))
    assert set(got) == {frozenset((a,b)) for a in ids.tolist() for b in range(a) if d[a,b] < 255}
    part, y = rng.choice(['train','valid','test'], 120), rng.randint(0, 3, 120)
    assert find_copies(p, part) == slow_copies(p, d, part)
    assert (group_copies(p, y) == slow_groups(p, d, y)).all()

def slow_copies(p, d, part):
    res, rank = {}, dict(train=0, valid=1, test=2)
    for kind in ('same', 'near'):
        for late in ('test', 'valid'):
            js = [j for j in range(len(part)) if part[j] == late]
            for i in range(len(part)):
                if i in res or rank[part[i]] >= rank[late]: continue
                if kind == 'same': hits = [(0,j) for j in js if p.same[j] == p.same[i]]
                else: hits = [(int(d[i,j]),j) for j in js if d[i,j] < 255]
                if hits: res[i] = min(hits)[1], kind
    return res

def slow_groups(p, d, y):
    g = np.arange(len(y))
    while True:
        new = g.copy()
        for i in range(len(y)):
            for j in range(len(y)):
                if y[i] == y[j] and (d[i,j] < 255 or p.same[i] == p.same[j]): new[i] = min(new[i], g[j])
        if (new == g).all(): return g
        g = new

def test_a_folder_of_one_picture_many_times():
    "All bands in common: the search goes on in small blocks"
    x = np.random.RandomState(0).randint(0, 255, (1,3,6,6)).astype(np.uint8).repeat(6, 2).repeat(6, 3).repeat(700, 0)
    x[:,0,0,0] = np.arange(700) % 256; x[:,0,0,1] = np.arange(700) // 256
    p = Prints(x)
    assert len(np.unique(p.same)) == 700 and not group_copies(p, np.zeros(700, int)).any()
    assert find_copies(p, ['train']*699 + ['test']) == {i: (699,'near') for i in range(699)}
