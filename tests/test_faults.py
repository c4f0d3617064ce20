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

NO_CHECKPOINTS = {'a step far away': set_('step', to=10**9), 'the last step': set_('step', to=6), 'a step before the first': set_('step', to=-1), 'a step of text': set_('step', to='4'),
    'half a step': set_('step', to=4.), 'no step': without('step'), 'no curve': without('curve'), 'a curve of text': set_('curve', to='abcd'), 'a short curve': set_('curve', to=[]),
    'a loss of text': set_('curve', to=[[1, 'x']]*4), 'seconds below 0': set_('seconds', 'wall', to=-1.), 'seconds that never end': set_('seconds', 'cpu', to=float('inf')), 'other seconds': set_('seconds', to={}),
    'no weights': set_('model', to={}), 'a weight less': without('model', 'fc.weight'), 'other shapes': set_('model', 'fc.bias', to=lambda t: t[:3]), 'other types': set_('model', 'fc.bias', to=lambda t: t.double()),
    'no numbers': set_('model', 'fc.bias', to=lambda t: t*float('nan')), 'a variance below 0': set_('model', 'stem.1.running_var', to=lambda t: -t-1), 'a sparse weight': set_('model', 'fc.weight', to=lambda t: t.to_sparse()),
    'no optimiser': set_('opt', to={}), 'an optimiser of another network': set_('opt', 'state', 0, 'exp_avg', to=lambda t: t[:1]), 'another rate of decay': set_('opt', 'param_groups', 0, 'weight_decay', to=9.),
    'squares below 0': set_('opt', 'state', 0, 'exp_avg_sq', to=lambda t: t-1), 'an optimiser of another step': set_('opt', 'state', 0, 'step', to=lambda t: t+1), 'a list': lambda ck: ck.clear()}

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
        with pytest.raises(BadInput, match='glyphnet.checkpoint .*(delete it, or start over|another folder)'): print(what, goes_on(tmp_path, written(ck)))

@unix
def test_a_pipe_is_no_checkpoint(tmp_path):
    from tlcourse.pretrain import pretrain
    os.mkfifo(tmp_path/'glyphnet.checkpoint')
    with pytest.raises(BadInput, match='no file'): pretrain(out=tmp_path, **SHORT)

# --- F4: a report of somebody else's store

MARK = '"><script>boom(1)</script><img src=x onerror=boom(2)> \' $\\frac{ {{x}}'

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
        return made_staged(d, acc=acc, arms=[odd(a) for a in ARMS], plan=plan, classes=[c + mark for c in CLASSES], missing=[dict(strategy=odd('fine-tuning+aug'), shots='all', minutes=6.2)],
                           parts={c + mark: [100, 30, 50] for c in CLASSES})
    return made_up(d, name=mark, classes=[f'{mark}{i}' for i in range(4)], strategies=('scratch', mark), notes=[mark, f'  {mark}'])

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

CHANGES = {'a script': lambda x: MARK, 'a list': lambda x: [x] if isinstance(x, str) else [MARK], 'a large number': lambda x: -10**30, 'nothing': lambda x: None}

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
@pytest.mark.parametrize('n', [12, pytest.param(10**6, marks=pytest.mark.slow)])
def test_every_field_of_a_stranger(how, n, tmp_path, fast, quiet):
    "Each field of a study, and of a run, by something else under a right hash: a page without a script, or one sentence"
    from tlcourse.comparison import Comparison
    from tlcourse.report import report_html
    (tmp_path/'a').mkdir()
    (tmp_path/'b').mkdir()
    made = [of_a_stranger(tmp_path/'a', 'x'), of_a_stranger(tmp_path/'b', 'x', staged=True)]
    todo, refused = [], 0
    for c in made:
        row = c.records.rows(kind='study')[0]
        todo += [(c, at, what, row.result) for at,what in everywhere(row.spec, CHANGES[how]) if all(isinstance(k, str) for k in what)]
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

FORGED_RUNS = {'a prediction for each': dict(pred=np.zeros(1, np.uint16)), 'a class that there is not': dict(pred=np.full(60, 99, np.uint16)), 'text': dict(pred=np.full(60, 'x')), 'no predictions': dict(pred=None),
               'seconds of text': dict(seconds=MARK), 'training of text': dict(train_acc=MARK), 'a probability of another size': dict(prob=np.zeros(3, np.float16))}

