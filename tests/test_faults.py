"""Damaged files, crafted files, odd places: what is read is what was written, or it is said in a sentence that it cannot be.

What was tried first stands in the reviews as F1 to F14; the tests name them. Bits are turned at random from a fixed seed: a few here, 300 of
each kind in `.ci/run` (`-m slow`), and as many as TLCOURSE_FLIPS says by hand, as in

    TLCOURSE_FLIPS=4000 python -m pytest tests/test_faults.py -m slow -n0 -k bits
"""
import json, os, random, shutil, sqlite3, subprocess, sys, threading, warnings, zlib
from pathlib import Path
import numpy as np, pytest
from tlcourse import cli
from tlcourse.base import BadInput, package_assets
from tlcourse.records import Records, lesson_records, spec_hash

unix = pytest.mark.skipif(os.name != 'posix', reason='Windows has no such files, limits or signals')
FEW, MANY = 25, int(os.environ.get('TLCOURSE_FLIPS', 300))

def counts(few=FEW):
    "A short run, and the long one behind its marker"
    return pytest.mark.parametrize('n', [few, pytest.param(MANY, marks=pytest.mark.slow)])

def flipped(data, n, seed=0):
    "Copies of some bytes, each with one bit turned somewhere"
    rng = random.Random(seed)
    for _ in range(n):
        i = rng.randrange(8*len(data))
        yield i//8, data[:i//8] + bytes([data[i//8] ^ 1 << i % 8]) + data[i//8+1:]

@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        yield

# --- F3: the store

def spec(i): return dict(kind='report', target='toy', pixel_hash='p', seed=i)
def result(i, n=400):
    rng = np.random.default_rng(i)
    return dict(pred=rng.integers(0, 9, n).astype(np.uint16), prob=rng.random(n).astype(np.float16), loss=i/7, note=f'run {i}')
Y = np.random.default_rng(99).integers(0, 9, 400).astype(np.uint16)

def same(a, b): return a.keys() == b.keys() and all(type(a[k]) is type(b[k]) and np.array_equal(a[k], b[k]) for k in a)

def fill(path, n=20):
    r = Records(path)
    r.put_labels('p', Y, dict(classes=list('abcdefghi')))
    for i in range(n): r.add(spec(i), result(i))
    r.add(dict(kind='study', pixel_hash='p'), dict(cells=[['a', 1, [spec(0)]]], rates=[]))
    r.close()
    return path

def sound(r):
    "All that a store gives is what was put into it; how many runs that is"
    rows = r.rows(kind='report')
    for o in rows:
        assert same(o.result, result(o.spec['seed'])) and o.spec == spec(o.spec['seed']) and o.opened, o
        assert o.y is None or np.array_equal(o.y, Y)
        assert same(r.get(o.spec), o.result)
    assert len({o.spec['seed'] for o in rows}) == len(rows) == r.openings()
    assert r.labels('p') is None or np.array_equal(r.labels('p'), Y) and r.info('p') == dict(classes=list('abcdefghi'))
    return len(rows)

@counts()
def test_bits_of_a_store(n, tmp_path, quiet):
    "Wherever a bit is turned: no wrong run, no wrong label, and what was lost is said"
    whole = Records(fill(tmp_path/'a.db')).export(tmp_path/'whole.db').read_bytes()
    lost, said = [], 0
    for i,data in flipped(whole, n):
        f = tmp_path/'b.db'
        f.write_bytes(data)
        try: sound(Records(f, readonly=True)) # As it is shipped
        except BadInput as e: assert str(f) in str(e) and '\n' not in str(e)
        r = Records(f)
        lost.append(20 - sound(r))
        assert r.notice or not lost[-1], i
        said += r.notice is not None
        for k in range(20): r.add(spec(k), result(k)) # Asked for again, all of them are there
        r.put_labels('p', Y, dict(classes=list('abcdefghi')))
        assert sound(r) == 20 and np.array_equal(r.labels('p'), Y)
        r.close()
        for o in tmp_path.glob('b.db*'): o.unlink()
    print(f'{n} bits turned: {said} noticed, at most {max(lost)} of 20 runs lost, {np.mean(lost):.2f} on average')
    assert max(lost) < 20

