"The benchmarks' timing, by itself, and the scripts on features and probes, at their smallest."
import json, subprocess, sys, time
import numpy as np, pytest, torch
from PIL import Image
from conftest import ROOT, python

sys.path.insert(0, str(ROOT/'benchmarks'))
import timing  # noqa: E402

def burn(secs):
    end = time.process_time() + secs
    while time.process_time() < end: pass

def test_rounds_run_every_arm_once_a_round():
    seen, made = [], []
    arms = {k: (lambda k=k: seen.append(k)) for k in 'abc'}
    arms['d'] = lambda: made.append(burn(.05)) or 7, lambda o: seen.append('d') or o
    out = {}
    r = timing.rounds(arms, 4, 1, results=out)
    assert {k: len(v) for k,v in r.items()} == dict(a=4, b=4, c=4, d=4)
    by_round = [''.join(seen[i:i+4]) for i in range(0, 20, 4)]
    assert all(sorted(o) == list('abcd') for o in by_round) and len(set(by_round)) > 1, 'interleaved, in shuffled order'
    assert len(made) == 5 and max(r['d']) < .04 and out['d'] == 7, 'set-up is made anew each time and not timed'
    again = []
    timing.rounds({k: (lambda k=k: again.append(k)) for k in 'abcd'}, 4, 1)
    assert again == seen, 'the same order again'

def test_one_thread_inside():
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        out = {}
        timing.rounds({'a': torch.get_num_threads}, 1, 0, results=out)
        assert out['a'] == 1 and torch.get_num_threads() == 2
    finally: torch.set_num_threads(n)

def test_clocks():
    def nap(): time.sleep(.2)
    cpu, wall = (timing.rounds({'nap': nap}, 1, 0, clock=c)['nap'][0] for c in ('process', 'wall'))
    assert cpu < .1 and .19 < wall < 2
    code = 'import time\nt = time.process_time() + .4\nwhile time.process_time() < t: pass'
    child = timing.rounds({'child': lambda: subprocess.run([sys.executable, '-c', code], check=True)}, 1, 0)['child'][0]
    assert child > .35, 'processes that were waited for count'

def test_ratio_is_by_rounds():
    r = timing.ratio([2, 40, 9], [1, 10, 3])
    assert r == dict(ratio=3, low=2, high=4, n=3)
    with pytest.raises(ValueError): timing.ratio([1, 2], [1])
    assert timing.times(10, [1, 2]) == [10, 20] and timing.plus([1, 2], [10, 20]) == [11, 22]
    with pytest.raises(ValueError): timing.plus([1, 2], [1])

@pytest.mark.parametrize('kind,limit,reached', [(timing.at_most, 3, True), (timing.at_most, 2.9, False),
                                                (timing.at_least, 3, True), (timing.at_least, 3.1, False)])
def test_targets(kind, limit, reached):
    o = kind('what', limit, timing.ratio([2, 40, 9], [1, 10, 3]), 'why')
    assert o['reached'] is reached and (o['value'], o['low'], o['high'], o['note']) == (3, 2, 4, 'why')
    assert timing.said('what', timing.ratio([1], [1]))['reached'] is None

def test_table_shows_spread_and_what_was_missed(capsys):
    timing.show([timing.at_most('first', 2, timing.ratio([2, 40, 9], [1, 10, 3])),
                 timing.at_least('second one', 2, timing.ratio([3], [1]), 'note')])
    head, a, b = capsys.readouterr().out.splitlines()
    assert 'MISSED' in a and '2 - 4' in a and 'reached' in b and b.endswith('note')
    assert a.index('<= 2') == b.index('>= 2') == head.index('target')

def test_saved_file(tmp_path):
    rows = [timing.row('a', '<= 1', np.float32(.5), .4, .6, np.bool_(True))]
    got = json.loads(timing.save(tmp_path/'x.json', rows, seconds={'a': [np.float64(1)]}).read_text())
    assert got['rows'][0]['reached'] is True and got['seconds'] == {'a': [1.0]} and got['device']['threads'] == 1
    assert {'date', 'versions', 'device', 'rows'} <= got.keys()
    assert got['versions']['torch'] == torch.__version__.split('+')[0]

