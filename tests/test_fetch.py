"A stick for a class without a network: what comes is whole and right or does not come, and what is used is checked."
import functools, http.server, io, json, os, shutil, signal, subprocess, sys, tarfile, threading, time
from pathlib import Path
import pytest, torch
from tlcourse import base, cli, fetch as fetch_, sources
from tlcourse.backbones import arch, backbones
from tlcourse.hubs import _hub_file, _tv_weights
from tlcourse.base import BadInput, sha256
from tlcourse.doctor import doctor
from tlcourse.fetch import Wanted, download, fetch
from tlcourse.stick import MANIFEST, read_manifest

unix = pytest.mark.skipif(os.name != 'posix', reason='Windows has no such links or limits')
DATA = os.urandom(3_000_000)

class Server(http.server.SimpleHTTPRequestHandler):
    "`/cut/x` promises all of x and sends half of it, `/slow/x` takes its time"
    def log_message(self, *args): pass
    def do_GET(self):
        how, _, name = self.path[1:].rpartition('/')
        if how not in ('cut', 'slow'): return super().do_GET()
        data = Path(self.directory, name).read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if how == 'cut': self.wfile.write(data[:len(data)//2]); return
        try:
            for i in range(0, len(data), 100_000): self.wfile.write(data[i:i+100_000]); time.sleep(.1)
        except OSError: pass # The one who asked was killed

@pytest.fixture
def web(tmp_path):
    "A folder, and the address at which it is served"
    (tmp_path/'web').mkdir()
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Server, directory=str(tmp_path/'web')))
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield tmp_path/'web', f'http://127.0.0.1:{s.server_port}'
    s.shutdown()
    s.server_close()

@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    "No stick yet, no downloads, no cache"
    monkeypatch.delenv('TLCOURSE_HOME', raising=False)
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'fastai'))
    monkeypatch.setattr('torch.hub._hub_dir', str(tmp_path/'hub'))

def wanted(url, name=None, here=None):
    name = name or url.rpartition('/')[2]
    return Wanted('net', f'checkpoints/{name}', url, here, lambda path, digest: digest == sha256(DATA))

def said(capsys, *args):
    try: code = cli.main([*map(str, args)])
    except SystemExit as e: code = e.code
    o = capsys.readouterr()
    return code, o.out, o.err

def files(d): return sorted(o.relative_to(d).as_posix() for o in d.rglob('*') if o.is_file())

# --- a download

@pytest.mark.parametrize('scheme', ['http', 'file'])
def test_whole(scheme, web, tmp_path):
    folder, url = web
    (folder/'net.pth').write_bytes(DATA)
    k = download(wanted(f'{url}/net.pth' if scheme == 'http' else (folder/'net.pth').as_uri()), tmp_path)
    assert (tmp_path/'checkpoints'/'net.pth').read_bytes() == DATA
    assert (k.name, k.bytes, k.sha256) == ('checkpoints/net.pth', len(DATA), sha256(DATA))

def test_hashed_once(web, tmp_path, monkeypatch):
    "What is downloaded is read once for its hash, before it takes its place, and listed with that"
    folder, url = web
    (folder/'net.pth').write_bytes(DATA)
    read = []
    monkeypatch.setattr(base, 'check_regular', read.append) # `sha256` asks it of every file
    k = fetch_._bring(wanted(f'{url}/net.pth'), tmp_path, print)
    assert len(read) == 1 and k.sha256 == sha256(DATA) and read_manifest(tmp_path) == {k.name: k}

@pytest.mark.parametrize('how,words', [('cut/net.pth', r'broke off after 1,500,000 of 3,000,000 bytes'),
                                       ('bad.pth', 'its hash differs'), ('none.pth', 'answered HTTP Error 404')])
def test_neither_whole_nor_right(how, words, web, tmp_path):
    "Nothing comes, and what was there stays"
    folder, url = web
    (folder/'net.pth').write_bytes(DATA)
    (folder/'bad.pth').write_bytes(DATA[:-1] + b'x')
    (tmp_path/'s'/'checkpoints').mkdir(parents=True)
    old = tmp_path/'s'/'checkpoints'/'net.pth'
    old.write_bytes(b'older')
    with pytest.raises(BadInput, match=words): download(wanted(f'{url}/{how}', 'net.pth'), tmp_path/'s')
    assert files(tmp_path/'s') == ['checkpoints/net.pth'] and old.read_bytes() == b'older'

