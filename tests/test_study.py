"The parts of `compare`: the task, the registry of strategies, the estimate, the notes, the places of output."
import json, os
import numpy as np, pytest
from PIL import Image
from tlcourse import budget, cli, runs, study_stages
from tlcourse import compare as module
from tlcourse.backbones import arch
from tlcourse.learner import learner
from tlcourse.base import BadInput
from tlcourse.budget import _budget
from tlcourse.compare import compare
from tlcourse.comparison import Comparison, stored_comparison
from tlcourse.data import Target, target
from tlcourse.strategy import STRATEGIES, stepped, strategy
from tlcourse.runs import Heads, run_spec, task
from tlcourse.study import Study
from staged import ACC, made_staged
from types import SimpleNamespace

quick = dict(backbone='glyphnet', shots=[2], seeds=3, steps=2, tune='none', strategies='feature-extraction', size=32,
             say=None, device='cpu')

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
            run_spec(job, dict(kind='tune', strategy='scratch', shots=1, seed=seed, bs=32, augment=True, V=2, lr=.005,
                               steps=1, code=code))
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
    assert spec['lr'] == 2e-3 and len(spec['strategy_code']) == 16
    assert 'strategy_code' not in c.specs['feature-extraction', 2][0]
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
    with pytest.raises(BadInput, match='metrics=accuracy'):
        compare('digits', workers=1, **{**quick, 'strategies': 'bare'})

# how long it takes

def study(tmp_path, **kwargs):
    how = dict(strategies=['scratch', 'fine-tuning'], shots=[1, 5, 20], seeds=6, steps=100, tune='none', out=tmp_path,
               workers=1, say=None)
    return Study(task('digits', 'glyphnet', device='cpu'), **{**how, **kwargs})

def costs(monkeypatch, picture=0., **by):
    "Runs that cost what `by` says, arm to (seconds besides the steps, seconds a step)"
    monkeypatch.setattr(Study, 'timings',
                        lambda self: {k.replace('_', '-'): dict(once=a, step=b) for k,(a,b) in by.items()})
    monkeypatch.setattr(Study, '_picture', lambda self: (picture, picture))

def planned(st): return [c for s in st.todo for c in s]

def test_a_budget_leaves_out_cells_from_the_end(tmp_path, monkeypatch):
    "Cells of 100 steps of 10 ms, 1 s a run: six seeds of six cells take 36 s, three seeds 18"
    costs(monkeypatch, scratch=(0, .01), fine_tuning=(0, .01))
    order = [c for s in study(tmp_path).later() for c in s]
    assert order[:2] == [('scratch', 20), ('fine-tuning', 20)]
    assert order[2:] == [(a, k) for k in (5, 1) for a in ('scratch', 'fine-tuning')]
    st = study(tmp_path, bs=2) # Full batches at every size
    for seconds,cells,seeds in (60, 6, 6), (31, 6, 5), (20, 6, 3), (13, 4, 3), (16, 5, 3):
        monkeypatch.setattr('time.monotonic', lambda: st.began)
        st.missing, st._notes = [], {}
        st.plan(seconds/60)
        assert planned(st) == order[:cells], seconds
        assert {st.n[c] for c in order[:cells]} == {seeds}
        assert [c for c,_ in st.missing] == order[cells:] and all(s == pytest.approx(3) for _,s in st.missing)
        assert any(f'{seeds} seeds instead of 6' in n for n in st.notes) == (seeds < 6)
        assert sum('takes about 3 s more' in n for n in st.notes) == 6 - cells
    with pytest.raises(BadInput, match='even scratch at 20 labels per class takes about 3 s: raise --budget'):
        st.plan(1/60)

def test_cells_come_before_seeds(tmp_path, monkeypatch):
    """Fine-tuning takes 10 s a run: in 51 s three cells take 36 with three seeds and 48 with
    four, and a cell is left out"""
    costs(monkeypatch, scratch=(0, .01), fine_tuning=(0, .1))
    st = study(tmp_path, bs=2)
    monkeypatch.setattr('time.monotonic', lambda: st.began)
    st.plan(51/60)
    assert len(planned(st)) == 3 and {st.n[c] for c in planned(st)} == {3}
    assert st.missing[0] == (('fine-tuning', 5), pytest.approx(30))

