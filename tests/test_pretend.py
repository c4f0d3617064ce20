"""Device mistakes fail without a card: the library and the lessons on a pretended device (pretend.py), and the
mistakes that were once in them, put back one at a time. Two processes, for torch cannot forget a device."""
import json, os, re, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from pretend_plants import _changed, LESSONS, LIBRARY
from tlcourse.dev import cells
from conftest import PAGES, ROOT

TESTS = Path(__file__).parent
PARTS = ['all strategies', 'true freeze and audit', 'activations stored', 'features and probes', 'scores',
         'heads on the test', 'heads of a study',
         'lint of learners', 'comparing', 'a model to use', 'pretraining', 'saving and loading',
         'losses on the device', 'graphs of the benchmark', 'rules of the device']
PAGE = {p.stem: p for p in PAGES if p.parent.name == 'lessons'}

def run(script, tmp, *args):
    "{name: what a script of the device says of it}"
    out = tmp/'results'
    env = {**os.environ, 'IN_TEST': '1', 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT),
           'TLCOURSE_CACHE': str(tmp/'cache'),
           'IPYTHONDIR': str(tmp/'ipython')}
    r = subprocess.run([sys.executable, TESTS/script, out, *args], cwd=tmp, env=env, capture_output=True, text=True,
                       timeout=1200)
    assert not r.returncode, r.stderr[-3000:]
    res = [json.loads(l) for l in out.read_text().splitlines()]
    print(*(f"{o['seconds']:6.1f} s  {o['name']}" for o in res), sep='\n')
    return {o['name']: o for o in res}

@pytest.mark.parametrize('plant', [*LIBRARY, *LESSONS], ids=lambda p: p.name)
def test_the_text_of_a_mistake_is_there(plant, monkeypatch):
    "In seconds, before anything runs on the device"
    monkeypatch.syspath_prepend(ROOT/'benchmarks')
    for c in plant.changes: _changed(c)
    if plant.lesson:
        page = PAGE[next(k for k in PAGE if k.endswith(plant.lesson))]
        assert plant.now in next(c['source'] for c in cells(page) if c['id'] == plant.seen_by)

@pytest.fixture(scope='module')
def parts(tmp_path_factory): return run('pretend_parts.py', tmp_path_factory.mktemp('parts'))

@pytest.fixture(scope='module')
def lessons(tmp_path_factory): return run('pretend_lessons.py', tmp_path_factory.mktemp('lessons'), *PAGE.values())

@pytest.mark.slow
@pytest.mark.parametrize('part', PARTS)
def test_library(part, parts):
    o = parts[part]
    assert not o['error'], o
    assert part == 'rules of the device' or not o['mistakes'], 'somebody caught it, but it was made'

@pytest.mark.slow
def test_every_part_is_asked_for(parts): assert [*parts] == PARTS + [f'planted: {p.name}' for p in LIBRARY]

@pytest.mark.slow
@pytest.mark.parametrize('plant', LIBRARY, ids=lambda p: p.name)
def test_mistake_of_the_library_is_seen(plant, parts):
    o = parts[f'planted: {plant.name}']
    print(o['error'])
    assert re.search("same device|can't convert .* device type tensor", o['error']) and o['mistakes'], o

# --- which device

def test_one_rule_for_the_default_device(monkeypatch):
    """CUDA if there is one and fastai was not told to do without; a Mac's is taken when asked for,
    though fastai would take it"""
    import fastai.torch_core, torch
    from fastcore.basics import defaults
    from tlcourse.base import BadInput, pick_device
    from tlcourse.data import target
    from tlcourse.features import Features
    from tlcourse.probes import fit_probes
    monkeypatch.setattr(defaults, 'use_cuda', None, raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert pick_device() == pick_device(None) == torch.device('cuda')
    monkeypatch.setattr(defaults, 'use_cuda', False)
    assert pick_device() == target('digits').dls(shots=1).device == torch.device('cpu')
    monkeypatch.setattr(defaults, 'use_cuda', None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(fastai.torch_core, '_has_mps', lambda: True)
    assert fastai.torch_core.default_device().type == 'mps' and target('digits').dls(shots=1).device.type == 'cpu'
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(BadInput, match='float64'):
        fit_probes(Features(x, y, np.arange(4), ['a', 'b']), [np.arange(4)], device='mps')

# --- the lessons

@pytest.mark.slow
@pytest.mark.parametrize('page', PAGE)
def test_lesson(page, lessons):
    o = lessons[page]
    assert not o['errors'] and not o['mistakes'], o

@pytest.mark.slow
@pytest.mark.parametrize('plant', LESSONS, ids=lambda p: p.name)
def test_mistake_of_a_lesson_is_seen(plant, lessons):
    o = lessons[f'planted: {plant.name}']
    print(*o['errors'])
    assert o['errors'] and 'same device' in o['errors'][0][1], o

@pytest.mark.slow
def test_time_of_the_lessons(lessons):
    assert sum(lessons[p]['seconds'] for p in PAGE) < 24*len(PAGE)
