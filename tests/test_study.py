"The parts of `compare`: the task, the registry of strategies, the estimate, the notes, the places of output."
import json, os
import numpy as np, pytest
from PIL import Image
from tlcourse import cli
from tlcourse import compare as module
from tlcourse.backbones import arch, learner
from tlcourse.base import BadInput
from tlcourse.compare import Study, compare, run_spec, task
from tlcourse.comparison import stored_comparison
from tlcourse.data import target
from tlcourse.finetune import STRATEGIES, stepped, strategy

quick = dict(backbone='glyphnet', shots=[2], seeds=3, steps=2, tune='none', strategies='feature-extraction', size=32, say=None, device='cpu')

@pytest.fixture(scope='module')
def digits(): return target('digits')

@pytest.fixture
def own():
    "Strategies registered in a test go with it"
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)

def pictures(folder, n, seed=0, classes=('dark', 'light')):
    rng = np.random.default_rng(seed)
    for i,c in enumerate(classes):
        (folder/c).mkdir(parents=True, exist_ok=True)
        for j in range(n):
            x = rng.integers(0, 120, (40, 40, 3)) + 130*(i % 2)
            Image.fromarray(x.astype(np.uint8)).save(folder/c/f'{seed}-{j}.png')
    return folder

# the task

def test_a_folder_that_has_grown_is_read_anew(tmp_path):
    "Twice in one process, with pictures added in between"
    d = pictures(tmp_path/'pics', 12)
    a = compare(d, **quick)
    pictures(d, 8, seed=1)
    b = compare(d, **quick)
    assert a.settings['pixel_hash'] != b.settings['pixel_hash']
    assert sum(map(sum, a.parts.values())) == 24 and sum(map(sum, b.parts.values())) == 40
    assert f"{b.parts['dark'][0]}/{b.parts['dark'][1]}/{b.parts['dark'][2]}" in b.notes[0]

def test_names_and_objects_are_the_same_study(digits):
    a = compare('digits', **quick)
    b = compare(digits, **{**quick, 'backbone': arch('glyphnet'), 'size': None})
    assert a.specs == b.specs and a.cells[0]['mean'] == b.cells[0]['mean']
    with pytest.raises(BadInput, match='size: this target is made already'): compare(digits, size=64, say=None)
    with pytest.raises(BadInput, match='weights'): compare(digits, arch('glyphnet'), weights='x.pth', say=None)

def test_the_target_stays_sealed(digits):
    before = digits.openings
    compare(digits, **{**quick, 'size': None})
    assert digits.openings == before # a store keeps the openings of its runs

def test_each_seed_draws_its_own_validation_pictures(digits, monkeypatch):
    job, drawn = task('digits', 'glyphnet', device='cpu'), []
    fit = STRATEGIES['scratch']
    def seen(dls, *args, **kwargs):
        drawn.append(sorted(dls.valid.ids.tolist()))
        return fit(dls, *args, **kwargs)
    monkeypatch.setitem(STRATEGIES, 'scratch', seen)
    for code in 2, 3:
        for seed in 0, 1:
            run_spec(job, dict(kind='tune', strategy='scratch', shots=1, seed=seed, bs=32, augment=True, V=2, lr=.005, steps=1, code=code))
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3], 'code 2 has one draw for all, and seed 0 of code 3 the same'

# strategies