@pytest.mark.parametrize('what', ['"loss":', 'run 7"', '"seed":7'])
def test_one_row_less(what, tmp_path, quiet):
    "A bit in what one run says: that run is absent, and the others are there"
    data = bytearray(Records(fill(tmp_path/'a.db')).export(tmp_path/'b.db').read_bytes())
    i = data.index(what.encode()) + len(what) - 2
    data[i] ^= 1
    (tmp_path/'b.db').write_bytes(data)
    r = Records(tmp_path/'b.db', readonly=True)
    assert sound(r) == 19 and r.notice and len(r) == 20
    w = Records(tmp_path/'b.db')
    assert '1 of 21 runs' in w.notice and sound(w) == 19
    gone, = {i for i in range(20)} - {o.spec['seed'] for o in w.rows(kind='report')}
    key = spec_hash(spec(gone))
    assert not w.has(spec(gone)) and w.claim([key]) == (key, []) # So it is run again
    assert w.add(spec(gone), result(gone)) and sound(w) == 20 and len(w) == 21

def test_no_row_of_labels(tmp_path, quiet):
    w = Records(fill(tmp_path/'a.db'))
    with w._writing() as c: c.execute('update labels set info=?', (json.dumps(dict(classes=list('bacdefghi'))),))
    assert w.labels('p') is None and w.info('p') == {} and w.rows(seed=3)[0].y is None and 'damaged' in w.notice
    with pytest.raises(BadInput, match='put_labels'): w.rows(seed=3)[0].accuracy
    w.put_labels('p', Y, dict(classes=list('abcdefghi')))
    assert sound(w) == 20

def test_what_belongs_to_a_run(tmp_path, quiet):
    "An array taken away, an opening forgotten, a date changed, one run's array given to another"
    for s in ("delete from arrays where name='prob'", 'delete from openings', "update runs set at='2020-01-01 00:00:00'", "update arrays set name='pred blur' where name='prob'",
              "update arrays set data=(select data from arrays a where a.name='prob' limit 1 offset 3) where name='prob'"):
        w = Records(fill(tmp_path/'a.db', 5))
        with w._writing() as c: c.execute(s)
        assert sound(w) <= 1 and w.notice
        w.close()
        (tmp_path/'a.db').unlink()

OLD = '''
create table runs(key text primary key, spec text not null, result text not null, at text not null);
create table arrays(key text not null, name text not null, dtype text not null, shape text not null,
  data blob not null, primary key(key, name));
create table openings(key text primary key, pixel_hash text, at text not null);
create table labels(pixel_hash text primary key, dtype text not null, shape text not null,
  data blob not null, info text not null);
create table claims(key text primary key, owner text not null, at text not null)'''

def as_before(path):
    "The same store in format 1"
    c = sqlite3.connect(path, isolation_level=None)
    c.execute('begin immediate')
    names = [o for o, in c.execute("select name from sqlite_master where type='table'")]
    for o in names: c.execute(f'alter table {o} rename to old_{o}')
    for s in OLD.split(';'): c.execute(s)
    for o in names:
        cols = ', '.join(r[1] for r in c.execute(f'pragma table_info({o})').fetchall())
        c.execute(f'insert into {o} select {cols} from old_{o}')
        c.execute(f'drop table old_{o}')
    c.execute('pragma user_version=1')
    c.execute('commit')
    c.execute('pragma journal_mode=delete')
    c.close()
    return path

def test_a_store_from_before(tmp_path, quiet):
    "Read as it is; opened to be written, its rows get their hashes"
    f = as_before(fill(tmp_path/'a.db'))
    before = f.read_bytes()
    r = Records(f, readonly=True)
    assert sound(r) == 20 and r.notice is None and f.read_bytes() == before
    w = Records(f)
    assert w.notice is None and sound(w) == 20 and np.array_equal(w.labels('p'), Y)
    with w._writing() as c: c.execute("update runs set result=replace(result, 'run 7', 'run 8')")
    assert sound(Records(f)) == 19

