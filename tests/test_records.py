"The store of runs in a hostile place: read-only folder, full disk, damaged files, two writers."
import os, stat, subprocess, sys, warnings
import numpy as np, pytest
from tlcourse.base import BadInput
from tlcourse.records import Records

def spec(i): return dict(kind='report', target='toy', pixel_hash='p', seed=i)
def result(i, n=2000): return dict(pred=np.full(n, i, np.uint16), prob=np.full(n, .5, np.float16), loss=i/7)

def fill(path, n=20):
    r = Records(path)
    r.put_labels('p', np.zeros(2000, np.uint16))
    for i in range(n): r.add(spec(i), result(i))
    r.close()
    return path

def as_user(d, code, timeout=60):
    "Run `code` in a process of an ordinary user: root writes into read-only folders."
    if os.name != 'posix': pytest.skip('permissions of POSIX')
    if os.getuid() == 0:
        for p in [d, *d.parents]: # pytest's folders are closed to others
            mode = p.stat().st_mode
            if p.stat().st_uid == 0 and not mode & stat.S_IXOTH: p.chmod(mode | stat.S_IXOTH | stat.S_IROTH)
    pre = f'''
import os, sys
from tlcourse.base import BadInput
from tlcourse.records import Records
from pathlib import Path
if os.getuid() == 0: os.setgid(65534); os.setuid(65534)
d = Path({str(d)!r})
'''
    return subprocess.run([sys.executable, '-c', pre + code], text=True, capture_output=True, timeout=timeout, cwd='/')

def test_read_only_folder(tmp_path):
    d = tmp_path/'ro'
    d.mkdir()
    fill(d/'records.db', 3)
    r = Records(d/'records.db')
    r.export(d/'copy.db')
    r.close()
    for p in d.iterdir(): p.chmod(0o444)
    d.chmod(0o555)
    try:
        p = as_user(d, '''
def bad(f):
    try: f()
    except BadInput as e: return print('refused:', e)
    print('no error')
bad(lambda: Records(d/'new.db'))
bad(lambda: Records(d/'sub'/'new.db'))
bad(lambda: Records(d/'records.db'))
r = Records(d/'copy.db', readonly=True)
print(len(r), r.rows()[1].accuracy)
bad(lambda: r.put_labels('q', [1]))
''')
        assert p.returncode == 0, p.stderr
        *refused, n, ro = p.stdout.splitlines()
        assert all('choose a folder that you can write to' in l for l in refused) and len(refused) == 3, p.stdout
        assert n == '3 0.0' and 'read only' in ro
        assert sorted(o.name for o in d.iterdir()) == ['copy.db', 'records.db']
    finally: d.chmod(0o755)

def test_full_disk(tmp_path):
    resource = pytest.importorskip('resource')
    fill(tmp_path/'records.db', 5)
    code = '''
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_records import *
r = Records(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for i in range(5, 500): r.add(spec(i), result(i))
except BadInput as e: print('refused:', e)
'''
    p = subprocess.run([sys.executable, '-c', code, str(tmp_path/'records.db'), os.path.dirname(__file__)],
                       text=True, capture_output=True, timeout=60)
    assert p.returncode == 0, p.stderr
    assert 'refused:' in p.stdout and 'the disk is full' in p.stdout, p.stdout
    r = Records(tmp_path/'records.db')
    assert r.notice is None and len(r) >= 5
    for o in r.rows(): assert (o.result['pred'] == o.spec['seed']).all()
    assert r.add(spec(999), result(9))

def damage(path, how):
    size = path.stat().st_size
    with open(path, 'r+b') as f:
        if how == 'text': f.truncate(0); f.write(b'these are notes\n'*500)
        elif how == 'cut': f.truncate(size//2)
        elif how == 'odd cut': f.truncate(size-1234)
        elif how == 'header': f.write(b'\0'*100)
        elif how == 'hole': f.seek(4096); f.write(b'\xff'*20000)

@pytest.mark.parametrize('how', ['text', 'cut', 'odd cut', 'header', 'hole'])
def test_damaged(tmp_path, how):
    path = fill(tmp_path/'records.db', 30)
    damage(path, how)
    before = path.read_bytes()
    with pytest.warns(UserWarning, match='is damaged'): r = Records(path)
    kept = [p for p in tmp_path.iterdir() if '.damaged-' in p.name]
    assert len(kept) == 1 and kept[0].read_bytes() == before
    assert kept[0].name in r.notice and len(r) == {'text': 0, 'odd cut': 30, 'header': 30}.get(how, len(r))
    assert f'the {len(r)} runs' in r.notice
    for o in r.rows(): assert (o.result['pred'] == o.spec['seed']).all() and o.opened
    assert r.add(spec(99), result(9)) and len(Records(path).rows(seed=99)) == 1
    with pytest.raises(BadInput, match='damaged'): Records(kept[0], readonly=True)

def test_damaged_twice_keeps_both(tmp_path):
    for i in range(3):
        (tmp_path/'records.db').write_bytes(b'no database at all %d' % i * 50)
        with pytest.warns(UserWarning, match='is damaged'): Records(tmp_path/'records.db').close()
    assert len([p for p in tmp_path.iterdir() if '.damaged-' in p.name]) == 3

def test_two_writers(tmp_path):
    code = '''
import sys
sys.path.insert(0, sys.argv[2])
from test_records import *
r, me = Records(sys.argv[1]), int(sys.argv[3])
print(sum(r.add(spec(i), result(me)) for i in range(60)))
'''
    ps = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'records.db'), os.path.dirname(__file__), str(i)],
                           text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(3)]
    new = []
    for p in ps:
        out, err = p.communicate(timeout=60)
        assert p.returncode == 0, err
        new.append(int(out))
    r = Records(tmp_path/'records.db')
    assert sum(new) == len(r) == r.openings() == 60
    for o in r.rows(): # No mixture of two results
        assert len(set(o.result['pred'].tolist())) == 1 and o.result['loss'] == o.result['pred'][0]/7

def test_a_forked_child_leaves_the_parents_connection(tmp_path):
    if not hasattr(os, 'fork'): pytest.skip('no fork')
    r = Records(tmp_path/'records.db')
    r.add(spec(0), result(0))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        ok = 1
        try:
            r.add(spec(1), result(1))
            del r
            ok = 0
        finally: os._exit(ok)
    assert os.waitpid(pid, 0)[1] == 0
    assert r.add(spec(2), result(2)) and len(r) == 3