def test_profile_only_where_a_target_is_missed(capsys):
    x, facts = torch.randn(300, 300), {}
    def f(): return x @ x
    timing.explain([timing.at_most('a', 2, timing.ratio([1], [1]))], f, facts)
    assert facts == {} and not capsys.readouterr().out
    missed = [timing.at_most('a', .5, timing.ratio([1], [1]))]
    timing.explain(missed, f, facts, what='a product')
    timing.explain(missed, lambda: sorted(range(9)), facts, 'python', what='a sort')
    assert 'aten::mm' in ''.join(facts['profile']['a product']) and 'sorted' in ''.join(facts['profile']['a sort'])
    assert 'aten::mm' in capsys.readouterr().out

def test_absent_peer_is_announced(capsys):
    assert timing.peer('no_such_package') is None
    assert len(capsys.readouterr().out.splitlines()) == 1 and timing.peer('json') is json

def smoke(name, tmp_path, *args):
    "One tiny run of a script; -> its output and its JSON"
    before = sorted((ROOT/'benchmarks').glob('*.json'))
    cmd = [*python(), ROOT/'benchmarks'/f'{name}.py', '--smoke', '--out', tmp_path/'out.json', *args]
    r = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path)
    assert not r.returncode, r.stderr
    assert sorted((ROOT/'benchmarks').glob('*.json')) == before
    return r.stdout, json.loads((tmp_path/'out.json').read_text())

@pytest.mark.slow
def test_speed_features(tmp_path):
    out, got = smoke('speed_features', tmp_path)
    names = [o['name'] for o in got['rows']]
    for what in ('linear head / bare pass', 'converged head / bare pass', 'fastai default', 'PyTorch tutorial',
                 'second call',
                 'views=4', "bn='adapt'", 'resident memory'):
        assert any(what in o for o in names), what
    assert all(o['low'] <= o['value'] <= o['high'] for o in got['rows']) and all(o['name'] in out for o in got['rows'])
    r = got['seconds']['resnet18']
    ours = r['decode + extract'][0] + r['converged head'][0]
    assert next(o['value'] for o in got['rows'] if 'converged head' in o['name']) == pytest.approx(ours/r['floor'][0])
    ten = 10*got['pictures']/got['pictures_of_an_epoch']*r['PyTorch tutorial'][0]
    first = next(o for o in got['rows'] if 'PyTorch tutorial' in o['name'])
    assert first['value'] == pytest.approx(ten/(r['decode + extract'][0] + r['ten epochs of a linear head'][0]))

@pytest.mark.slow
def test_speed_probes(tmp_path):
    out, got = smoke('speed_probes', tmp_path)
    exact = [o for o in got['rows'] if any(w in o['name']
                                           for w in ('objective against', 'gradient norm', 'did not converge'))]
    assert len(exact) == 9 and all(o['reached'] for o in exact), 'accuracy does not depend on the size of a run'
    assert any('one fp32 pass' in o['name'] for o in got['rows'])
    for s in got['sets'].values():
        assert s['errors']['scikit-learn, tol 1e-08']['gradient'] <= 1e-5, 'the reference'
        assert {k for k in s['seconds'] if k in s['errors']} == set(s['errors'])

def test_generated_pictures(tmp_path):
    import speed_features as sf
    a, b = (sf.draw_folder(tmp_path/o, 20, 5, seed=1) for o in 'ab')
    fs = sorted(a.rglob('*.jpg'))
    assert len(fs) == 30 and len(list((a/'train').rglob('*.jpg'))) == 16 and len({f.read_bytes() for f in fs}) == 30
    assert all(f.read_bytes() == (b/f.relative_to(a)).read_bytes() for f in fs), 'seeded'
    assert Image.open(fs[0]).size == (500, 375)

