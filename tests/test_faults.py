"""Damaged files, crafted files, odd places: what is read is what was written, or it is said in a sentence that it
cannot be.

What was tried first stands in the reviews as F1 to F14; the tests name them. Bits are turned at random from a fixed
seed: a few here, 300 of each kind in `.ci/run` (`-m slow`), and as many as TLCOURSE_FLIPS says by hand, as in

    TLCOURSE_FLIPS=4000 python -m pytest tests/test_faults.py -m slow -n0 -k bits
"""
import json, os, random, shutil, sqlite3, subprocess, sys, threading, warnings, zlib
from pathlib import Path
import numpy as np, pytest
from tlcourse import cli
from tlcourse.base import BadInput, package_assets
from tlcourse.records import Records
from tlcourse.rows import spec_hash
from tlcourse.stored_tables import lesson_records
from conftest import python
from test_site import clone # noqa: F401, a fixture

unix = pytest.mark.skipif(os.name != 'posix', reason='Windows has no such files, limits or signals')
FEW, MANY = 12, int(os.environ.get('TLCOURSE_FLIPS', 300))

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
    return dict(pred=rng.integers(0, 9, n).astype(np.uint16), prob=rng.random(n).astype(np.float16), loss=i/7,
                note=f'run {i}')
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
    for s in ("delete from arrays where name='prob'", 'delete from openings',
              "update runs set at='2020-01-01 00:00:00'", "update arrays set name='pred blur' where name='prob'",
              "update arrays set data=(select data from arrays a where a.name='prob' limit 1 "
              "offset 3) where name='prob'"):
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
    for o in 'honest_data.db', 'records.json': shutil.copy(package_assets()/o, tmp_path)
    data = bytearray((tmp_path/'honest_data.db').read_bytes())
    data[len(data)//2] ^= 1
    (tmp_path/'honest_data.db').write_bytes(data)
    monkeypatch.setattr('tlcourse.stored_tables.package_assets', lambda: tmp_path)
    with pytest.raises(BadInput, match='is damaged'): lesson_records('honest_data')

# --- F7: crafted stores

CRAFTED = {
    'a trigger that never ends': "create trigger t after insert on runs begin insert into claims with recursive "
                                 "n(i) as (select 1 union all select i+1 from n) select i, i, i from n; end",
    'a view in place of a table': 'drop table runs; create view runs as select 1 as key, 2 as spec, '
                                  '3 as result, 4 as at, 5 as hash',
    'a table less': 'drop table openings',
    'a column less': 'alter table labels drop column info', 'one table more': 'create table more(x)',
    'an index that computes': 'create index i on runs(length(hex(zeroblob(200000000))))'}

@pytest.mark.parametrize('what', CRAFTED)
def test_crafted_tables(what, tmp_path, quiet):
    f = fill(tmp_path/'a.db', 4)
    c = sqlite3.connect(f, isolation_level=None)
    if 'computes' not in what: c.executescript(CRAFTED[what])
    else:
        c.execute('pragma writable_schema=on')
        c.execute("insert into sqlite_master values ('index', 'i', 'runs', 2, 'create index i on "
                  "runs(length(hex(zeroblob(200000000))))')")
    c.execute('pragma journal_mode=delete')
    c.close()
    with pytest.raises(BadInput, match='damaged'): Records(f, readonly=True)
    r = Records(f)
    assert 'is damaged' in r.notice and sound(r) in (0, 4) and r.add(spec(99), result(9))

def test_tables_that_are_no_text(tmp_path, quiet):
    "SQLite names what it could not read, and where a bit is turned there that is no text: found by 4,000 flips"
    whole = Records(fill(tmp_path/'a.db')).export(tmp_path/'whole.db').read_bytes()
    i, f = whole.lower().index(b'create table runs'), tmp_path/'b.db'
    for k in range(i, i + 60, 4):
        f.write_bytes(whole[:k] + bytes([whole[k] ^ 0x80]) + whole[k+1:])
        with pytest.raises(BadInput, match='damaged'): Records(f, readonly=True)
        r = Records(f)
        assert r.notice and sound(r) == 20
        r.close()
        for o in tmp_path.glob('b.db*'): o.unlink()

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
    from tlcourse.rows import _hash_of, _run_hash
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

FORGED = {'no JSON': dict(result='{'), 'a list': dict(result='[1]'), 'deep JSON': dict(result='['*100_000),
          'a spec that is a number': dict(spec='3'),
          'a bomb': dict(pred=('zlib |u1', '[1073741824]', zlib.compress(bytes(2**24)))),
          'a bomb of a small array': dict(pred=('zlib |u1', '[4]', zlib.compress(bytes(2**24)))),
          'objects': dict(pred=('|O', '[1]', b'12345678')), 'a shape below 0': dict(pred=('|u1', '[-1, -1]', b'1')),
          'a shape of words': dict(pred=('|u1', '["a"]', b'1')),
          'a list many times': dict(pred=('|u1', '[[0, 0], 2147483648]', b'1')), # 17 GB; found by 200,000 inputs
          'no type': dict(pred=('what', '[1]', b'1')), 'no zlib': dict(pred=('zlib |u1', '[1]', b'1')),
          'text for bytes': dict(pred=('|u1', '[1]', 'a')),
          'labels of two dimensions': dict(labels=('|u1', '[1, 1]', b'1', '{}')),
          'labels that are fractions': dict(labels=('<f4', '[1]', b'1234', '{}')),
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

# --- F2: checkpoints

SHORT = dict(steps=6, bs=4, n_glyphs=8, progress=False, every=2)

@pytest.fixture(scope='module')
def interrupted(tmp_path_factory):
    "A folder with the checkpoint of step 4"
    from tlcourse.pretrain import pretrain
    def stop(step, loss):
        if step == 5: raise KeyboardInterrupt
    d = tmp_path_factory.mktemp('pretrain')
    with pytest.raises(KeyboardInterrupt): pretrain(out=d, on_step=stop, **SHORT)
    assert [o.name for o in d.iterdir()] == ['glyphnet.checkpoint']
    return d

def goes_on(folder, data, change=None):
    "Put this in the place of the checkpoint and go on; stops at the next step, if it comes to one"
    from tlcourse.pretrain import pretrain
    class Trained(Exception): pass
    def here(step, loss): raise Trained(step)
    (folder/'glyphnet.checkpoint').write_bytes(data)
    try: pretrain(out=folder, on_step=here, **SHORT)
    except Trained as e: return e.args[0]

@counts()
def test_bits_of_a_checkpoint(n, interrupted, tmp_path):
    from tlcourse.store import read_sealed
    whole = (interrupted/'glyphnet.checkpoint').read_bytes()
    data = read_sealed(interrupted/'glyphnet.checkpoint')
    assert goes_on(tmp_path, whole) == 5
    for i,(at,b) in enumerate(flipped(whole, n)):
        (tmp_path/'c').write_bytes(b)
        with pytest.raises(BadInput, match='is damaged'): read_sealed(tmp_path/'c')
        if i < 3:
            with pytest.raises(BadInput, match='delete it, or start over with resume=False'): goes_on(tmp_path, b)
    for i in range(0, len(whole), len(whole)//20): # Blocks of zeros, and files that end too soon
        for b in whole[:i] + bytes(4096) + whole[i+4096:], whole[:i]:
            (tmp_path/'c').write_bytes(b)
            try: assert read_sealed(tmp_path/'c') == data and b == whole # Zeros were there
            except BadInput as e: assert 'is damaged' in str(e)

def set_(*keys, to):
    def f(ck):
        for k in keys[:-1]: ck = ck[k]
        ck[keys[-1]] = to(ck[keys[-1]]) if callable(to) else to
    return f
def without(*keys):
    def f(ck):
        for k in keys[:-1]: ck = ck[k]
        del ck[keys[-1]]
    return f
def first(d): return next(iter(d))

NO_CHECKPOINTS = {'a step far away': set_('step', to=10**9), 'the last step': set_('step', to=6),
                  'a step before the first': set_('step', to=-1), 'a step of text': set_('step', to='4'),
    'half a step': set_('step', to=4.), 'no step': without('step'), 'no curve': without('curve'),
    'a curve of text': set_('curve', to='abcd'), 'a short curve': set_('curve', to=[]),
    'a loss of text': set_('curve', to=[[1, 'x']]*4), 'seconds below 0': set_('seconds', 'wall', to=-1.),
    'seconds that never end': set_('seconds', 'cpu', to=float('inf')), 'other seconds': set_('seconds', to={}),
    'no weights': set_('model', to={}), 'a weight less': without('model', 'fc.weight'),
    'other shapes': set_('model', 'fc.bias', to=lambda t: t[:3]),
    'other types': set_('model', 'fc.bias', to=lambda t: t.double()),
    'no numbers': set_('model', 'fc.bias', to=lambda t: t*float('nan')),
    'a variance below 0': set_('model', 'stem.1.running_var', to=lambda t: -t-1),
    'a sparse weight': set_('model', 'fc.weight', to=lambda t: t.to_sparse()),
    'no optimiser': set_('opt', to={}),
    'an optimiser of another network': set_('opt', 'state', 0, 'exp_avg', to=lambda t: t[:1]),
    'another rate of decay': set_('opt', 'param_groups', 0, 'weight_decay', to=9.),
    'squares below 0': set_('opt', 'state', 0, 'exp_avg_sq', to=lambda t: t-1),
    'an optimiser of another step': set_('opt', 'state', 0, 'step', to=lambda t: t+1), 'a list': lambda ck: ck.clear()}

def test_crafted_checkpoints(interrupted, tmp_path):
    "Each with a right hash"
    import io, torch
    from tlcourse.pretrain import _load_checkpoint
    from tlcourse.store import read_sealed, write_sealed
    data = read_sealed(interrupted/'glyphnet.checkpoint')
    def written(ck):
        buf = io.BytesIO()
        torch.save(ck, buf)
        write_sealed(tmp_path/'c', buf.getvalue())
        return (tmp_path/'c').read_bytes()
    assert goes_on(tmp_path, written(torch.load(io.BytesIO(data)))) == 5 # Nothing changed
    for what,change in NO_CHECKPOINTS.items():
        ck = torch.load(io.BytesIO(data))
        change(ck)
        with pytest.raises(BadInput, match='glyphnet.checkpoint .*(delete it, or start over|another folder)'):
            print(what, goes_on(tmp_path, written(ck)))

@unix
def test_a_pipe_is_no_checkpoint(tmp_path):
    from tlcourse.pretrain import pretrain
    os.mkfifo(tmp_path/'glyphnet.checkpoint')
    with pytest.raises(BadInput, match='no file'): pretrain(out=tmp_path, **SHORT)

# --- F4: a report of somebody else's store

MARK = '"><script>boom(1)</script><img src=x onerror=boom(2)> \' $\\frac{ {{x}}'

def test_minutes_that_never_end(tmp_path, fast):
    "What a study left out takes a finite time: found by 200,000 inputs"
    from tlcourse.comparison import Comparison
    c = of_a_stranger(tmp_path, '', staged=True)
    row = c.records.rows(kind='study')[0]
    for m in float('inf'), float('nan'), -1e308:
        missing = [{**x, 'minutes': m} for x in row.result['missing']]
        c.records.add(row.spec, {**row.result, 'missing': missing}, again=True)
        with pytest.raises(BadInput, match='is damaged'): repr(Comparison(c.records, row.spec))

class Clean:
    "What a page may not hold: a script, an address, an attribute that runs one, a tag that a name has made"
    def __init__(self, text):
        from html.parser import HTMLParser
        seen = self.seen = []
        class P(HTMLParser):
            def handle_starttag(self, tag, attrs):
                seen.append(tag)
                for k,v in attrs:
                    assert not k.startswith('on') and 'javascript:' not in (v or ''), (tag, k, v)
                    assert k not in ('src', 'href') or v.startswith(('data:image/', '#')), (tag, k, v)
        P().feed(text)
        assert not {'script', 'iframe', 'object', 'base', 'form'} & set(seen), text

@pytest.fixture
def fast(monkeypatch):
    "Without drawing, which takes most of a report's time"
    monkeypatch.setattr('tlcourse.report._svg', lambda fig, name, alt: __import__('tlcourse.base').base._esc(alt))
    monkeypatch.setattr('tlcourse.report._draw', lambda *_: None)

def of_a_stranger(d, mark=MARK, staged=False):
    "A study of made-up runs whose names are all the same attack"
    from staged import ACC, ARMS, CLASSES, PLAN, made_staged
    from test_report import made_up
    if staged:
        def odd(s): return s + mark if s.startswith('fine') else s
        acc, plan = {odd(s): a for s,a in ACC.items()}, {i: [(odd(s), k) for s,k in cs] for i,cs in PLAN.items()}
        return made_staged(d, acc=acc, arms=[odd(a) for a in ARMS], plan=plan, classes=[c + mark for c in CLASSES],
                           missing=[dict(strategy=odd('fine-tuning+aug'), shots='all', minutes=6.2)],
                           parts={c + mark: [100, 30, 50] for c in CLASSES})
    return made_up(d, name=mark, classes=[f'{mark}{i}' for i in range(4)], strategies=('scratch', mark),
                   notes=[mark, f'  {mark}'])

def everywhere(x, change, path=()):
    "Copies of a JSON value, each with one leaf or key changed, and where"
    if isinstance(x, dict):
        for k,v in x.items():
            yield (*path, k, 'key'), {str(change(k)) if i == k else i: o for i,o in x.items()}
            yield from ((at, {**x, k: o}) for at,o in everywhere(v, change, (*path, k)))
    elif isinstance(x, list):
        # Lists of many alike: the first and the last
        for i in sorted({0, len(x)-1}) if x else ():
            yield from ((at, [*x[:i], o, *x[i+1:]]) for at,o in everywhere(x[i], change, (*path, i)))
    else: yield path, change(x)

CHANGES = {'a script': lambda x: MARK, 'a list': lambda x: [x] if isinstance(x, str) else [MARK],
           'a large number': lambda x: -10**30, 'nothing': lambda x: None}

@pytest.mark.parametrize('staged', [False, True], ids=['one table', 'in stages'])
def test_names_of_a_stranger(staged, tmp_path):
    "With its figures; the table of a notebook, and the text"
    from tlcourse.report import report_html
    c = of_a_stranger(tmp_path, staged=staged)
    text = report_html(c)
    Clean(text)
    Clean(c._repr_html_())
    assert text.count('&lt;script&gt;') > 20 and "default-src 'none'" in text and repr(c)

@pytest.mark.parametrize('how', CHANGES)
@pytest.mark.parametrize('n', [6, pytest.param(10**6, marks=pytest.mark.slow)])
def test_every_field_of_a_stranger(how, n, tmp_path, fast, quiet):
    """Each field of a study, and of a run, by something else under a right hash:
    a page without a script, or one sentence"""
    from tlcourse.comparison import Comparison
    from tlcourse.report import report_html
    (tmp_path/'a').mkdir()
    (tmp_path/'b').mkdir()
    made = [of_a_stranger(tmp_path/'a', 'x'), of_a_stranger(tmp_path/'b', 'x', staged=True)]
    todo, refused = [], 0
    for c in made:
        row = c.records.rows(kind='study')[0]
        todo += [(c, at, what, row.result)
                 for at,what in everywhere(row.spec, CHANGES[how]) if all(isinstance(k, str) for k in what)]
        todo += [(c, at, row.spec, res) for at,res in everywhere(row.result, CHANGES[how])]
    todo = [o for o in todo if o[1] not in (('kind',), ('kind', 'key'), ('pixel_hash',), ('pixel_hash', 'key'))]
    random.Random(0).shuffle(todo)
    for c,at,what,res in todo[:n]:
        try:
            json.dumps(res)
            c.records.add(what, res, again=True)
        except (TypeError, BadInput): continue # No JSON, so no store can hold it
        try:
            new = Comparison(c.records, what, c.target)
            Clean(report_html(new))
            Clean(new._repr_html_())
            repr(new)
        except BadInput as e:
            refused += 1
            assert '\n' not in str(e) and c.records.path.name in str(e), (at, e)
    print(f'{how}: {len(todo[:n])} fields changed, {refused} refused')

FORGED_RUNS = {'a prediction for each': dict(pred=np.zeros(1, np.uint16)),
               'a class that there is not': dict(pred=np.full(60, 99, np.uint16)), 'text': dict(pred=np.full(60, 'x')),
               'no predictions': dict(pred=None),
               'seconds of text': dict(seconds=MARK), 'training of text': dict(train_acc=MARK),
               'a probability of another size': dict(prob=np.zeros(3, np.float16))}

@pytest.mark.parametrize('what', FORGED_RUNS)
def test_runs_of_a_stranger(what, tmp_path, fast, quiet):
    from tlcourse.comparison import Comparison
    from tlcourse.report import report_html
    c = of_a_stranger(tmp_path, 'x')
    row, sp = c.records.rows(kind='study')[0], c.specs['scratch', 5][0]
    res = {k: v for k,v in {**c.records.get(sp), **FORGED_RUNS[what]}.items() if v is not None}
    with c.records._writing() as con: con.execute('delete from runs where key=?', (spec_hash(sp),))
    c.records.add(sp, res)
    with pytest.raises(BadInput, match='is damaged, or not one that tlcourse wrote'):
        Clean(report_html(Comparison(c.records, row.spec, c.target)))

@pytest.mark.browser
def test_no_script_in_a_browser(chrome, tmp_path):
    "The report of a stranger runs nothing; and if a name were not escaped, the page's policy would stop it"
    from browser import tab
    from tlcourse.report import report_html
    text = report_html(of_a_stranger(tmp_path, MARK))
    bad = text.replace('</main>', '<script>window.ran = 1</script><img src="x" onerror="window.ran = 2"><svg '
                                  'onload="window.ran = 3"></svg></main>')
    for t,blocked in (text, 0), (bad, 3):
        (tmp_path/'report.html').write_text(t, encoding='utf-8')
        with tab(chrome) as (page, guard):
            page.goto((tmp_path/'report.html').as_uri())
            assert page.evaluate("[window.ran, window.boom, document.scripts.length]") == [None, None, int(blocked > 0)]
            told = [e for e in guard.errors if 'Content Security Policy' in e or 'Content-Security-Policy' in e]
            assert len(told) >= blocked, guard.errors

# --- F1, F2, F7: models

@pytest.fixture(scope='module')
def model_folder(tmp_path_factory):
    from tlcourse.learner import learner
    from tlcourse.data import target
    from tlcourse.model import save
    d = tmp_path_factory.mktemp('model')
    save(learner(target('digits').dls(shots=1, bs=8), 'glyphnet'), d/'m',
         accuracy=dict(value=.81, n=500, interval=[.78, .84], of='models', labels=1, seeds=3, steps=9))
    return d/'m'

@counts(12)
def test_bits_of_a_model(n, model_folder, tmp_path, quiet):
    "A bit in the weights, or in the card: refused, or (in a blank between two words) the same card"
    from tlcourse.model import load
    card = load(model_folder, 'cpu').card
    shutil.copytree(model_folder, tmp_path/'m')
    said = 0
    for name in 'card.json', 'model.safetensors':
        whole = (model_folder/name).read_bytes()
        for i,data in flipped(whole, n):
            (tmp_path/'m'/name).write_bytes(data)
            try: assert load(tmp_path/'m', 'cpu').card == card and name == 'card.json'
            except BadInput as e: said += 1; assert '\n' not in str(e)
        (tmp_path/'m'/name).write_bytes(whole)
    print(f'{2*n} bits turned in a model: {said} noticed, the others are in blanks of the card')

NO_CARDS = dict(classes=[[], ['a', 3], None, {}], fit=['stretch', None], size=[0, -1, '32', 10**9, 32.],
                range=[[0], [0, float('nan')], 'ab'], head=['none', None], backbone=[None, 3, '../x'],
                statistics=[{}, None, dict(mean=[0]*3, std=[0]*3), dict(mean='abc', std=[1]*3)],
                weights=[{}, None, dict(sha256=3)])

@pytest.mark.parametrize('field', NO_CARDS)
def test_crafted_cards(field, model_folder, tmp_path):
    "Each with a right check"
    from tlcourse.card import _check
    from tlcourse.model import load
    shutil.copytree(model_folder, tmp_path/'m')
    card = json.loads((tmp_path/'m'/'card.json').read_text())
    for v in NO_CARDS[field]:
        new = {**card, field: v}
        (tmp_path/'m'/'card.json').write_text(json.dumps({**new, 'check': _check(new)}))
        with pytest.raises(BadInput): load(tmp_path/'m', 'cpu')

@unix
def test_a_pipe_is_no_model(model_folder, tmp_path):
    from tlcourse.model import load, train
    for name in 'card.json', 'model.safetensors':
        shutil.copytree(model_folder, tmp_path/name)
        (tmp_path/name/name).unlink()
        os.mkfifo(tmp_path/name/name)
        with pytest.raises(BadInput, match=f'no {name}'): load(tmp_path/name)
    with pytest.raises(BadInput, match='no regular file'):
        train('digits', tmp_path/'card.json', strategy='feature-extraction')

@unix
def test_killed_while_a_model_is_put_in_place(model_folder, tmp_path):
    "After SIGKILL: half a folder goes, and a model that was moved out of the way comes back"
    from tlcourse.card import _whole_folder
    p = subprocess.Popen([sys.executable, '-c', ''])
    p.wait()
    old, new, live = (tmp_path/f'.m.{k}-{i}' for k,i in (('old', p.pid), ('new', p.pid), ('new', os.getppid())))
    for o in old, new, live: shutil.copytree(model_folder, o)
    (new/'card.json').unlink()
    with pytest.raises(ZeroDivisionError), _whole_folder(tmp_path/'m'): 1/0
    assert sorted(os.listdir(tmp_path)) == [live.name, 'm']
    assert (tmp_path/'m'/'card.json').read_bytes() == (model_folder/'card.json').read_bytes()

# --- F5: what is no file

@unix
def test_a_pipe_is_no_picture(tmp_path, monkeypatch):
    "Pipes and devices with the names of pictures are skipped, and named; nobody waits"
    from PIL import Image
    from tlcourse.data import target
    from tlcourse.pictures import read_picture, Unreadable
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    for j,c in enumerate('ab'):
        (tmp_path/'p'/c).mkdir(parents=True)
        for i in range(10):
            x = np.random.default_rng(i + 50*j).integers(0, 255, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(x).save(tmp_path/'p'/c/f'{i}.png')
    os.mkfifo(tmp_path/'p'/'a'/'x.jpg')
    (tmp_path/'p'/'b'/'z.png').symlink_to('/dev/zero')
    (tmp_path/'p'/'b'/'s.png').symlink_to(tmp_path/'p'/'a'/'0.png') # A link to a file is a file
    t = target(tmp_path/'p', size=32)
    assert sorted(t.report.skipped) == [('a/x.jpg', 'no regular file'), ('b/z.png', 'no regular file')]
    assert sum(map(len, (t.train, t.valid, t.test))) == 21
    for f in 'a/x.jpg', 'b/z.png':
        with pytest.raises(Unreadable, match='no regular file'): read_picture(tmp_path/'p'/f)

@unix
def test_a_pipe_is_nothing_to_read(tmp_path, capsys, model_folder):
    f = tmp_path/'x.png'
    os.mkfifo(f)
    assert cli.main(['scores', str(f)]) == 2 and 'no regular file' in capsys.readouterr().err
    assert cli.main(['predict', str(model_folder), str(f), '--device', 'cpu']) == 1
    assert 'no regular file' in capsys.readouterr().err
    assert cli.main(['compare', 'digits', '--weights', str(f), '--device', 'cpu']) == 2
    assert 'no weights file' in capsys.readouterr().err
    (tmp_path/'lessons').mkdir()
    os.mkfifo(tmp_path/'lessons'/'05_freezing.ipynb')
    assert cli.main(['lessons', '5', '--to', str(tmp_path/'lessons')]) == 2
    assert 'would be written over' in capsys.readouterr().err

# --- F6: names that are not UTF-8

def pictures(root, classes=('a', 'b'), n=10):
    "A small folder of noise, one class darker than the other"
    from PIL import Image
    for j,c in enumerate(classes):
        (root/c).mkdir(parents=True)
        for i in range(n):
            x = np.random.default_rng(i + 50*j).integers(0, 255, (40, 40, 3))//(1 + 2*j)
            Image.fromarray(x.astype(np.uint8)).save(root/c/f'{i}.png')
    return root

def said(capsys, *args):
    try: code = cli.main([*map(str, args)])
    except SystemExit as e: code = e.code
    o = capsys.readouterr()
    return code, o.out, o.err

QUICK = ('--strategies', 'feature-extraction', '--seeds', '3', '--shots', '1', '--size', '32', '--backbone',
         'glyphnet', '--tune', 'none', '--device', 'cpu')
needs_bytes = pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere names of files are text')

@needs_bytes
def test_names_that_are_no_text(tmp_path, monkeypatch, capsys):
    "A class, a skipped file, the place of the results, the JSON"
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    odd = os.fsdecode(b'a\xff')
    p = pictures(tmp_path/f'p{odd}', (odd, 'b'))
    (p/odd/f'x{odd}.jpg').write_bytes(b'no picture')
    j = tmp_path/f'{odd}.json'
    code, out, err = said(capsys, 'compare', p, *QUICK, '--out', tmp_path/f'out{odd}', '--json', j)
    assert (code, err) == (0, '') and 'a\\udcff' in out and odd not in out
    told = json.loads(j.read_text())
    assert told['classes'] == [odd, 'b'] and f'x{odd}.jpg' in json.dumps(told['skipped'], ensure_ascii=False)
    assert not [o for o in (tmp_path/f'out{odd}').iterdir() if o.name.startswith('.')]
    Clean((tmp_path/f'out{odd}'/'report.html').read_text(encoding='utf-8'))
    code, out, err = said(capsys, 'train', p, '-o', tmp_path/f'm{odd}', '--strategy', 'feature-extraction', '--size',
                          32, '--backbone', 'glyphnet', '--device', 'cpu')
    assert (code, err) == (0, ''), err
    code, out, err = said(capsys, 'predict', tmp_path/f'm{odd}', p, '--csv', tmp_path/f'{odd}.csv', '--device', 'cpu')
    assert code == 0 and out.count('\n') == 21 and 'a\\udcff' in out and (tmp_path/f'{odd}.csv').is_file()

# --- F8: odd tensors

def odd_tensors():
    import torch
    g = torch.Generator().manual_seed(0)
    def w(): return torch.randn(4, 4, generator=g)
    yield 'float8', {'w': w().to(torch.float8_e4m3fn)}
    yield 'complex', {'w': w().to(torch.complex64)*float('nan')}
    yield 'sparse', {'w': w().to_sparse()}
    yield 'compressed rows', {'w': w().to_sparse_csr()}
    yield 'on no device', {'w': torch.empty(4, 4, device='meta')}
    yield 'nested', {'w': torch.nested.nested_tensor([w(), w()[:2]])}
    yield 'quantized', {'w': torch.quantize_per_tensor(w(), .1, 0, torch.qint8)}
    yield 'one number many times', {'w': torch.zeros(1).expand(10**12)}
    yield 'a number as its name', {3: w()}
    yield 'a pair as its name', {('w', 1): w()}
    yield 'too large', {'w': w().double() + 1e300}
    yield 'no number', {'w': w()*float('nan')}
    yield 'infinite in half precision', {'w': w().half()*float('inf')}
    yield 'a variance below 0', {'bn.running_var': -torch.ones(4)}

def test_odd_tensors(tmp_path):
    import torch
    from safetensors.torch import save_file
    from tlcourse.weights import _read_weights
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for what,sd in odd_tensors():
            torch.save({'good': torch.zeros(3), **sd}, tmp_path/'w.pth')
            with pytest.raises(BadInput, match='w.pth (holds a tensor|cannot be read)') as e:
                print(what, _read_weights(tmp_path/'w.pth'))
            assert ('\n' not in str(e.value)
                    and ('cannot be read' in str(e.value) or repr(next(iter(sd))) in str(e.value))), what
    save_file({'bn.running_var': -torch.ones(4)}, tmp_path/'w.safetensors')
    with pytest.raises(BadInput, match='variance below 0'): _read_weights(tmp_path/'w.safetensors')
    torch.save({'w': torch.zeros(2), 'n': torch.tensor(3), 'b': torch.zeros(3, dtype=torch.bool), 'e': torch.zeros(0),
                'h': torch.ones(2).bfloat16(), 't': torch.ones(3, 4).t()}, tmp_path/'good.pth')
    assert len(_read_weights(tmp_path/'good.pth')) == 6

def test_a_bomb_of_weights(tmp_path):
    "A zip file that unpacks to a thousand times its size is not unpacked"
    import torch, zipfile
    from tlcourse.weights import _read_weights
    torch.save({'w': torch.zeros(2**22)}, tmp_path/'w.pth')
    with zipfile.ZipFile(tmp_path/'w.pth') as z, zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as b:
        for i in z.infolist(): b.writestr(i.filename, z.read(i))
    assert (tmp_path/'bomb.pth').stat().st_size < 2**22//100
    with pytest.raises(BadInput, match='compressed'): _read_weights(tmp_path/'bomb.pth')
    (tmp_path/'torn.pth').write_bytes((tmp_path/'w.pth').read_bytes()[:-30] + b'x'*30)
    with pytest.raises(BadInput, match='cannot be read'): _read_weights(tmp_path/'torn.pth')

# --- F9, F10: places

@unix
@pytest.mark.slow
def test_full_disk_under_pretrain(interrupted, tmp_path):
    "Under the checkpoint, and under the finished weights: one sentence, and the checkpoint before goes on"
    shutil.copy(interrupted/'glyphnet.checkpoint', tmp_path)
    code = """import resource, sys
from tlcourse import cli
from tlcourse.pretrain import pretrain
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,)*2)
for every in 1, 100:
    cli._pretrain = lambda a: print(pretrain(out=sys.argv[1], steps=6, bs=4, n_glyphs=8, progress=False, every=every))
    print(cli.main(['pretrain']))"""
    was = (tmp_path/'glyphnet.checkpoint').read_bytes()
    r = subprocess.run([*python(), '-c', code, str(tmp_path)], capture_output=True, text=True)
    assert r.stdout == '2\n2\n' and r.stderr.count('\n') == 2 and r.stderr.count('File too large') == 2, r.stderr
    assert 'glyphnet.checkpoint (File' in r.stderr and 'glyphnet.safetensors (File' in r.stderr
    assert os.listdir(tmp_path) == ['glyphnet.checkpoint'] and (tmp_path/'glyphnet.checkpoint').read_bytes() == was

PLACES = """import os, sys
from tlcourse import cli
os.chdir(sys.argv[1])
for a in (['compare', 'digits', '--weights', 'w.pth', '--device', 'cpu'], ['scores', 'a.json'], ['predict', 'm', 'x'],
          ['train', 'digits', '-o', 'm'], ['train', 'digits', '-o', 'n', '--study', '.', '--device', 'cpu'],
          ['pretrain', '--out', '.'], ['look', 'p'], ['compare', 'p'], ['compare', 'digits', '--out', 'c'],
          ['lessons', '--json', 'c/a.json']):
    print('exit code', cli.main(a), flush=True)"""

@unix
@pytest.mark.slow
def test_places_that_cannot_be_read(monkeypatch):
    "Weights, a score card, a model, a store, a checkpoint, pictures, a folder to write into: one sentence each"
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for o in 'm', 'c', 'p': (d/o).mkdir()
        for o in 'w.pth', 'a.json', 'glyphnet.checkpoint', 'records.db', 'm/card.json': (d/o).write_bytes(b'x')
        for o in 'w.pth', 'a.json', 'glyphnet.checkpoint', 'records.db', 'm/card.json', 'p': (d/o).chmod(0)
        (d/'c').chmod(0o555)
        plain = ['setpriv', '--bounding-set=-all', '--inh-caps=-all']*(os.getuid() == 0) # Root may read everything
        try:
            r = subprocess.run([*plain, sys.executable, '-c', PLACES, str(d)], capture_output=True, text=True,
                               timeout=120)
        finally:
            for o in 'c', 'p': (d/o).chmod(0o755)
    assert r.stdout.count('exit code 2\n') == 10 and r.stderr.count('\n') == 10, (r.stdout, r.stderr)

# --- F11: cards of caches

def test_a_card_less_a_key(tmp_path, monkeypatch, quiet):
    "With a right checksum: said, and made again"
    import tlcourse.store
    from tlcourse.data import target
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    p = pictures(tmp_path/'p')
    want = target(p, size=32)
    f, = (tmp_path/'cache'/'pictures').iterdir()
    with open(f, 'rb') as o: card, n = tlcourse.store._read_card(o)
    array = f.read_bytes()[:n]
    odd = [(k, v) for k in card if k not in ('key', 'about', 'code', 'dtype', 'shape', 'sha256')
           for v in (None, [[1], [2, 3]], 'x')]
    for k,v in odd + [('places', card['places'][:-1]), ('places', [10**9]*20), ('counts', [1, 2])]:
        f.write_bytes(array + tlcourse.store._card_bytes({**card, k: v} if v is not None
                                                         else {i: o for i,o in card.items() if i != k}))
        t = target(p, size=32)
        assert t.pixel_hash == want.pixel_hash or k == 'pixel_hash', k
        assert [str(o) for o in t.train.paths] == [str(o) for o in want.train.paths]

# --- F12: hostile text

ROW = dict(name='Ada', lesson='freezing', n=1, kind='exercise', tries=1, right=True, time='2026-01-05T10:00:00+00:00')

def test_a_hostile_card(tmp_path, capsys):
    "Its commands are shown; a card that is none is a line, and the table of the others is there"
    for n,name in ('a', 'Ada'), ('b', '\x1b[2J\x1b[31mBo\x07'), ('c', 'Cy \udcff'), ('d', '\u202eDi'):
        (tmp_path/n).write_text(json.dumps([{**ROW, 'name': name}]))
    (tmp_path/'bad\x1b[1m').write_text('[1]')
    code, out, err = said(capsys, 'scores', *(tmp_path/o for o in ('a', 'b', 'bad\x1b[1m', 'c', 'd', 'none')),
                          '--json', tmp_path/'s.json')
    assert code == 0 and all(o in out for o in ('Ada', '\\x1b[2J\\x1b[31mBo\\x07', 'Cy \\udcff', '\\u202eDi'))
    assert not set('\x1b\x07\u202e\udcff') & set(out + err)
    assert err.count('\n') == 2 and 'bad\\x1b[1m is no score card' in err
    told = json.loads((tmp_path/'s.json').read_text())
    assert len(told['scores']) == 4 and [Path(o['file']).name for o in told['unreadable']] == ['bad\x1b[1m', 'none']

@unix
def test_hostile_names(tmp_path, monkeypatch, capsys, model_folder):
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    odd = 'a\x1b[31m\x9b2J\n'
    p = pictures(tmp_path/odd, (odd, 'b'))
    (p/odd/f'{odd}.jpg').write_bytes(b'no picture')
    texts = [said(capsys, 'compare', p, *QUICK, '--out', tmp_path/f'o{odd}', '--json', tmp_path/f'{odd}.json'),
             said(capsys, 'predict', model_folder, p, '--device', 'cpu'),
             said(capsys, 'look', p, '-o', tmp_path/f'{odd}.html'),
             said(capsys, 'compare', tmp_path/f'no{odd}'), said(capsys, 'predict', f'no{odd}', 'x'),
             said(capsys, 'train', p, '-o', p), said(capsys, 'scores', f'no{odd}'),
             said(capsys, 'pretrain', '--out', p/odd/f'{odd}.jpg'),
             said(capsys, 'lessons', '5', '--to', tmp_path/f'l{odd}'),
             said(capsys, 'compare', 'digits', '--backbone', odd),
             said(capsys, 'compare', 'digits', '--strategies', odd), said(capsys, 'compare', 'digits', '--device', odd)]
    assert [t[0] for t in texts] == [0, 0, 0] + [2]*5 + [0] + [2]*3
    for code,out,err in texts:
        assert not set('\x1b\x9b') & set(out + err) and (code != 2 or err.count('\n') == 1), (out, err)

# --- notebooks crafted for `tlcourse lessons`

def notebook(*cells): return dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)
def told(source='# Title', **kw): return dict(cell_type='markdown', id='a', metadata={}, source=source, **kw)
def stamped(text): return dict(cell_type='code', id='b', metadata={}, source='1', execution_count=None,
                               outputs=[dict(output_type='execute_result', data={'text/plain': text})])

NO_LESSONS = {
    'no JSON': b'{', 'empty': b'', 'no UTF-8': b'{"cells": ["\xff"]}', 'deep': b'['*200_000, 'a list': b'[]',
    'no cells': b'{}', 'cells that are a number': b'{"cells": 3}', 'a cell that is a list': b'{"cells": [[]]}',
    'a cell of another kind': json.dumps(notebook(dict(told(), cell_type='x', outputs=['<script>']))).encode(),
    'no source': json.dumps(notebook({k: v for k,v in told().items() if k != 'source'})).encode(),
    'a source of numbers': json.dumps(notebook(told([1, 2]))).encode(),
    'outputs of text': json.dumps(notebook(dict(stamped('x'), outputs='x'))).encode(),
    'an output of numbers': json.dumps(notebook(stamped(3))).encode(),
    'half a character': json.dumps(notebook(told('# A \udcff'))).encode(), 'huge': b' '*20_000_001}

@pytest.fixture
def lesson_folder(tmp_path, monkeypatch):
    (tmp_path/'lessons').mkdir()
    monkeypatch.setattr('tlcourse.course._lessons_folder', lambda: tmp_path/'lessons')
    return tmp_path/'lessons'

@pytest.mark.parametrize('what', NO_LESSONS)
def test_no_lessons(what, lesson_folder, tmp_path, capsys):
    "One sentence, and nothing is written"
    (lesson_folder/'05_x.ipynb').write_bytes(NO_LESSONS[what])
    for more in [], ['--to', tmp_path/'to']:
        code, out, err = said(capsys, 'lessons', *more)
        assert (code, out) == (2, '') and err.count('\n') == 1 and '05_x.ipynb' in err, err
    assert not (tmp_path/'to').exists()

@unix
def test_a_pipe_is_no_lesson(lesson_folder, capsys):
    os.mkfifo(lesson_folder/'05_x.ipynb')
    code, out, err = said(capsys, 'lessons')
    assert code == 2 and 'no regular file' in err and err.count('\n') == 1

def test_hostile_lessons(lesson_folder, tmp_path, capsys):
    "Solutions begun a hundred thousand times, a stamp of a thousand digits, commands for the terminal"
    import time
    from tlcourse.course import lessons
    begun = '<details><summary>Solution'
    nb = notebook(told('# A \x1b[31m<script>\n\n> x'), told(begun*100_000 + ' end'),
                  told(f'a {begun} b </details> c {begun} d </details> e'),
                  told('](../' + '1'*300_000), stamped(f'x · cpu · {"9"*5000} s'), stamped(' · '*100_000))
    (lesson_folder/'05_\x1b[31m<b>.ipynb').write_text(json.dumps(nb))
    start = time.perf_counter()
    assert lessons()[0].seconds is None
    code, out, err = said(capsys, 'lessons', '--to', tmp_path/'to')
    assert (code, err) == (0, '') and time.perf_counter() - start < 5 and '\x1b' not in out + said(capsys, 'lessons')[1]
    f, = (tmp_path/'to').iterdir()
    texts = [c['source'] for c in json.loads(f.read_text())['cells']]
    assert 'a  c  e' in texts and begun*100_000 + ' end' in texts # What does not end is no solution

@unix
def test_links_in_the_place_of_lessons(tmp_path, capsys):
    "Neither followed nor replaced, with --force or without, whether or not they lead anywhere"
    out, to = tmp_path/'out', tmp_path/'to'
    for o in out, to: o.mkdir()
    (out/'mine').write_text('mine')
    for name in 'mine', 'nothing':
        (to/'05_freezing.ipynb').unlink(missing_ok=True)
        (to/'05_freezing.ipynb').symlink_to(out/name)
        for force in [], ['--force']:
            code, _, err = said(capsys, 'lessons', '--to', to, *force)
            assert code == 2 and err.count('\n') == 1 and 'is a link' in err
    assert (out/'mine').read_text() == 'mine' and os.listdir(out) == ['mine'] and len(os.listdir(to)) == 1
    (tmp_path/'way').symlink_to(to)
    (to/'05_freezing.ipynb').unlink()
    assert said(capsys, 'lessons', '5', '--to', tmp_path/'way')[0] == 0 and (to/'05_freezing.ipynb').is_file()

# --- names crafted for the site, the report and the page of `look`

def page(kind, s, **kw): return dict(cell_type=kind, metadata={}, id=f'c{len(s)}', source=s, **kw)

def test_names_on_the_site(clone, tmp_path):
    "The title of a page is text, and so is what a run printed; HTML that a page's own markdown holds is its author's"
    from tlcourse.docs import build_site
    outs = [dict(output_type='execute_result', execution_count=None, metadata={}, data={'text/plain': MARK}),
            dict(output_type='stream', name='stdout', text=MARK)]
    d = clone(page('code', 'x', outputs=outs, execution_count=None))
    f = d/'nbs'/'lessons'/'01_one.ipynb'
    nb = json.loads(f.read_text())
    nb['cells'][0]['source'] = f'# One {MARK}\n\n> First.'
    f.write_text(json.dumps(nb))
    site = build_site(d, tmp_path/'site')
    for o in site.rglob('*.html'):
        text = o.read_text(encoding='utf-8')
        assert '<script>boom' not in text and '<img src="x"' not in text and '<img src=x' not in text, o
    assert '&lt;script&gt;boom' in (site/'lessons'/'one.html').read_text(encoding='utf-8')

@pytest.mark.parametrize('name', ['01_a" onclick="boom(1)', "01_<img src=x onerror=boom(2)>"])
def test_a_page_with_such_a_name(name, clone, tmp_path):
    from tlcourse.docs import build_site
    d = clone()
    (d/'nbs'/'lessons'/'01_one.ipynb').rename(d/'nbs'/'lessons'/f'{name}.ipynb')
    with pytest.raises(BadInput, match='give it a name of letters'): build_site(d, tmp_path/'site')
    assert not (tmp_path/'site').exists()

@pytest.mark.parametrize('file', ['../../out.html', '/out.html', 'a/b/c.html'])
def test_a_page_that_leads_out(file, tmp_path):
    from tlcourse.docs import _page
    (tmp_path/'lessons').mkdir()
    raw = dict(cell_type='raw', metadata={}, source=f'---\noutput-file: {file}\ntitle: x\n---')
    (tmp_path/'lessons'/'01_one.ipynb').write_text(json.dumps(notebook(raw)))
    with pytest.raises(BadInput, match='give it a name of letters'): _page('lessons/01_one.ipynb', tmp_path, tmp_path)

@unix
def test_names_of_files_in_report_and_look(tmp_path, monkeypatch, capsys):
    "A folder, a class, a picture, a skipped file and a copy, each with markup for a name: shown as text"
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    odd = '"><script>boom(1)<img src=x onerror=boom(2)> \'{{x}}&lt;'
    p = pictures(tmp_path/odd, (odd, 'b'))
    (p/odd/f'{odd}.jpg').write_bytes(b'no picture')
    shutil.copy(p/odd/'3.png', p/odd/f'{odd}.png')
    shutil.copy(p/odd/'4.png', p/'b'/f'{odd}.png') # One picture under two labels
    o = tmp_path/'out'
    code, out, err = said(capsys, 'compare', p, *QUICK, '--out', o, '--json', tmp_path/'j.json')
    assert (code, err) == (0, ''), err
    code, out, err = said(capsys, 'look', p, '-o', tmp_path/'look.html')
    assert (code, err) == (0, ''), err
    for f in o/'report.html', tmp_path/'look.html':
        text = f.read_text(encoding='utf-8')
        Clean(text)
        assert text.count('&lt;script&gt;boom(1)') > 2 and '&amp;lt;' in text
    assert odd in json.loads((tmp_path/'j.json').read_text())['classes']

# --- what was said stands in the report

def test_what_was_said_stands_in_the_report(tmp_path, monkeypatch, capsys):
    "Kept pictures that were damaged, a store that was, a file that was skipped"
    import html
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    p, o = pictures(tmp_path/'p'), tmp_path/'out'
    (p/'a'/'x.jpg').write_bytes(b'no picture')
    assert said(capsys, 'compare', p, *QUICK, '--out', o)[0] == 0
    f, = (tmp_path/'cache'/'pictures').iterdir()
    data = bytearray(f.read_bytes())
    data[9] ^= 1
    f.write_bytes(data)
    for s in o.glob('records.db-*'): s.unlink()
    (o/'records.db').write_bytes(b'x'*5000)
    code, out, err = said(capsys, 'compare', p, *QUICK, '--out', o)
    text = html.unescape((o/'report.html').read_text(encoding='utf-8'))
    warned = [s.removeprefix('tlcourse: ').strip() for s in err.splitlines()]
    notes = [s.strip() for s in out.splitlines() if 'records.db' in s and 'wrote' not in s or 'x.jpg' in s]
    assert code == 0 and any('decoded again' in s for s in warned) and len(notes) >= 2, (warned, notes)
    for s in warned + notes: assert s in text, s

# --- F13: arguments

ARGUMENTS = [('compare', '~nobody-of-this-name/x'), ('compare', '~/nowhere-to-be-found'), ('compare', ''),
             ('compare', 'x'*300), ('compare', './' + 'x'*300), ('compare', '/'.join(['x'*200]*30)),
             ('compare', 'a\0b'),
    *(('compare', 'digits', '--device', o)
      for o in ('meta', 'xpu', 'hpu', 'vulkan', 'mkldnn', 'ipu', 'privateuseone', 'cuda:-1', '', 'cuda:77')),
      ('compare', 'digits', '--device', 'cpu', '--seeds', '100000000'),
    ('compare', 'digits', '--device', 'cpu', '--seeds', '9'*30),
    ('compare', 'digits', '--device', 'cpu', '--steps', '9'*30), ('compare', 'digits', '--out', ''),
    ('compare', 'digits', '--json', ''), ('compare', 'digits', '--backbone', ''),
    ('compare', 'digits', '--out', '~nobody-of-this-name/o'),
    ('compare', 'digits', '--weights', '~nobody-of-this-name/w.pth'), ('compare', 'digits', '--weights', '~/w.pth'),
    ('train', 'digits', '-o', ''), ('train', 'digits', '-o', 'm', '--study', '~nobody-of-this-name'),
    ('train', '', '-o', 'm'), ('predict', '', 'x.png'), ('predict', '~nobody-of-this-name', 'x'),
    ('lessons', '--to', ''), ('lessons', '--json', ''), ('pretrain', '--out', ''),
    ('pretrain', '--seed', '9'*30, '--out', 'p'), ('pretrain', '--seed', '-1', '--out', 'p'),
    ('pretrain', '--steps', '9'*30, '--out', 'p'), ('look', ''), ('look', '~nobody-of-this-name'), ('compare', 'self'),
    ('compare', './self'), ('predict', 'self', 'self')]

@unix
def test_arguments(tmp_path, monkeypatch, capsys):
    "Each is one sentence with exit code 2, and leaves nothing behind"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'self').symlink_to('self')
    for a in ARGUMENTS:
        code, out, err = said(capsys, *a)
        assert code == 2 and err.count('\n') == 1 and err.startswith('tlcourse: '), (a, code, out, err)
        assert {o.name for o in tmp_path.iterdir()} <= {'self', 'p', 'tlcourse-out'}, a

def test_equal_files_are_two_places(tmp_path):
    "Weights that were asked for under a second name are not looked for under the first"
    from tlcourse.backbones import GlyphNet, arch
    import torch
    torch.save(GlyphNet().state_dict(), tmp_path/'a.pth')
    shutil.copy(tmp_path/'a.pth', tmp_path/'b.pth')
    a, b = arch('glyphnet', tmp_path/'a.pth'), arch('glyphnet', tmp_path/'b.pth')
    assert a == b and hash(a) == hash(b) and a.weights_id == b.weights_id and arch('glyphnet', tmp_path/'a.pth') is a
    (tmp_path/'a.pth').unlink()
    b(pretrained=True)
    with pytest.raises(BadInput, match="no weights file .*a.pth"): a(pretrained=True)

# --- F14: leftovers and noise

@unix
def test_killed_in_mid_write(tmp_path):
    "What a killed process began beside a report goes when the next one is written; nothing else with such a name does"
    from tlcourse.store import _temporary, write_text
    code = ("import os, signal, sys; from tlcourse.store import writing\nwith writing(sys.argv[1]) as p:\n"
            "    p.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, '-c', code, str(tmp_path/'report.html')]).returncode == -9
    left, = tmp_path.iterdir()
    mine = [tmp_path/o for o in ('.git', '.bashrc', '.tlcourse-notes', '.tlcourse-abcdefgh-1-2')]
    for o in mine: o.write_text('mine'); os.utime(o, (1, 1))
    live = _temporary(tmp_path)
    live.write_text('half')
    write_text(tmp_path/'report.html', 'whole')
    assert sorted(tmp_path.iterdir()) == sorted([*mine, live, tmp_path/'report.html'])

RUN = "import sys; from tlcourse.cli import main; sys.exit(main({!r}))"

@unix
@pytest.mark.parametrize('args', [['lessons'], ['--help'], ['compare', '--help']], ids=' '.join)
def test_a_closed_pipe(args):
    p = subprocess.Popen([sys.executable, '-c', RUN.format(args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close() # Before anything is written
    assert p.stderr.read() == b'' and p.wait(60) in (0, 141)
    p.stderr.close()

@unix
def test_a_full_stdout(tmp_path):
    if not Path('/dev/full').exists(): return
    with open('/dev/full', 'w') as f:
        r = subprocess.run([sys.executable, '-c', RUN.format(['lessons'])], stdout=f, stderr=subprocess.PIPE, text=True)
    assert (r.returncode, r.stderr) == (2, 'tlcourse: No space left on device\n')

def test_an_ascii_stdout(tmp_path):
    (tmp_path/'a').write_text(json.dumps([{**ROW, 'name': 'Möwe 猫'}]))
    r = subprocess.run([sys.executable, '-c', RUN.format(['scores', str(tmp_path/'a')])], capture_output=True,
                       env={**os.environ, 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C'})
    assert r.returncode == 0 and b'M\\xf6we \\u732b' in r.stdout and r.stderr == b''

@unix
def test_workers_of_a_parent_that_is_gone(tmp_path):
    "The parent is killed in mid-sweep: nobody goes on computing, and no worker shows a traceback"
    code = """import os, signal, sys, threading, time
from tlcourse.records import Records
from tlcourse.sweep import sweep
def run(spec): time.sleep(.02); return dict(x=spec['i'])
threading.Timer(.5, lambda: os.kill(os.getpid(), getattr(signal, sys.argv[2]))).start()
sweep([dict(i=i) for i in range(2000)], Records(sys.argv[1]), run, workers=3, progress=False)"""
    for sig in 'SIGKILL', 'SIGTERM':
        r = subprocess.run([sys.executable, '-c', code, str(tmp_path/'r.db'), sig], capture_output=True, text=True,
                           timeout=60)
        assert r.returncode < 0 and r.stderr == '', r.stderr

def test_pictures_that_would_take_for_ever(tmp_path):
    from PIL import Image
    from tlcourse.pictures import Unreadable, read_picture
    def riff(kind, body):
        return (b'RIFF' + (len(body) + 12).to_bytes(4, 'little') + b'WEBP' + kind + len(body).to_bytes(4, 'little')
                + body)
    wide = (16383 - 1).to_bytes(3, 'little')
    lossless, lossy = (16382 | 16382 << 14).to_bytes(4, 'little'), (16383).to_bytes(2, 'little')*2
    for kind,body in [(b'VP8X', bytes(4) + wide + wide), (b'VP8L', b'\x2f' + lossless),
                      (b'VP8 ', b'\0\0\0\x9d\x01\x2a' + lossy)]:
        (tmp_path/'w.webp').write_bytes(riff(kind, body + bytes(50)))
        for src in tmp_path/'w.webp', (tmp_path/'w.webp').read_bytes():
            with pytest.raises(Unreadable, match='over 100 megapixels .16383 x 16383'): read_picture(src)
    im = Image.effect_noise((2000, 2000), 20)
    for kind in 'webp', 'jpg':
        im.convert('RGB').save(tmp_path/f'good.{kind}', **(dict(progressive=True) if kind == "jpg" else {}))
    for kind in 'webp', 'jpg': assert read_picture(tmp_path/f'good.{kind}').size == (2000, 2000)
    data = (tmp_path/'good.jpg').read_bytes()
    last = data.rindex(b'\xff\xda')
    (tmp_path/'bomb.jpg').write_bytes(data[:-2] + data[last:-2][:40]*400 + data[-2:])
    with pytest.raises(Unreadable, match='a JPEG of 41. scans'): read_picture(tmp_path/'bomb.jpg')

# --- at random

import fuzz

@pytest.mark.parametrize('n', [400, pytest.param(int(os.environ.get('TLCOURSE_FUZZ', 20_000)), marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', fuzz.KINDS, ids=lambda f: f.__name__)
def test_fuzz(kind, n, tmp_path, monkeypatch):
    "No traceback, nothing that takes five seconds, nothing written but in its folder"
    (tmp_path/'here').mkdir()
    (tmp_path/'cwd').mkdir()
    monkeypatch.chdir(tmp_path/'cwd')
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    n = max(4, n*fuzz.KINDS[kind]//sum(fuzz.KINDS.values()))
    refused, slowest = fuzz.run(kind, n, tmp_path/'here')
    print(f'{kind.__name__}: {n:,} inputs, {refused:,} refused, {1000*slowest:.0f} ms the slowest')
    # What was asked to be written there has such a name as the input gave it
    assert kind in (fuzz.words, fuzz.command_lines) or not list((tmp_path/'cwd').iterdir())
    assert {o.name for o in tmp_path.iterdir()} <= {'here', 'cwd', 'cache'} and not list(tmp_path.rglob('.tlcourse-*'))

@counts(20)
def test_bits_of_a_cache(n, tmp_path, monkeypatch, quiet):
    "Decoded pictures and features: never an array that is not as it was"
    from tlcourse.data import target
    from tlcourse.sources import _store as stored
    from tlcourse.store import Store
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    target(pictures(tmp_path/'p'), size=32)
    s, key = Store('features'), Store('features').key('made up')
    with s.sink(50) as sink:
        sink.add(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))
        s.keep(sink, key, 'made up', witness=[1., 2.])
    for kind,store in ('pictures', stored), ('features', s):
        f, = (tmp_path/'cache'/kind).iterdir()
        whole = f.read_bytes()
        k = key if kind == 'features' else json.loads(whole[whole.rindex(b'\n{') + 1:whole.rindex(b'}') + 1])['key']
        assert store.find(k)[2] == ''
        for _,data in flipped(whole, n):
            f.write_bytes(data)
            x, card, wrong = store.find(k)
            assert x is None and card is None and wrong

# --- killed at any moment; 2 of each in `.ci/run`, 10 of each by hand:
# TLCOURSE_KILLS=10 python -m pytest tests/test_faults.py -m slow -n0 -s -k kills

def sweeping(d):
    import time
    from tlcourse.sweep import sweep
    def run(spec): time.sleep(.01); return result(spec['seed'])
    sweep([spec(i) for i in range(40)], Records(d/'records.db'), run, workers=2, progress=False)
    r = Records(d/'records.db')
    assert r.notice is None and sound(r) == 40 and len(r) == 40

def extracting(d):
    import hashlib, torch
    from tlcourse.features import extract
    from tlcourse.loaders import Part
    os.environ['TLCOURSE_CACHE'] = str(d/'cache')
    torch.manual_seed(0)
    body = torch.nn.Sequential(*[torch.nn.Conv2d(3 if i == 0 else 24, 24, 3, padding=1) for i in range(3)]).eval()
    x = torch.randint(0, 256, (1500, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    f = extract(body, Part('train', x, torch.arange(1500) % 3, list('abc')), stats=([.5]*3, [.25]*3), progress=False,
                device='cpu')
    (d/'said').write_text(hashlib.sha256(np.ascontiguousarray(f.x)).hexdigest())

def pretraining(d):
    from tlcourse.pretrain import pretrain
    card = pretrain(out=d/'out', steps=60, bs=8, n_glyphs=20, every=5, progress=False, device='cpu')
    assert {o.name for o in (d/'out').iterdir()} == {'glyphnet.json', 'glyphnet.safetensors'}
    (d/'said').write_text(card['sha256'] + str(card['curve']))

def training(d):
    from tlcourse.model import load, train
    os.environ['TLCOURSE_CACHE'] = str(d/'cache')
    os.chdir(d)
    if (d/'m').exists(): load(d/'m', 'cpu') # A whole one, from before
    train('digits', d/'m', strategy='feature-extraction', device='cpu', say=None)
    (d/'said').write_text(load(d/'m', 'cpu').card['weights']['sha256'])

def telling(d):
    from tlcourse.course import write_lessons
    for f in write_lessons(d/'lessons', force=True): json.loads(f.read_text())
    (d/'said').write_text(str(sorted((f.name, f.stat().st_size) for f in (d/'lessons').iterdir())))

@unix
@pytest.mark.slow
@pytest.mark.parametrize('work', [sweeping, extracting, pretraining, training, telling], ids=lambda f: f.__name__)
def test_kills(work, tmp_path):
    """SIGKILL at a random moment, some also in the second start; then it comes to the same end,
    and nothing is left behind"""
    import multiprocessing, signal, time
    # What a child then need not import
    import tlcourse.course, tlcourse.features, tlcourse.model, tlcourse.pretrain, tlcourse.sweep
    ctx, rng = multiprocessing.get_context('fork'), random.Random(work.__name__)
    def start(d):
        p = ctx.Process(target=work, args=(d,))
        p.start()
        return p
    def whole(d):
        p, t0 = start(d), time.monotonic()
        p.join(120)
        assert p.exitcode == 0, work
        return time.monotonic() - t0
    def found(d): return (d/'said').read_text() if (d/'said').exists() else ''
    (tmp_path/'whole').mkdir()
    seconds, want, kills = whole(tmp_path/'whole'), found(tmp_path/'whole'), int(os.environ.get('TLCOURSE_KILLS', 2))
    for i in range(kills):
        d = tmp_path/str(i)
        d.mkdir()
        for _ in range(rng.choice([1, 1, 2])):
            p = start(d)
            time.sleep(rng.uniform(0, seconds))
            os.kill(p.pid, signal.SIGKILL)
            p.join()
        whole(d)
        assert found(d) == want
        assert not [o for o in d.rglob('.*') if o.name.startswith(('.tlcourse-', '.m.'))]
    print(f'{work.__name__}: {kills} kills, {seconds:.1f} s unharmed')