@pytest.mark.parametrize('left, seeds', [(10.9, 3), (11.3, 4), (21.9, 4), (22.3, 5), (40, 6)])
def test_minutes_left_go_to_the_last_row(left, seeds, tmp_path, monkeypatch):
    "Another seed of both its cells takes 11 s"
    costs(monkeypatch, scratch=(0, .01), fine_tuning=(0, .1))
    st, ran, said = study(tmp_path, bs=2), {}, []
    st.say = said.append
    monkeypatch.setattr('time.monotonic', lambda: st.began)
    st.plan(51/60)
    last = [('scratch', 20), ('fine-tuning', 20)]
    for a,k in last:
        for i in 0, 1, 2:
            st.records.add(st.spec(a, k, STRATEGIES[a].rate, i, 'report'), dict(pred=np.zeros(500, np.uint16)))
    monkeypatch.setattr('time.monotonic', lambda: st.began + .98*51 - left)
    monkeypatch.setattr(Study, '_run_cells', lambda self, todo: ran.update(todo))
    c = st.spend(SimpleNamespace(stage=3), lambda stage: f'told {stage}')
    assert ran == ({} if seeds == 3 else dict.fromkeys(last, seeds)), said
    if seeds > 3: assert c == 'told 3' and f'There is time for {seeds} seeds of scratch and fine-tuning' in said[-1]
    assert any(f'3 seeds instead of 6 in the cells that train, {seeds} of them at 20 labels per class.' in o
               for o in st.notes) == (seeds > 3)

def test_the_rest_is_planned_anew(tmp_path, monkeypatch):
    "Stage 2 was to take 6 s of 13 and took half a second: all cells fit; it took 12: none does"
    costs(monkeypatch, scratch=(0, .01), fine_tuning=(0, .01))
    order = [c for s in study(tmp_path).later() for c in s]
    for took,more in (.5, 4), (6, 2), (12, 0):
        st = study(tmp_path, bs=2, seeds=3)
        monkeypatch.setattr('time.monotonic', lambda: st.began)
        st.plan(13/60)
        assert st.todo == [order[:2], order[2:4]] and len(st.missing) == 2
        st.cells = [dict(strategy=a, shots=k) for a,k in order[:2]]
        monkeypatch.setattr('time.monotonic', lambda: st.began + took)
        st.replan()
        assert st.todo[1] == order[2:2+more] and [c for c,_ in st.missing] == order[2+more:]
        assert sum('Not run within' in n for n in st.notes) == 4 - more

def test_a_cell_comes_back_when_the_rates_are_chosen(tmp_path, monkeypatch):
    "The choice was to take long and did not: what follows stage 2 is planned anew, stage 2 stays whatever it costs"
    costs(monkeypatch, scratch=(0, .01), fine_tuning=(0, .01))
    order = [c for s in study(tmp_path).later() for c in s]
    for took,more in (.5, 3), (5, 2), (20, 0):
        st = study(tmp_path, bs=2, seeds=3)
        monkeypatch.setattr(Study, '_left', lambda self: 17)
        st.plan(17/60)
        monkeypatch.setattr(Study, '_left', lambda self: 17 - took)
        st.replan(order[:2])
        assert st.todo[0] == order[:2] and st.todo[1] == order[2:2+more], took

def test_no_core_waits_for_the_last_run_of_stage_2(tmp_path, monkeypatch):
    "On photos the curve takes over rates, so its runs go behind those of stage 2; the table of stage 2 does not wait"
    monkeypatch.setattr(Study, '_race', True)
    swept, told, real = [], [], Study.sweep
    def sweep(self, specs, on_done=None):
        if specs: swept.append([s['shots'] for s in specs])
        return real(self, specs, on_done)
    monkeypatch.setattr(Study, 'sweep', sweep)
    def run(folder, **kwargs):
        st = study(folder, strategies=['fine-tuning'], shots=[5, 20], seeds=3, steps=2, **kwargs)
        def on_stage(c): told.append((c.stage, len(c.cells), len(st.records.rows(kind='report', shots=5))))
        return st.run('none', on_stage)
    c = run(tmp_path/'a')
    assert swept == [[20]*3 + [5]*3]
    assert told == [(2, 1, 0), (3, 2, 3)]
    monkeypatch.setattr(Study, 'ahead', lambda self, cells: []) # One after another, as on drawn glyphs
    d = run(tmp_path/'b')
    assert swept[1:] == [[20]*3, [5]*3] and told[2:] == told[:2]
    assert [(x['shots'], x['mean']) for x in c.cells] == [(x['shots'], x['mean']) for x in d.cells]