def test_floor_is_the_pass_that_extract_makes(tmp_path):
    "The limit does what the library cannot leave out, no less: the same decoded pictures, the same features"
    import speed_features as sf
    from tlcourse.backbones import arch
    folder = sf.draw_folder(tmp_path/'p', 20, 5, seed=1)
    with sf.cache(tmp_path/'c'): tr, va = sf.features(sf.target(folder, size=64), arch('resnet18', weights='random'))
    seen, run = [], sf.floor(folder, 'resnet18', 64)[0]
    pool = sf.F.adaptive_avg_pool2d
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sf.F, 'adaptive_avg_pool2d', lambda x, k: seen.append(pool(x, k)) or seen[-1])
        run()
    mine, theirs = torch.cat(seen).flatten(1).numpy(), np.concatenate([tr.x, va.x])
    near = np.abs(mine[:,None] - theirs[None]).max(2)
    assert (near.min(1) < 1e-3*np.abs(theirs).max()).all() and len(set(near.argmin(1))) == 20

# --- head

@pytest.mark.slow
def test_head(tmp_path):
    "All three parts at their smallest: each cell once, each difference that of its two cells"
    out, got = smoke('head', tmp_path)
    acc = {(c['shots'], c['head']): 100*c['mean'] for c in got['cells']}
    pairs = [((k, a), (k, b)) for a,b in (('plain', 'scikit-learn'), ('unit', 'plain')) for k in (1, 3)]
    pairs.append(((3, 'fine-tuning, unit'), (3, 'fine-tuning, plain')))
    assert set(acc) == {o for p in pairs for o in p} and len(got['cells']) == len(acc)
    assert len(got['rows']) == len(pairs)
    for o,(a,b) in zip(got['rows'], pairs):
        assert o['value'] == pytest.approx(acc[a] - acc[b]) and o['low'] <= o['value'] <= o['high'] and o['name'] in out
    assert [o['target'] for o in got['rows']] == ['>= -2', '>= -1', '', '', '>= -1']
    assert all(o['reached'] == (o['value'] >= float(o['target'][3:])) for o in got['rows'] if o['target'])

@pytest.fixture
def pooled_digits():
    import head
    from tlcourse.data import target
    t = target('digits')
    return head, t, *head.pool('digits', 32)

def test_pooled_features_are_those_of_each_part(pooled_digits):
    head, t, x, places = pooled_digits
    from tlcourse.backbones import arch
    from tlcourse.features import extract
    for p in t.train, t.valid:
        f = head.Pooled(t, x, places).features(p)
        want = extract(arch(t.backbone), p, device='cpu', cache=False, progress=False)
        assert np.abs(f.x - want.x).max() < 1e-4*np.abs(want.x).max() and (f.y == want.y).all()

def test_weight_decay_is_the_one_that_compare_chooses(pooled_digits, tmp_path):
    head, t, x, places = pooled_digits
    import tlcourse.study_stages
    from tlcourse.runs import task
    from tlcourse.study import Study
    how = dict(augment=False, out=tmp_path, workers=1, say=None)
    study = Study(task(t, device='cpu'), ['feature-extraction'], [1, 4], **how)
    mine = [head.decay(head.Pooled(t, x, places), k, dict(V=5)) for k in (1, 4)]
    theirs = [study._choose_wd('feature-extraction', k).rate for k in (1, 4)]
    assert mine == theirs and mine[0] == head.TABLE_WD != mine[1]

def test_head_on_unit_length(pooled_digits):
    "The rows have length sqrt(d), the layer does the same, and without it the arm is the library's fine-tuning"
    head, t, x, _ = pooled_digits
    from tlcourse.data import weights_hash
    u = head.unit(x)
    assert np.allclose((u*u).mean(1), 1, atol=1e-5) and np.allclose(head.Unit()(torch.tensor(x)).numpy(), u, atol=1e-5)
    dls = t.dls(3, bs=16, augment=False, device='cpu')
    how = dict(steps=2, lr=head.RATE, seed=0)
    plain, unit = (head.tuned(dls, t.backbone, head=h, **how) for h in ('plain', 'unit'))
    theirs = head.STRATEGIES['fine-tuning'](dls, t.backbone, progress=False, **how)
    assert weights_hash(plain.model) == weights_hash(theirs.model) != weights_hash(unit.model)
    seen = []
    unit.model[1][-1].register_forward_hook(lambda m, i, o: seen.append(i[0]))
    unit.model(next(iter(dls.valid))[0].as_subclass(torch.Tensor))
    assert torch.allclose((seen[0]**2).mean(1), torch.tensor(1.), atol=1e-4)