def test_shipped_stores(tmp_path, monkeypatch):
    "Those of format 1 are on the list, and one that is not as shipped is refused"
    listed = json.loads((package_assets()/'records.json').read_text())
    for f in package_assets().glob('*.db'):
        r = lesson_records(f.stem)
        assert (r._format == 1) == (f.name in listed), f'{f.name}: take it from records.json, its rows have hashes'
    for o in 'freezing.db', 'records.json': shutil.copy(package_assets()/o, tmp_path)
    data = bytearray((tmp_path/'freezing.db').read_bytes())
    data[len(data)//2] ^= 1
    (tmp_path/'freezing.db').write_bytes(data)
    monkeypatch.setattr('tlcourse.records.package_assets', lambda: tmp_path)
    with pytest.raises(BadInput, match='is damaged'): lesson_records('freezing')

# --- F7: crafted stores

CRAFTED = {
    'a trigger that never ends': "create trigger t after insert on runs begin insert into claims with recursive n(i) as (select 1 union all select i+1 from n) select i, i, i from n; end",
    'a view in place of a table': 'drop table runs; create view runs as select 1 as key, 2 as spec, 3 as result, 4 as at, 5 as hash',
    'a table less': 'drop table openings', 'a column less': 'alter table labels drop column info', 'one table more': 'create table more(x)',
    'an index that computes': 'create index i on runs(length(hex(zeroblob(200000000))))'}

@pytest.mark.parametrize('what', CRAFTED)
def test_crafted_tables(what, tmp_path, quiet):
    f = fill(tmp_path/'a.db', 4)
    c = sqlite3.connect(f, isolation_level=None)
    if 'computes' not in what: c.executescript(CRAFTED[what])
    else:
        c.execute('pragma writable_schema=on')
        c.execute("insert into sqlite_master values ('index', 'i', 'runs', 2, 'create index i on runs(length(hex(zeroblob(200000000))))')")
    c.execute('pragma journal_mode=delete')
    c.close()
    with pytest.raises(BadInput, match='damaged'): Records(f, readonly=True)
    r = Records(f)
    assert 'is damaged' in r.notice and sound(r) in (0, 4) and r.add(spec(99), result(9))

def test_of_another_program(tmp_path):
    c = sqlite3.connect(tmp_path/'a.db')
    c.executescript('create table notes(x); create view runs as select 1')
    c.close()
    for ro in False, True:
        with pytest.raises(BadInput, match='another program'): Records(tmp_path/'a.db', readonly=ro)
    assert len(list(tmp_path.iterdir())) == 1

def test_of_a_newer_tlcourse(tmp_path):
    f = fill(tmp_path/'a.db', 1)
    c = sqlite3.connect(f)
    c.executescript('create table more(x); pragma user_version=9')
    c.close()
    for ro in False, True:
        with pytest.raises(BadInput, match='newer tlcourse'): Records(f, readonly=ro)

def forged(path, **row):
    "A store in which one row has a right hash and wrong contents"
    from tlcourse.records import _hash_of, _run_hash
    w = Records(fill(path, 3))
    key = spec_hash(spec(1))
    with w._writing() as c:
        if 'labels' in row:
            new = 'p', *row['labels']
            c.execute('delete from labels')
            c.execute('insert into labels values (?,?,?,?,?,?)', (*new, _hash_of(*new)))
        else:
            arrays = [('pred', *row['pred'])] if 'pred' in row else []
            new = key, row.get('spec', json.dumps(spec(1))), row.get('result', '{}'), 'now'
            for t in 'runs', 'arrays': c.execute(f'delete from {t} where key=?', (key,))
            c.execute('insert into runs values (?,?,?,?,?)', (*new, _run_hash(*new, True, arrays)))
            c.executemany('insert into arrays values (?,?,?,?,?)', [(key, *a) for a in arrays])
    return w

FORGED = {'no JSON': dict(result='{'), 'a list': dict(result='[1]'), 'deep JSON': dict(result='['*100_000), 'a spec that is a number': dict(spec='3'),
          'a bomb': dict(pred=('zlib |u1', '[1073741824]', zlib.compress(bytes(2**24)))), 'a bomb of a small array': dict(pred=('zlib |u1', '[4]', zlib.compress(bytes(2**24)))),
          'objects': dict(pred=('|O', '[1]', b'12345678')), 'a shape below 0': dict(pred=('|u1', '[-1, -1]', b'1')), 'a shape of words': dict(pred=('|u1', '["a"]', b'1')),
          'no type': dict(pred=('what', '[1]', b'1')), 'no zlib': dict(pred=('zlib |u1', '[1]', b'1')), 'text for bytes': dict(pred=('|u1', '[1]', 'a')),
          'labels of two dimensions': dict(labels=('|u1', '[1, 1]', b'1', '{}')), 'labels that are fractions': dict(labels=('<f4', '[1]', b'1234', '{}')),
          'labels without JSON': dict(labels=('|u1', '[1]', b'1', '{'))}

@pytest.mark.parametrize('what', FORGED)
def test_forged_rows(what, tmp_path, quiet):
    w = forged(tmp_path/'a.db', **FORGED[what])
    if 'labels' in FORGED[what]: assert w.labels('p') is None and w.info('p') == {} and len(w) == 4
    else: assert not w.has(spec(1)) and len(w.rows(kind='report')) == 2
    assert w.notice and Records(tmp_path/'a.db').rows(seed=2)

@unix
def test_a_pipe_is_no_store(tmp_path):
    os.mkfifo(tmp_path/'records.db')
    for ro in False, True:
        with pytest.raises(BadInput, match='no regular file'): Records(tmp_path/'records.db', readonly=ro)