@pytest.mark.parametrize('what', FORGED_RUNS)
def test_runs_of_a_stranger(what, tmp_path, fast, quiet):
    from tlcourse.comparison import Comparison
    from tlcourse.report import report_html
    c = of_a_stranger(tmp_path, 'x')
    row, sp = c.records.rows(kind='study')[0], c.specs['scratch', 5][0]
    res = {k: v for k,v in {**c.records.get(sp), **FORGED_RUNS[what]}.items() if v is not None}
    with c.records._writing() as con: con.execute('delete from runs where key=?', (spec_hash(sp),))
    c.records.add(sp, res)
    with pytest.raises(BadInput, match='is damaged, or not one that tlcourse wrote'): Clean(report_html(Comparison(c.records, row.spec, c.target)))

@pytest.mark.browser
def test_no_script_in_a_browser(chrome, tmp_path):
    "The report of a stranger runs nothing; and if a name were not escaped, the page's policy would stop it"
    from browser import tab
    from tlcourse.report import report_html
    text = report_html(of_a_stranger(tmp_path, MARK))
    bad = text.replace('</main>', '<script>window.ran = 1</script><img src="x" onerror="window.ran = 2"><svg onload="window.ran = 3"></svg></main>')
    for t,blocked in (text, 0), (bad, 3):
        (tmp_path/'report.html').write_text(t, encoding='utf-8')
        with tab(chrome) as (page, guard):
            page.goto((tmp_path/'report.html').as_uri())
            assert page.evaluate("[window.ran, window.boom, document.scripts.length]") == [None, None, int(blocked > 0)]
            assert len([e for e in guard.errors if 'Content Security Policy' in e or 'Content-Security-Policy' in e]) >= blocked, guard.errors

# --- F1, F2, F7: models

@pytest.fixture(scope='module')
def model_folder(tmp_path_factory):
    from tlcourse.backbones import learner
    from tlcourse.data import target
    from tlcourse.model import save
    d = tmp_path_factory.mktemp('model')
    save(learner(target('digits').dls(shots=1, bs=8), 'glyphnet'), d/'m', accuracy=dict(value=.81, n=500, interval=[.78, .84], of='models', labels=1, seeds=3, steps=9))
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

NO_CARDS = dict(classes=[[], ['a', 3], None, {}], fit=['stretch', None], size=[0, -1, '32', 10**9, 32.], range=[[0], [0, float('nan')], 'ab'], head=['none', None], backbone=[None, 3, '../x'],
                statistics=[{}, None, dict(mean=[0]*3, std=[0]*3), dict(mean='abc', std=[1]*3)], weights=[{}, None, dict(sha256=3)])

@pytest.mark.parametrize('field', NO_CARDS)
def test_crafted_cards(field, model_folder, tmp_path):
    "Each with a right check"
    from tlcourse.model import _check, load
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
    with pytest.raises(BadInput, match='no regular file'): train('digits', tmp_path/'card.json', strategy='feature-extraction')

@unix
def test_killed_while_a_model_is_put_in_place(model_folder, tmp_path):
    "After SIGKILL: half a folder goes, and a model that was moved out of the way comes back"
    from tlcourse.model import _whole_folder
    p = subprocess.Popen([sys.executable, '-c', ''])
    p.wait()
    old, new, live = (tmp_path/f'.m.{k}-{i}' for k,i in (('old', p.pid), ('new', p.pid), ('new', os.getppid())))
    for o in old, new, live: shutil.copytree(model_folder, o)
    (new/'card.json').unlink()
    with pytest.raises(ZeroDivisionError), _whole_folder(tmp_path/'m'): 1/0
    assert sorted(os.listdir(tmp_path)) == [live.name, 'm'] and (tmp_path/'m'/'card.json').read_bytes() == (model_folder/'card.json').read_bytes()

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
        for i in range(10): Image.fromarray(np.random.default_rng(i + 50*j).integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(tmp_path/'p'/c/f'{i}.png')
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
    assert cli.main(['predict', str(model_folder), str(f), '--device', 'cpu']) == 1 and 'no regular file' in capsys.readouterr().err
    assert cli.main(['compare', 'digits', '--weights', str(f), '--device', 'cpu']) == 2 and 'no weights file' in capsys.readouterr().err
    (tmp_path/'lessons').mkdir()
    os.mkfifo(tmp_path/'lessons'/'05_freezing.ipynb')
    assert cli.main(['lessons', '5', '--to', str(tmp_path/'lessons')]) == 2 and 'would be written over' in capsys.readouterr().err