def test_stored_runs_cost_nothing(tmp_path, monkeypatch):
    costs(monkeypatch, scratch=(0, .01), fine_tuning=(0, .01))
    st = study(tmp_path, bs=2)
    c = 'fine-tuning', 5
    st.cost = st.timings()
    assert st.cell_seconds(c, 6) == pytest.approx([0, 1, 2, 3, 4, 5, 6])
    for i in 0, 1:
        st.records.add(st.spec(*c, STRATEGIES['fine-tuning'].rate, i, 'report'), dict(pred=np.zeros(500, np.uint16)))
    assert st.cell_seconds(c, 6) == pytest.approx([0, 0, 0, 1, 2, 3, 4])

def test_a_choice_of_rates_costs_its_runs(tmp_path, monkeypatch):
    "Four rates on three seeds, as long as none is stored; at one label per class none is chosen"
    costs(monkeypatch, scratch=(0, .01), fine_tuning=(0, .01))
    st = study(tmp_path, bs=2, tune='valid')
    st.cost = st.timings()
    assert st.cell_seconds(('fine-tuning', 5), 5)[-1] == pytest.approx(12 + 5)
    assert st.cell_seconds(('fine-tuning', 1), 5)[-1] == pytest.approx(5)

def test_the_time_of_a_run(tmp_path, monkeypatch):
    "Set-up, steps (a small batch costs its share) and passes over the pictures that are looked at"
    costs(monkeypatch, picture=.1, scratch=(2, .01), fine_tuning=(2, .01))
    st = study(tmp_path, bs=20)
    st.cost, t = st.timings(), st.target
    assert st.run_seconds(('fine-tuning', 20)) == pytest.approx(2 + 1 + .1*(len(t.valid) + 500))
    assert st.run_seconds(('fine-tuning', 1)) == pytest.approx(2 + .5 + .1*(len(t.valid) + 500))
    assert st.run_seconds(('scratch', 20)) == pytest.approx(2 + 1 + .1*(len(t.valid) + 500 + 200))
    assert st.run_seconds(('fine-tuning', 20), 'tune', 1/3) == pytest.approx(2 + 1/3 + .1*50)

def test_timing_takes_set_up_and_steps_apart(monkeypatch):
    from tlcourse import runs
    clock = [0.]
    monkeypatch.setattr(runs.time, 'perf_counter', lambda: clock[0])
    def fit(dls, steps): clock[0] += 1 + .01*steps
    assert runs._timed(fit, None, 4) == dict(once=pytest.approx(1), step=pytest.approx(.01))

def test_the_default_budget(digits):
    emoji = target('emoji')
    assert [_budget(None, emoji, 'cpu'), _budget(None, emoji, 'cuda'), _budget(None, digits, 'cpu'),
            _budget('none', emoji, 'cpu'), _budget('2.5', digits, 'cpu')] == [10, None, None, None, 2.5]
    for bad in '0', -1, 'soon', 'nan':
        with pytest.raises(BadInput, match='more than 0, or none'): _budget(bad, digits, 'cpu')

# stages

def test_a_study_of_photos_has_its_order(tmp_path):
    st = Study(task('emoji', device='cpu'), say=None, out=tmp_path)
    assert st.arms == ['feature-extraction', 'last-layers', 'fine-tuning', 'fine-tuning+aug']
    assert st.beside == ['k-nn', 'random-features']
    assert st.shots[-1] == 'all' and st.shots[:3] == [1, 5, 20] and not st.augment
    two, three = st.later()
    assert two == [('last-layers', 'all'), ('fine-tuning', 'all')]
    assert three == [('fine-tuning', k) for k in (20, 5, 1)] + [('fine-tuning+aug', 'all')]
    st = Study(task('emoji', device='cpu'), 'scratch,fine-tuning,feature-extraction', [5, 'all'], say=None,
               out=tmp_path)
    assert st.later() == [[('fine-tuning', 'all')], [('fine-tuning', 5), ('scratch', 'all'), ('scratch', 5)]]
    assert not st.beside