def test_rows_of_several_splits_are_their_means():
    import head
    a, b = np.array([[1, 0, 1], [0, 0, 1]], bool), np.array([[1, 1, 1], [0, 1, 1]], bool)
    assert (head.matrix([dict(right=a), dict(right=b)]) == [[.5, 0, 1], [.5, 1, 1]]).all()
    assert (head.matrix([dict(right=a)]) == a).all() and head.matrix([dict(right=a[0])]).shape == (1, 3)

# --- speed_decision

DECISION = dict(stage1=2, big=2, hand=3, digits=1, budget=3, announced=6) # Rows of each part

@pytest.mark.slow
@pytest.mark.parametrize('asked', ['stage1,big,hand,digits', 'budget,announced'])
def test_speed_decision(asked, tmp_path):
    """Some parts run, and leave the rows of the others where they are; `announced` has flowers17 from `budget`, and
    the two others by itself"""
    parts = asked.split(',')
    old = dict(rows=[dict(name='old', part=p) for p in DECISION], parts={p: dict(date='old') for p in DECISION})
    (tmp_path/'out.json').write_text(json.dumps(old))
    out, got = smoke('speed_decision', tmp_path, '--parts', asked)
    for part in parts:
        mine = [r for r in got['rows'] if r['part'] == part]
        assert len(mine) == DECISION[part] and all(r['name'] in out for r in mine), out
        assert all(np.isfinite([r['value'], r['low'], r['high']]).all() for r in mine)
    assert [r['part'] for r in got['rows'] if r['name'] == 'old'] == [p for p in DECISION if p not in parts]
    assert {p: o['date'] == 'old' for p,o in got['parts'].items()} == {p: p not in parts for p in DECISION}
    facts = got['parts']
    if 'hand' in parts:
        assert all(o['seconds']['process'] > 0 for o in facts['hand']['fastai'].values())
        assert ({(o['strategy'], o['shots']) for o in facts['hand']['cells']['ours']}
                >= {('feature-extraction', 'all'), ('last-layers', 'all'), ('fine-tuning', 2)})
    if 'announced' in parts:
        clock = facts['announced']['clock']
        assert clock.pop('flowers17') == facts['budget']['clock'] and {'1', '2'} <= set(facts['budget']['clock'])
        assert {n: set(o) for n,o in clock.items()} == {n: {'1', '2'} for n in ('digits', 'ants_bees')}

def test_a_part_that_there_is_not():
    r = subprocess.run([*python(), ROOT/'benchmarks/speed_decision.py', '--smoke', '--parts', 'stage'],
                       capture_output=True, text=True)
    assert r.returncode == 1 and "'stage' is none of stage1" in r.stderr

@pytest.fixture
def enlarged(tmp_path):
    "24 pictures made of three, one of each class"
    import speed_decision as sd
    from speed_training import photos
    photos(tmp_path/'few', 6, classes=3, side=(60, 50))
    return sd.enlarge(tmp_path/'big', sd.sources(tmp_path/'few'), 24, (400, 300))

def test_enlarged_pictures_lie_in_eight_ways(enlarged):
    fs = sorted(enlarged.rglob('*.jpg'))
    assert len(fs) == 24 and len({f.parent for f in fs}) == 3 and len({f.read_bytes() for f in fs}) == 24
    assert all([Image.open(f).getexif()[0x0112]
                for f in fs[i:i+8]] == [*range(1, 9)] and Image.open(fs[i]).size == (400, 300) for i in (0, 8, 16))