def test_a_strategy_of_ones_own_runs_in_workers(own, tmp_path):
    @strategy(rate=2e-3)
    def mine(dls, backbone, epochs, steps, lr, seed):
        learn = learner(dls, backbone)
        learn.dls = stepped(learn.dls, steps)
        learn.fit_one_cycle(1, lr)
        return learn
    kw = {**quick, 'strategies': 'feature-extraction,mine', 'out': tmp_path}
    c = compare('digits', workers=2, **kw)
    assert {x['strategy'] for x in c.cells} == {'feature-extraction', 'mine'}
    spec = c.specs['mine', 2][0]
    assert spec['lr'] == 2e-3 and len(spec['strategy_code']) == 16 and 'strategy_code' not in c.specs['feature-extraction', 2][0]
    @strategy(rate=2e-3)
    def mine(dls, backbone, epochs, steps, lr, seed):
        learn = learner(dls, backbone)
        learn.dls = stepped(learn.dls, steps)
        learn.fit_one_cycle(1, lr/2)
        return learn
    again = compare('digits', workers=1, **kw)
    assert again.specs['mine', 2][0] != spec, 'a changed function is another run'
    with pytest.raises(BadInput, match='leave precision out'): compare('digits', precision='bf16', **kw)

def test_bad_strategies(own):
    with pytest.raises(BadInput, match='lacks lr, seed'): strategy(rate=1)(lambda dls, backbone, epochs, steps: None)
    def other(dls, backbone, **kwargs): pass
    with pytest.raises(BadInput, match="already.*my-scratch"): strategy(rate=.1, name='scratch')(other)
    assert STRATEGIES['scratch'].rate == 5e-3

def test_a_strategy_gets_its_own_rate(own, digits):
    asked = []
    @strategy(rate=.007)
    def seen(dls, backbone, epochs, steps, lr, seed): asked.append((epochs, steps, lr, seed))
    seen(digits.dls(shots=1), 'glyphnet', steps=3)
    seen(digits.dls(shots=1), 'glyphnet', 2, lr=.5, seed=4)
    assert asked == [(None, 3, .007, 0), (2, None, .5, 4)]
    with pytest.raises(BadInput, match='exactly one'): seen(digits.dls(shots=1), 'glyphnet')

def test_a_learner_without_a_metric(own):
    from fastai.vision.all import vision_learner
    from tlcourse.backbones import glyphnet
    @strategy(rate=2e-3)
    def bare(dls, backbone, epochs, steps, lr, seed): return vision_learner(dls, glyphnet, metrics=[])
    with pytest.raises(BadInput, match='metrics=accuracy'): compare('digits', workers=1, **{**quick, 'strategies': 'bare'})

# how long it takes

def study(tmp_path, **kwargs):
    how = dict(strategies=['feature-extraction', 'fine-tuning'], shots=[1, 5, 20], seeds=6, steps=100, tune='none', out=tmp_path, workers=1, say=None)
    return Study(task('digits', 'glyphnet', device='cpu'), **{**how, **kwargs})

def test_trimming_does_not_make_what_is_left_dearer(tmp_path, monkeypatch):
    "A pass over 20 labels per class costs the same whether 100 are asked for or not"
    st = study(tmp_path, shots=[1, 20, 100])
    st.cost = {'feature-extraction': (1., 100., 0.), 'fine-tuning': (0., 0., 0.)}
    monkeypatch.setattr(Study, 'timings', lambda self: st.cost)
    one = st.minutes([20], 3)
    assert one == pytest.approx(3*20/60, rel=.05) and st.minutes([1, 20], 3) == pytest.approx(one + 3/60)
    st.plan(budget=1.2*(st.minutes([1, 20], 3)))
    assert st.shots == [1, 20] and st.seeds == 3 and st.minutes([20], 3) == one
    with pytest.raises(BadInput, match='even 3 seeds'): st.plan(budget=1e-4)

def test_setting_up_is_no_step(tmp_path, monkeypatch):
    "A run of a second's set-up and steps of 10 ms: 100 steps take two seconds"
    monkeypatch.setattr(module, 'run_spec', lambda task, spec: dict(wall=1 + .01*spec['steps']))
    st = study(tmp_path)
    st.cost = st.timings()
    assert st._seconds(st.cost['fine-tuning'], 20, 100) == pytest.approx(2, rel=.01)
    assert st.timings() == {k: list(v) for k,v in st.cost.items()}, 'kept in the store'

# notes