def test_no_network(tmp_path, capsys, monkeypatch):
    "One sentence, at once, and nothing is begun"
    import urllib.error, urllib.request
    def gone(*args, **kw): raise urllib.error.URLError('Temporary failure in name resolution')
    monkeypatch.setattr(fetch_, 'urlopen', gone)
    code, out, err = said(capsys, 'fetch', 'resnet18', '--to', tmp_path/'s')
    assert code == 2 and err.count('\n') == 1 and 'connect to the network' in err and files(tmp_path/'s') == []
    assert 'put it at' in err and 'resnet18-f37072fd.pth' in err

@unix
def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match='refused.: connect to the network'):
        download(wanted('http://127.0.0.1:9/net.pth'), tmp_path)

CODE = """import sys
from pathlib import Path
from tlcourse import cli, fetch
from tlcourse.base import sha256
url, to, digest = sys.argv[1:]
fetch.source = lambda w: fetch.Wanted(w, 'checkpoints/net.pth', url, None, lambda path, d: d == digest)
sys.exit(cli.main(['fetch', 'net', '--to', to]))"""

@unix
@pytest.mark.parametrize('sig', ['SIGKILL', 'SIGINT'])
def test_killed_in_mid_download(sig, web, tmp_path):
    "Ctrl-C leaves nothing, `kill -9` what the next start removes; then it comes whole"
    folder, url = web
    (folder/'net.pth').write_bytes(DATA)
    to = tmp_path/'s'
    def start(how):
        return subprocess.Popen([sys.executable, '-c', CODE, f'{url}/{how}net.pth', str(to), sha256(DATA)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = start('slow/')
    for _ in range(1200):
        if any(o.stat().st_size for o in (to/'checkpoints').glob('.tlcourse-*')): break
        time.sleep(.05)
    p.send_signal(getattr(signal, sig))
    err = p.communicate(timeout=60)[1]
    half = files(to)
    if sig == 'SIGINT': assert p.returncode == 130 and half == [] and err.count('\n') == 1, (half, err)
    else: assert [o.startswith('checkpoints/.tlcourse-') for o in half] == [True]
    p = start('')
    out, err = p.communicate(timeout=60)
    assert (p.returncode, err) == (0, '') and 'net: downloaded, 3.0 MB' in out, err
    assert files(to) == ['checkpoints/net.pth', MANIFEST] and (to/'checkpoints'/'net.pth').read_bytes() == DATA

def test_no_room(web, tmp_path, monkeypatch):
    "Known before the first byte; and where the disk is full in the middle of it"
    folder, url = web
    (folder/'net.pth').write_bytes(DATA)
    usage = type('U', (), dict(free=1_000_000))
    monkeypatch.setattr(fetch_.shutil, 'disk_usage', lambda d: usage)
    with pytest.raises(BadInput, match='has 1.0 MB left, and 3.0 MB would come: free some space'):
        download(wanted(f'{url}/net.pth'), tmp_path/'..'/tmp_path.name)
    assert not list((tmp_path/'checkpoints').iterdir())

@unix
def test_a_full_disk(web, tmp_path):
    folder, url = web
    (folder/'net.pth').write_bytes(DATA)
    code = 'import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000,)*2)\n' + CODE
    r = subprocess.run([sys.executable, '-c', code, f'{url}/net.pth', str(tmp_path/'s'), sha256(DATA)],
                       capture_output=True, text=True)
    assert r.returncode == 2 and r.stderr.count('\n') == 1 and 'File too large): free some space' in r.stderr, r.stderr
    assert files(tmp_path/'s') == []

# --- out of the folder

@unix
def test_nothing_leads_out(tmp_path, web):
    "A link on a stick, in the place of a folder, a file or the list"
    folder, url = web
    (folder/'net.pth').write_bytes(DATA)
    out = tmp_path/'out'
    out.mkdir()
    (out/'mine').write_text('mine')
    for i,(place,to) in enumerate([('checkpoints', out), ('checkpoints/net.pth', out/'mine'), (MANIFEST, out/'mine')]):
        s = tmp_path/f's{i}'
        (s/place).parent.mkdir(parents=True)
        (s/place).symlink_to(to)
        with pytest.raises(BadInput, match='is a link: remove it|is damaged'):
            fetch_._bring(wanted(f'{url}/net.pth'), s, print)
            read_manifest(s)
        assert files(out) == ['mine'] and (out/'mine').read_text() == 'mine'

@pytest.mark.parametrize('name', ['../out.pth', 'checkpoints/../../out.pth', '/out.pth', 'C:\\out.pth', 'lessons/..'])
def test_a_list_that_climbs_out(name, tmp_path, monkeypatch, capsys):
    (tmp_path/MANIFEST).write_text(json.dumps(dict(files=[dict(name=name, bytes=1, sha256='0'*64, what='resnet18')])))
    monkeypatch.setenv('TLCOURSE_HOME', str(tmp_path))
    with pytest.raises(BadInput, match='no place that tlcourse fetch writes to'): arch('resnet18')(pretrained=True)
    monkeypatch.delenv('TLCOURSE_HOME')
    code, out, err = said(capsys, 'fetch', 'lessons', '--to', tmp_path)
    assert code == 2 and err.count('\n') == 1 and files(tmp_path) == [MANIFEST]

def test_an_archive_that_climbs_out(tmp_path, monkeypatch):
    "Its hash is right, and still nothing of it lands outside"
    for name in '../../evil', '/evil', 'link':
        with tarfile.open(tmp_path/'a.tgz', 'w:gz') as t:
            o = tarfile.TarInfo(name)
            if name == 'link': o.type, o.linkname = tarfile.SYMTYPE, '../../..'
            t.addfile(o)
        on(tmp_path/'s', tmp_path/'a.tgz', 'data/oxford-iiit-pet.tgz', 'pets', monkeypatch)
        try: sources._fetch('pets')
        except BadInput as e: assert 'cannot be unpacked' in str(e) and '\n' not in str(e)
        kept = tmp_path/'cache'/'unpacked'
        assert all(kept in o.parents for o in tmp_path.rglob('evil')) # '/evil' becomes a name in there
        assert not Path('/evil').exists() and not list(kept.glob('.*')) and not list(kept.glob('*/link'))

# --- the stick in use

def on(stick, file, name, what, monkeypatch):
    "Put a file on a stick, and use it"
    f = stick/name
    f.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, f)
    fetch_._list(stick, [fetch_._entry(stick, name, what)])
    monkeypatch.setenv('TLCOURSE_HOME', str(stick))
    return f

@pytest.mark.parametrize('name', ['squeezenet1_1', 'densenet121', 'mobilenet_v3_small'])
def test_weights_of_torchvision(name, tmp_path, monkeypatch):
    "The same network as from a download; refused where a bit is turned, or where the hash in the name is another's"
    torch.manual_seed(1)
    import torchvision
    torch.save(torchvision.models.get_model(name).state_dict(), tmp_path/'w.pth')
    w, digest = _tv_weights(name), sha256(tmp_path/'w.pth')
    url = f'http://127.0.0.1:9/{name}-{digest[:8]}.pth'
    monkeypatch.setattr(type(w), 'url', property(lambda self: url))
    _hub_file(url).parent.mkdir(parents=True)
    shutil.copy(tmp_path/'w.pth', _hub_file(url))
    a = arch(name)
    downloaded, here = a(pretrained=True).state_dict(), f'checkpoints/{_hub_file(url).name}'
    shutil.rmtree(_hub_file(url).parent)
    with pytest.raises(BadInput, match=f'tlcourse fetch {name} --to DIR'): a(pretrained=True)
    f = on(tmp_path/'s', tmp_path/'w.pth', here, name, monkeypatch)
    got = a(pretrained=True).state_dict()
    assert got.keys() == downloaded.keys() and all(got[k].equal(v) for k,v in downloaded.items())
    assert a.weights_id == f'torchvision:{name}.IMAGENET1K_V1' and backbones(name).here[name]
    data = bytearray(f.read_bytes())
    data[len(data)//2] ^= 1
    for bad,words in (bytes(data), 'is damaged'), (data[:-9], 'is damaged'), (None, 'is missing'):
        f.write_bytes(bad) if bad is not None else f.unlink()
        with pytest.raises(BadInput, match=f'{words}.*tlcourse fetch {name} --to'): a(pretrained=True)
    f.write_bytes(bytes(data))
    fetch_._list(tmp_path/'s', [fetch_._entry(tmp_path/'s', here, name)]) # A list that agrees with it
    with pytest.raises(BadInput, match='is not what its name says'): a(pretrained=True)

def test_weights_of_timm(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file
    a = arch('timm/resnet18')
    sd = {k: v + .5 if v.is_floating_point() else v for k,v in timm.create_model('resnet18').state_dict().items()}
    save_file(sd, tmp_path/'w.safetensors')
    name = f"timm/{timm.get_pretrained_cfg('resnet18').hf_hub_id.replace('/', '--')}--model.safetensors"
    f = on(tmp_path/'s', tmp_path/'w.safetensors', name, 'timm/resnet18', monkeypatch)
    got = a(pretrained=True).state_dict()
    assert all(v.equal(sd[k]) for k,v in got.items())
    f.write_bytes(f.read_bytes()[:-1])
    with pytest.raises(BadInput, match='is damaged'): a(pretrained=True)

def test_the_hub_of_timms_weights(web, tmp_path, monkeypatch):
    "Served from this machine; the second word of the same stick asks nobody"
    import huggingface_hub, timm
    folder, url = web
    c = timm.get_pretrained_cfg('resnet18')
    f = folder/c.hf_hub_id/'resolve'/'main'/'model.safetensors'
    f.parent.mkdir(parents=True)
    f.write_bytes(DATA)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_url', functools.partial(huggingface_hub.hf_hub_url, endpoint=url))
    monkeypatch.setattr('tlcourse.hubs._timm_cached', lambda *args, **kw: None)
    k, = fetch('timm/resnet18', tmp_path/'s')
    assert k.sha256 == sha256(DATA) and (tmp_path/'s'/k.name).read_bytes() == DATA
    monkeypatch.setattr(fetch_, 'source', lambda w: pytest.fail('asked again'))
    assert fetch(['timm/resnet18'], tmp_path/'s') == [k]

def pets(tmp_path):
    from PIL import Image
    d = tmp_path/'oxford-iiit-pet'
    for o in 'images', 'annotations': (d/o).mkdir(parents=True)
    rows = [f'{c}_{i}' for c in ('Abyssinian', 'great_dane') for i in range(12)]
    for i,o in enumerate(rows): Image.effect_noise((64, 64), 20 + i).convert('RGB').save(d/'images'/f'{o}.jpg')
    for part,some in ('trainval', [o for o in rows if int(o.split('_')[-1]) < 8]), ('test', rows):
        keep = some if part == 'trainval' else [o for o in rows if int(o.split('_')[-1]) >= 8]
        (d/'annotations'/f'{part}.txt').write_text(''.join(f'{o} 1 1 1\n' for o in keep))
    with tarfile.open(tmp_path/'pets.tgz', 'w:gz') as t: t.add(d, d.name)
    return tmp_path/'pets.tgz'

def test_a_data_set(tmp_path, monkeypatch, capsys):
    "Unpacked once, into the cache; the archive is checked each time"
    from tlcourse.data import target
    f = on(tmp_path/'s', pets(tmp_path), 'data/oxford-iiit-pet.tgz', 'pets', monkeypatch)
    monkeypatch.setattr(sources, 'urlopen', lambda *args: pytest.fail('it asked the network'))
    t = target('pets', size=32)
    assert t.classes == ['Abyssinian', 'great_dane'] and len(t.test) == 8
    assert len(list((tmp_path/'cache'/'unpacked').iterdir())) == 1 and not (tmp_path/'fastai'/'data').exists()
    with monkeypatch.context() as m:
        m.setattr(sources, '_unpack', lambda *args: pytest.fail('unpacked again'))
        assert target('pets', size=32).pixel_hash == t.pixel_hash
    told = {o.what: o for o in doctor()}
    assert told['TLCOURSE_HOME'].found.endswith(': pets') and told['target pets'].found == 'there, on the stick'
    f.write_bytes(f.read_bytes()[:-1])
    code, out, err = said(capsys, 'compare', 'pets', '--device', 'cpu')
    assert code == 2 and err.count('\n') == 1 and 'is damaged' in err and 'tlcourse fetch pets' in err
    told = {o.what: o for o in doctor()}
    assert 'tlcourse fetch pets' in told['pets on the stick'].advice

def test_copied_from_this_machine(tmp_path, monkeypatch, capsys):
    "What was downloaded before is copied if it is what fastai knows of it, and downloaded anew if not"
    from fastai.data.external import URLs
    here = URLs.path(URLs.PETS)
    here.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(pets(tmp_path), here)
    monkeypatch.setattr(fetch_, 'urlopen', lambda *args, **kw: (_ for _ in ()).throw(OSError('no network')))
    code, out, err = said(capsys, 'fetch', 'pets', '--to', tmp_path/'s') # Not the size that fastai knows
    assert code == 2 and 'no network' in err and files(tmp_path/'s') == []
    monkeypatch.setattr('fastai.data.external.FastDownload.check', lambda *args: True)
    code, out, err = said(capsys, 'fetch', 'pets', '--to', tmp_path/'s', '--json', tmp_path/'j.json')
    assert (code, err) == (0, '') and 'pets: copied from this machine' in out
    k, = json.loads((tmp_path/'j.json').read_text())['files']
    assert (k['name'], k['sha256'], k['bytes']) == ('data/oxford-iiit-pet.tgz', sha256(here), here.stat().st_size)
    assert 'there already' in said(capsys, 'fetch', 'pets', '--to', tmp_path/'s')[1]

def test_lessons(tmp_path, capsys):
    "As `tlcourse lessons --to` writes them; those that a reader changed stay, unless --force says otherwise"
    from tlcourse.course import write_lessons
    assert said(capsys, 'fetch', 'lessons', '--to', tmp_path/'s')[0] == 0
    names = [f.name for f in write_lessons(tmp_path/'l')]
    assert [k.split('/')[1] for k in read_manifest(tmp_path/'s')] == names
    assert all((tmp_path/'s'/'lessons'/n).read_bytes() == (tmp_path/'l'/n).read_bytes() for n in names)
    (tmp_path/'s'/'lessons'/names[0]).write_text('{}')
    code, out, err = said(capsys, 'fetch', 'lessons', '--to', tmp_path/'s')
    assert code == 2 and 'would be written over' in err and (tmp_path/'s'/'lessons'/names[0]).read_text() == '{}'
    assert said(capsys, 'fetch', 'lessons', '--to', tmp_path/'s', '--force')[0] == 0
    assert (tmp_path/'s'/'lessons'/names[0]).read_bytes() == (tmp_path/'l'/names[0]).read_bytes()

def test_words(tmp_path, capsys):
    "What is unknown, or needs no network, is said before anything is written"
    for w,words in dict(digits='needs no network', pet="did you mean 'pets'", glyphnet='come with the course',
                        tf_efficientnet_lite0='a package that pip installs', **{'../x': 'nothing to fetch'}).items():
        code, out, err = said(capsys, 'fetch', 'lessons', w, '--to', tmp_path/'s')
        assert code == 2 and err.count('\n') == 1 and words in err and not (tmp_path/'s').exists(), (w, err)

def test_a_stick_that_is_not_in(tmp_path, monkeypatch, capsys):
    "Whoever has set TLCOURSE_HOME wants it used; a file that is not in the list is not"
    monkeypatch.setenv('TLCOURSE_HOME', str(tmp_path/'none'))
    code, out, err = said(capsys, 'compare', 'pets', '--device', 'cpu')
    assert code == 2 and 'which is no folder' in err and err.count('\n') == 1
    assert 'which is no folder' in {o.what: o for o in doctor()}['TLCOURSE_HOME'].advice
    monkeypatch.setenv('TLCOURSE_HOME', str(tmp_path))
    with pytest.raises(BadInput, match='which has no list'): sources._fetch('pets')
    (tmp_path/MANIFEST).write_text('{"files": []}')
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'oxford-iiit-pet.tgz').write_bytes(b'x')
    with pytest.raises(BadInput, match='not in the list'): sources._fetch('pets')
    assert '0 files' in {o.what: o for o in doctor()}['TLCOURSE_HOME'].found