def test_bare_pass_of_a_decision_is_what_stage_1_does(enlarged, tmp_path, monkeypatch):
    "The same pixels, turned upright, and the same features"
    import speed_decision as sd
    from tlcourse.data import target
    from tlcourse.features import extract
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    t, parts = target(enlarged, size=64), sd.listed(enlarged, 64)
    assert (sorted(f for p in parts.values() for f,_ in p)
            == sorted(str(f.relative_to(enlarged)) for f in enlarged.rglob('*.jpg')))
    assert all({l for _,l in p} == set(t.classes) for p in parts.values())
    assert [str(enlarged/f) for f,_ in parts['train']] == list(map(str, t.train.paths))
    assert all((sd.picture(f, 64).transpose(2, 0, 1) == x.numpy()).all() for f,x in zip(t.train.paths, t.train.x))
    ours, bare = (extract(sd.NET, t.train, device='cpu', cache=False, progress=False),
                  sd.forward(sd.network(), t.train.paths, 64, bs=5))
    assert np.abs(bare - ours.x).max() < 1e-3*np.abs(ours.x).max()

def test_what_the_budget_must_leave_is_looked_for():
    from speed_decision import MUST, trimmed
    def study(): return dict(settings=dict(shots=[1, 5, 20, 'all']),
                             cells=[dict(strategy='feature-extraction', shots=k, seeds=1 if k == 'all' else 20)
                                    for k in (1, 5, 20, 'all')]
                                   + [dict(strategy=a, shots=k, seeds=3) for a,k in MUST],
                             rates=[dict(strategy=a, shots=k, fixed=False) for a,k in MUST])
    assert trimmed(study()) == []
    for i in range(7):
        c = study()
        c['cells'][i]['seeds'] -= 1
        assert len(trimmed(c)) == 1 and str(c['cells'][i]['shots']) in trimmed(c)[0]
        c['cells'].pop(i)
        assert len(trimmed(c)) == 1
    for i in range(3):
        c = study()
        c['rates'][i]['fixed'] = True
        assert trimmed(c) == [f'{MUST[i][0]} at {MUST[i][1]}: its rate was not chosen']

def test_the_way_by_hand_decides(monkeypatch):
    "On points that a head can tell apart it is right, on noise it is not; its C is chosen on the validation part"
    import speed_decision as sd
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import normalize
    n, seen, rng = dict(train=60, valid=30, test=40), [], np.random.default_rng(0)
    parts = {p: [[f'{p}{i}', 'ab'[i % 2]] for i in range(k)] for p,k in n.items()}
    def decided(apart):
        x = {p: rng.normal(size=(k, 5)) + apart*np.array([1, 0, 0, 0, 0])*(-1.)**np.arange(k)[:,None]
             for p,k in n.items()}
        monkeypatch.setattr(sd, 'forward', lambda m, files, size: x[files[0].name.rstrip('0123456789')])
        def head(C, max_iter): return seen.append(C) or LogisticRegression(C=C, max_iter=max_iter)
        return sd.decide(None, 'd', 64, parts, (2, 'all'), 4, head, log_loss, normalize)
    few, all_ = decided(9)
    assert (few['seeds'], all_['seeds'], few['shots'], all_['shots']) == (4, 1, 2, 'all') and all_['mean'] == 1
    assert len(seen) == 6*3 + 4 + 6 + 1 and len(set(seen)) == 6
    assert few['C'] == all_['C'] == max(seen)
    few, all_ = decided(0)
    assert .2 < few['mean'] < .8 and few['low'] < few['mean'] < few['high'] and all_['C'] < max(seen)

def test_a_word_is_kept_both_ways():
    from speed_decision import kept_word
    got = [kept_word('x', 10, t) for t in (6, 7, 15, 16)] + [kept_word('x', 0, 0)]
    assert [o['reached'] for o in got] == [False, True, True, False, False] and got[0]['value'] == .6