def test_notes_are_those_of_this_asking(tmp_path, monkeypatch):
    kw = dict(strategies=['feature-extraction'], shots=[1], steps=2)
    monkeypatch.setattr(Study, 'timings', lambda self: {'feature-extraction': (1., 1., 0.)})
    first = study(tmp_path, **kw, seeds=9).plan(budget=3.5/60).choose().run().finish()
    second = study(tmp_path, **kw, seeds=3).plan().choose().run().finish()
    third = study(tmp_path, **kw, seeds=9).plan(budget=3.5/60).choose().run().finish()
    assert first.specs == second.specs == third.specs, 'the same runs'
    assert [any('To fit' in n for n in c.notes) for c in (first, second, third)] == [True, False, True]
    assert stored_comparison(third.records).notes == third.notes

def test_a_run_is_never_replaced(tmp_path):
    r = study(tmp_path).records
    with pytest.raises(BadInput, match='stored once'): r.add(dict(a=1), dict(pred=np.zeros(3)), again=True)

# what cannot be

def no_valid(tmp_path):
    "A folder whose validation part lacks a class"
    for part,classes in ('train', ('a', 'b')), ('valid', ('a',)), ('test', ('a', 'b')): pictures(tmp_path/'d'/part, 6, len(part), classes)
    return tmp_path/'d'

def test_validation_without_a_class(tmp_path):
    d = no_valid(tmp_path)
    with pytest.raises(BadInput, match="no validation picture of 'b'.*--tune none"): compare(d, **{**quick, 'tune': 'valid'})
    c = compare(d, **quick)
    assert c.specs['feature-extraction', 2][0]['V'] is None and len(c.cells) == 1

def test_output_inside_the_pictures(tmp_path):
    d = pictures(tmp_path/'pics', 12)
    with pytest.raises(BadInput, match='lies inside'): compare(d, out=d/'out', **quick)
    assert not (d/'out').exists()

# the command line

def command(*args): return cli.main(['compare', *map(str, args), '--backbone', 'glyphnet', '--shots', '2', '--seeds', '3', '--steps', '2',
                                     '--tune', 'none', '--strategies', 'feature-extraction', '--size', '32', '--device', 'cpu'])

def test_a_folder_is_no_place_for_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, 'compare', lambda *args, **kwargs: pytest.fail('it ran'))
    assert command('digits', '--json', tmp_path) == 2
    err = capsys.readouterr().err
    assert 'is a folder' in err and err.count('\n') == 1

def test_two_folders_of_one_name_have_two_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i,place in enumerate('ab'): pictures(tmp_path/place/'pics', 10, seed=i)
    assert command('a/pics') == command('b/pics') == command('a/pics/') == 0
    outs = sorted(p.name for p in (tmp_path/'tlcourse-out').iterdir())
    assert len(outs) == 2 and all(o.startswith('pics-') and o.endswith('-glyphnet') for o in outs)
    os.symlink(tmp_path/'a'/'pics', tmp_path/'link')
    assert command('link') == 0 and len(list((tmp_path/'tlcourse-out').iterdir())) == 2, 'the same pictures, the same place'

def test_json_tells_classes_and_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command('digits', '--json', 'j.json') == 0
    j = json.loads((tmp_path/'j.json').read_text())
    assert j['classes'] == list('0123456789') and set(j['parts']) == set(j['classes'])
    assert sum(n for _,_,n in j['parts'].values()) == 500

def test_costs_under_shift_count_the_tuning_runs(tmp_path):
    from tlcourse.report import report_html
    kw = {**quick, 'tune': 'valid', 'V': 1, 'out': tmp_path}
    c = compare('digits', shifts=['blur'], **kw)
    n = len(c.rates[0]['tried'])
    row = report_html(c).split('<span>Cost in CPU seconds')[1].split('<tbody>')[1].split('</tr>')[0]
    assert n >= 3 and f'>{n}<' in row, row