def test_steps_hang_on_the_cell_alone(tmp_path):
    st = Study(task('digits', device='cpu'), say=None, out=tmp_path)
    # 1,000 pictures are 32 batches
    assert st.shots == [1, 5, 20, 100] and [st.steps_of(k) for k in st.shots] == [150, 150, 150, 160]
    for k in st.shots: assert {st.spec(a, k, .1, 0)['steps'] for a in st.trained} == {st.steps_of(k)}
    st = Study(task('emoji', device='cpu'), say=None, out=tmp_path)
    assert st.steps_of(1) == 80 and st.steps_of('all') == max(80, 5*-(-len(st.target.train)//32))

def test_stages_are_told_and_stored_one_by_one(tmp_path):
    told = []
    kw = dict(shots=[2, 5], seeds=3, steps=2, tune='none', strategies='feature-extraction,fine-tuning', workers=1,
              say=None, device='cpu')
    def see(c):
        told.append((c.stage, [(x['strategy'], x['shots'], x['seeds']) for x in c.cells],
                     stored_comparison(c.records).stage))
    c = compare('digits', on_stage=see, out=tmp_path, **kw)
    heads = [('feature-extraction', 2, 20), ('feature-extraction', 5, 20)]
    assert told[0] == (1, heads, 1)
    assert told[1] == (2, [heads[0], heads[1], ('fine-tuning', 5, 3)], 2)
    assert told[2] == (3, [heads[0], ('fine-tuning', 2, 3), heads[1], ('fine-tuning', 5, 3)], 3) and len(told) == 3
    assert [x['strategy'] for x in c.cells] == ['feature-extraction', 'fine-tuning']*2

def test_a_second_start_measures_and_extracts_nothing(tmp_path, monkeypatch):
    kw = dict(shots=[2, 5], seeds=3, steps=2, bs=8, strategies='feature-extraction,fine-tuning', workers=1,
              device='cpu', out=tmp_path)
    first, lines = compare('digits', say=lambda _: None, **kw), []
    def never(*args, **kwargs): raise AssertionError('asked again')
    for at,name in (budget, 'picture_seconds'), (budget, 'fit_probes'), (study_stages, 'Heads'), (runs, 'fit_probes'):
        monkeypatch.setattr(at, name, never)
    again = compare('digits', say=lines.append, **kw)
    assert again.cells == first.cells and 'Stage 1, frozen features: all of it is stored.' in lines

def test_an_arm_alone_and_in_company(tmp_path):
    "What an arm does hangs on no other arm: rates, runs, answers"
    kw = dict(shots=[5], seeds=3, steps=3, V=2, bs=8, workers=1, say=None, device='cpu')
    both = compare('digits', strategies='scratch,feature-extraction,fine-tuning', out=tmp_path/'both', **kw)
    for a in 'feature-extraction', 'fine-tuning':
        one = compare('digits', strategies=a, out=tmp_path/a, **kw)
        assert one.specs[a, 5] == both.specs[a, 5] and (one.correct[a, 5] == both.correct[a, 5]).all()
        assert [r for r in one.rates if r['strategy'] == a] == [r for r in both.rates if r['strategy'] == a]

def test_all_is_one_run_of_heads_and_no_draw(tmp_path):
    d = pictures(tmp_path/'pics', 30)
    c = compare(d, **{**quick, 'shots': [2, 'all'], 'out': tmp_path/'out'})
    by = {x['shots']: x for x in c.cells}
    assert (by[2]['seeds'], by['all']['seeds']) == (20, 1)
    t = target(d, size=32)
    assert c.specs['feature-extraction', 'all'][0]['shots'] == 'all'
    assert sum(n[0] for n in c.parts.values()) == len(t.train)

def test_every_draw_is_the_same_where_all_pictures_are_drawn(tmp_path):
    "20 seeds of a class's last picture are 20 times one head, which the seal sees once"
    d = pictures(tmp_path/'pics', 12)
    t = target(d, size=32)
    assert set(t.train.counts.values()) == {t.max_shots}
    c = compare(t, **{**quick, 'shots': [t.max_shots], 'size': None})
    assert c.cells[0]['seeds'] == 20
    assert (c.correct['feature-extraction', t.max_shots] == c.correct['feature-extraction', t.max_shots][0]).all()

def test_the_control_gets_its_statistics_from_the_training_pictures(digits):
    job = task('digits', 'glyphnet', device='cpu')
    plain, random = Heads(job), Heads(job, control=True)
    assert plain.bn == 'eval' and random.bn is job.target.train and random.net.weights_id == 'random'

def test_a_control_without_statistics(digits):
    "A network without BatchNorm has none to count: its random body is taken as it is"
    from tlcourse.runs import Task
    heads = Heads(Task(target('digits', size=64), arch('squeezenet1_1', 'random')), control=True, progress=False)
    spec = dict(strategy='random-features', shots=1, seed=0, wd=1.)
    assert heads.bn == 'eval' and heads.run([spec])[0]['pred'].shape == (500,)

def test_heads_are_scored_on_the_device_of_the_task(digits, monkeypatch):
    "And not on the default one, as the features they were fitted to"
    seen, real = [], Target.score_heads
    def scored(self, *args, **kwargs): seen.append(kwargs['device']); return real(self, *args, **kwargs)
    monkeypatch.setattr(Target, 'score_heads', scored)
    Heads(task('digits', 'glyphnet', device='cpu'),
          progress=False).run([dict(strategy='feature-extraction', shots=1, seed=0, wd=1.)])
    assert seen == ['cpu']

def test_heads_are_what_the_strategy_trains(digits, tmp_path):
    "A head of a study and a Learner by `feature_extraction` give the same answers"
    from tlcourse.finetune import feature_extraction
    c = compare('digits', **{**quick, 'shots': [5], 'augment': False, 'size': None, 'out': tmp_path})
    spec = c.specs['feature-extraction', 5][3]
    learn = feature_extraction(digits.dls(shots=5, seed=3, augment=False, device='cpu'), 'glyphnet', wd=spec['wd'],
                               progress=False)
    pred = digits.unopened().score(learn).pred
    assert (pred == c.records.get(spec)['pred']).mean() > .995

# looks: more seeds where the decision is open

@pytest.mark.parametrize('bad', ['2', '5,4', '5,5', [5, 10, 8], '', 'many', [2, 5], 4.5])
def test_looks_that_are_none(bad):
    with pytest.raises(BadInput, match='seeds'): compare('digits', **{**quick, 'seeds': bad})

def looked(tmp_path, monkeypatch, settled, seeds='3,4,5', budget=None, shots=(5,)):
    "A study of two arms, with few pictures to score, settled once its rows have so many seeds; and what it said"
    monkeypatch.setattr(Comparison, 'settled', lambda self, p: len(self.correct['fine-tuning', 5]) >= settled)
    lines = []
    few = task(pictures(tmp_path/'few', 15), 'glyphnet', size=32, device='cpu')
    st = Study(few, ['single-rate', 'fine-tuning'], shots, seeds, 2, 'none', out=tmp_path/'out', workers=1,
               say=lines.append)
    st._undecided = lambda c: {(a, 5) for a in ('single-rate', 'fine-tuning')} if not c.settled(None) else set()
    with st.pool: return st.run(budget), st, lines

@pytest.mark.parametrize('settled,want,shots', [(3, 3, [5]), (4, 4, [1, 5]), (99, 5, [5])])
def test_seeds_come_until_the_decision_is_settled(tmp_path, monkeypatch, settled, want, shots):
    c, st, lines = looked(tmp_path, monkeypatch, settled, shots=shots)
    assert ({(x['strategy'], x['shots']): x['seeds'] for x in c.cells}
            == {(a, k): want if k == 5 else 3 for a in ('single-rate', 'fine-tuning') for k in shots})
    assert c.settings['looks'] == [3, 4, 5] and c.settings['seeds'] == 3 and c.looks == 3
    assert sum('The decision is open' in o for o in lines) == want - 3
    assert stored_comparison(st.records).correct['single-rate', 5].shape[0] == want

def test_looks_end_with_the_minutes(tmp_path, monkeypatch):
    costs(monkeypatch, single_rate=(1., 0.), fine_tuning=(1., 0.))
    c, st, lines = looked(tmp_path, monkeypatch, 99, '3,900', 60/60)
    assert {x['seeds'] for x in c.cells} == {3}
    assert any('900 seeds of single-rate and fine-tuning would take about' in n for n in c.notes)

def test_which_cells_are_undecided(tmp_path):
    "The arms of open differences at the last size that train; an edge of a grid is not settled by seeds"
    def of(**kw):
        d = tmp_path/str(len(list(tmp_path.glob('*'))))
        d.mkdir()
        return Study._undecided(SimpleNamespace(trained=['last-layers', 'fine-tuning']),
                                made_staged(d, looks=[5, 10, 20], **kw))
    near = {**ACC, 'last-layers': {'all': .975}}
    assert of(acc={**ACC, 'last-layers': {'all': .8}}) == set()
    assert of(acc=near) == {('last-layers', 'all'), ('fine-tuning', 'all')}
    assert of(acc=near, edges=[('last-layers', 'all')]) == set()

# notes

def test_the_last_stage_is_the_last_that_has_a_cell(tmp_path):
    "Also where the second has none; the report of such a study was taken for a damaged one"
    st = study(tmp_path)
    for todo,n in ([[], []], 1), ([['cell'], []], 2), ([[], ['cell']], 3), ([['cell'], ['cell']], 3):
        st.todo = todo
        assert st.stages == n

def test_notes_are_those_of_this_asking(tmp_path, monkeypatch):
    costs(monkeypatch, scratch=(1., 0.), fine_tuning=(1., 0.))
    monkeypatch.setattr(Study, 'spend', lambda self, c, told: c) # The runs are quicker than they are said to be
    kw = dict(strategies=['fine-tuning'], shots=[1], steps=2)
    def asked(seeds, budget): return study(tmp_path, **kw, seeds=seeds).run(budget)
    third = [asked(9, 3.5/60), asked(3, None), asked(9, 'none')]
    assert third[0].specs == third[1].specs and len(third[2].specs['fine-tuning', 1]) == 9
    assert [any('To fit' in n for n in c.notes) for c in third] == [True, False, False]
    assert stored_comparison(third[2].records, seeds=9).notes == third[2].notes

def test_a_run_is_never_replaced(tmp_path):
    r = study(tmp_path).records
    with pytest.raises(BadInput, match='stored once'): r.add(dict(a=1), dict(pred=np.zeros(3)), again=True)

# what cannot be

def no_valid(tmp_path):
    "A folder whose validation part lacks a class"
    for part,classes in ('train', ('a', 'b')), ('valid', ('a',)), ('test', ('a', 'b')):
        pictures(tmp_path/'d'/part, 6, len(part), classes)
    return tmp_path/'d'

def test_validation_without_a_class(tmp_path): # I6
    d = no_valid(tmp_path)
    with pytest.raises(BadInput, match="no validation picture of 'b'.*--tune none"):
        compare(d, **{**quick, 'tune': 'valid'})
    c = compare(d, **quick)
    assert len(c.cells) == 1

def test_sizes_that_a_small_class_cannot_supply_are_left_out(tmp_path): # I15
    "40, 40 and 3 pictures: one label per class and all, with a line; more is refused"
    for c,n in ('a', 40), ('b', 40), ('c', 3): pictures(tmp_path/'d', n, ord(c), (c,))
    job = task(tmp_path/'d', 'glyphnet', size=32, device='cpu')
    assert job.target.counts['c'] == [1, 1, 1] and job.target.counts['a'] == [24, 8, 8]
    st = Study(job, strategies=['scratch', 'fine-tuning'], seeds=3, steps=2, tune='none', out=tmp_path/'o', workers=1,
               say=None)
    assert st.shots == [1, 'all'] and ('fine-tuning', 'all') in [c for s in st.later() for c in s]
    assert any('holds 1 training picture: sizes stop at' in n and '--min-class leaves small classes out' in n
               for n in st.notes)
    with pytest.raises(BadInput, match='5 labels per class asked for, but the smallest class of d has 1'):
        compare(tmp_path/'d', **{**quick, 'shots': [5]})

def test_output_inside_the_pictures(tmp_path):
    d = pictures(tmp_path/'pics', 12)
    with pytest.raises(BadInput, match='lies inside'): compare(d, out=d/'out', **quick)
    assert not (d/'out').exists()

# the command line

def command(*args):
    return cli.main(['compare', *map(str, args), '--backbone', 'glyphnet', '--shots', '2', '--seeds', '3', '--steps',
                     '2',
                     '--tune', 'none', '--strategies', 'feature-extraction', '--size', '32', '--device', 'cpu'])

def test_a_folder_is_no_place_for_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, 'compare', lambda *args, **kwargs: pytest.fail('it ran'))
    assert command('digits', '--json', tmp_path) == 2
    err = capsys.readouterr().err
    assert 'is a folder' in err and err.count('\n') == 1

def test_two_folders_of_one_name_have_two_reports(tmp_path, capsys, monkeypatch): # I16
    monkeypatch.chdir(tmp_path)
    for i,place in enumerate('ab'): pictures(tmp_path/place/'pics', 10, seed=i)
    assert command('a/pics') == command('b/pics') == command('a/pics/') == 0
    outs = sorted(p.name for p in (tmp_path/'tlcourse-out').iterdir())
    assert len(outs) == 2 and all(o.startswith('pics-') and o.endswith('-glyphnet') for o in outs)
    os.symlink(tmp_path/'a'/'pics', tmp_path/'link')
    assert command('link') == 0 and len(list((tmp_path/'tlcourse-out').iterdir())) == 2, (
        'the same pictures, the same place')

def test_json_tells_classes_and_parts(tmp_path, monkeypatch): # I1
    monkeypatch.chdir(tmp_path)
    assert command('digits', '--json', 'j.json') == 0
    j = json.loads((tmp_path/'j.json').read_text())
    assert j['classes'] == list('0123456789') and set(j['parts']) == set(j['classes'])
    assert sum(n for _,_,n in j['parts'].values()) == 500

def test_json_tells_how_the_pictures_were_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for c in 'ab':
        (tmp_path/'pics'/c).mkdir(parents=True)
        for i in range(10):
            x = np.random.RandomState(i + 50*(c == 'b')).randint(0, 1024, (40,90)).astype(np.uint16)
            Image.fromarray(x).save(tmp_path/'pics'/c/f'{i}.png')
    (tmp_path/'pics'/'a'/'note.png').write_text('no picture')
    (tmp_path/'pics'/'b'/'again.png').write_bytes((tmp_path/'pics'/'a'/'0.png').read_bytes())
    assert command('pics', '--backbone', 'glyphnet', '--size', '32', '--fit', 'pad', '--json', 'j.json') == 0
    j = json.loads((tmp_path/'j.json').read_text())
    assert (j['range'], j['fit']) == ([0, 1023], 'pad') and [o['file'] for o in j['skipped']] == ['a/note.png']
    assert j['conflicts'] == [dict(file='a/0.png', label='a', other='b/again.png', other_label='b', kind='same')]
    assert j['notes'][0].startswith('pics: 2 classes') and j['notes'][1].startswith('under two labels')

def test_costs_under_shift_count_the_tuning_runs(tmp_path):
    from tlcourse.report import report_html
    kw = {**quick, 'strategies': 'fine-tuning', 'shots': [5], 'tune': 'valid', 'V': 1, 'bs': 8, 'out': tmp_path}
    c = compare('digits', shifts=['blur'], **kw)
    n = 3*len(c.rates[0]['tried'])
    row = report_html(c).split('<span>Cost in CPU seconds')[1].split('<tbody>')[1].split('</tr>')[0]
    assert n >= 9 and f'>{n}<' in row, row
