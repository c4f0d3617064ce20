"Reading back what a study measured: stored lesson grids by the old rules, studies in stages by the new ones."
import itertools, json
import numpy as np, pytest
from tlcourse.base import BadInput
from tlcourse.comparison import Comparison
from tlcourse.recommendation import label_sizes, labels
from tlcourse.stored_tables import lesson_records
from tlcourse.stats import forecast, holm, mean_ci, n_to_settle, paired_ci, paired_p
from staged import ACC, ALL, ARMS, MISSING, PARTS, PLAN, made_staged

# The rules of code <= 3, on their own: what stored lesson grids have always said

def old_correct(records, what, res, shift):
    correct, cells = {}, []
    for s,k,specs in res['cells']:
        runs = [records.get(sp) for sp in specs]
        y = records.labels((specs[0]['shifts'][shift] if shift else None) or specs[0]['pixel_hash'])
        x = correct[s, k] = np.stack([r[f'pred {shift}' if shift else 'pred'] == y for r in runs])
        i = mean_ci(x)
        seconds, acc = (float(np.mean([r[k] for r in runs])) for k in ('seconds', 'train_acc'))
        cells.append(dict(strategy=s, shots=k, mean=i.mean, low=i.low, high=i.high, n_test=x.shape[1], seeds=len(x),
                          seconds=seconds, train_acc=acc))
    return correct, cells

def old_holm(ps):
    order, res, worst = np.argsort(ps, kind='stable'), [0]*len(ps), 0.
    for i,j in enumerate(order): worst = res[j] = max(worst, min(1., ps[j]*(len(ps)-i)))
    return res

def old_pairs(correct):
    res = []
    for k in sorted({k for _,k in correct}):
        for a,b in itertools.combinations([s for s,q in correct if q == k], 2):
            i = paired_ci(correct[a, k], correct[b, k])
            res.append(dict(shots=k, a=a, b=b, diff=i.mean, low=i.low, high=i.high,
                            p=paired_p(correct[a, k], correct[b, k])))
    for r,p in zip(res, old_holm([r['p'] for r in res])): r['p_holm'] = p
    return res

def old_choice(cells, pairs, k):
    rows = {c['strategy']: c for c in cells if c['shots'] == k and c['seeds'] > 1}
    top = max(rows, key=lambda s: rows[s]['mean'])
    vs = {(p['b'] if p['a'] == top else p['a']): p for p in pairs if p['shots'] == k and top in (p['a'], p['b'])}
    return min([top, *(s for s,p in vs.items() if p['p_holm'] > .05 and abs(p['diff']) <= .01)],
               key=lambda s: rows[s]['seconds']), top, vs, rows

def old_text(cells, pairs, name):
    def lab(k): return f"{k} label{'s'*(k != 1)} per class"
    def band(p, top):
        d,lo,hi = (p['diff'], p['low'], p['high']) if p['a'] == top else (-p['diff'], -p['high'], -p['low'])
        return f"{100*d:.1f} points [{100*lo:+.1f}, {100*hi:+.1f}]"
    *less, k = sorted({c['shots'] for c in cells})
    pick, top, vs, rows = old_choice(cells, pairs, k)
    r, basis = rows[pick], ''
    if pick != top:
        basis = (f"; {top} reaches {band(vs[pick], top)} more, which the correction does not separate from 0, "
                 f"and a run of it costs {rows[top]['seconds']:.1f} CPU s against {r['seconds']:.1f}")
    elif vs:
        sure = [f'{s} by {band(p, top)}' for s,p in vs.items() if p['p_holm'] <= .05]
        sure += [f'{s} by {band(p, top)} (not separated after the correction)'
                 for s,p in vs.items() if p['p_holm'] > .05]
        basis = f", ahead of {', '.join(sure)}"
    holm = f", Holm-corrected over {len(pairs)} comparisons" if pairs else ''
    text = (f"At {lab(k)} on {name} take {pick}: {100*r['mean']:.1f} % [{100*r['low']:.1f}, "
            f"{100*r['high']:.1f}]{basis} ({r['seeds']} seeds, {r['n_test']} test images{holm}). ")
    other = {q: old_choice(cells, pairs, q)[0] for q in less}
    changes = [f"at {lab(q)} it would be {s}" for q,s in other.items() if s != pick]
    if changes:
        return text + f"It changes with the number of labels: {', '.join(changes)}; beyond {k} nothing was measured."
    if other:
        sizes = f"{', '.join(map(str, sorted(other)))} label{'s'*(list(other) != [1])} per class"
        return text + f"It would be the same at {sizes}; beyond {k} nothing was measured."
    return text + "Only this number of labels was run: where it would change is not known."

def keep(rows, like): return [{k: r[k] for k in l} for r,l in zip(rows, like, strict=True)]

@pytest.mark.parametrize('page', ['first_transfer', 'fine_tuning', 'extraction_or_tuning', 'how_much_data'])
def test_stored_grids_say_what_they_always_said(page):
    records = lesson_records(page)
    for what in [r.spec for r in records.rows(kind='study') if r.spec['code'] < 4]: # Later ones say it otherwise
        for shift in [None, *what.get('shifts', {})]:
            c, res = Comparison(records, what, shift=shift), records.get(what)
            correct, cells = old_correct(records, what, res, shift)
            pairs = old_pairs({k: x for k,x in correct.items() if len(x) > 1})
            assert keep(c.cells, cells) == cells and keep(c.pairs, pairs) == pairs
            text = old_text(cells, pairs, what['target'] + f' under {shift}'*bool(shift))
            assert c.recommend() == c.recommendation['text'] == text
            assert c.recommendation['strategy'] == old_choice(cells, pairs, max(k for _,k in correct))[0]
            rows = [[x['shots'], x['strategy'], f"{100*x['mean']:.1f}",
                     f"[{100*x['low']:.1f}, {100*x['high']:.1f}]", x['n_test'],
                     x['seeds'], f"{100*x['train_acc']:.1f}", f"{x['seconds']:.1f}"] for x in cells]
            assert [*c.table.columns] == ['labels', 'strategy', 'accuracy', '95 % interval', 'test images', 'seeds',
                                          'training', 'CPU s']
            assert c.table.values.tolist() == rows
            said = [[p['shots'], f"{p['a']} - {p['b']}", f"{100*p['diff']:+.1f}",
                     f"[{100*p['low']:+.1f}, {100*p['high']:+.1f}]",
                     f"{p['p_holm']:.3f}" if p['p_holm'] >= .001 else '< .001'] for p in pairs]
            assert c.differences.values.tolist() == said
            assert repr(c).endswith(text) and (not said or f'Holm p (of {len(pairs)})' in c.differences.columns)
            assert c.forecast is None and c.control is None and c.stage is None and not c.missing and not c.staged
            assert json.loads(json.dumps(c.to_dict()))['cells'] == c.cells

# Studies in stages

@pytest.fixture(scope='module')
def stages(tmp_path_factory):
    return {s: made_staged(tmp_path_factory.mktemp(f'stage{s}'), s) for s in (1, 2, 3)}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Every cell run, no arm left out"
    return made_staged(tmp_path_factory.mktemp('whole'), arms=ARMS[:3], missing=())

def test_words_for_all():
    assert labels('all') == 'all labels' and labels('all', 816) == 'all 816 labels' and labels(1) == '1 label per class'
    assert label_sizes([5, 1]) == '1, 5 labels per class'
    assert label_sizes([20, 'all']) == '20 labels per class and all labels'

def test_cells_in_order(stages):
    c = stages[3]
    assert [(x['strategy'], x['shots']) for x in c.cells] == [
        ('feature-extraction', 1), ('fine-tuning', 1), ('k-nn', 1), ('feature-extraction', 5), ('fine-tuning', 5),
        ('k-nn', 5), ('feature-extraction', 20), ('fine-tuning', 20), ('k-nn', 20),
        ('feature-extraction', 'all'), ('last-layers', 'all'), ('fine-tuning', 'all'), ('k-nn', 'all'),
        ('random-features', 'all')]
    assert c.sizes == [1, 5, 20, 'all'] and c.top == 'all' and c.n_train == ALL == 816
    assert {x['strategy'] for x in c.cells if x['beside']} == {'k-nn', 'random-features'}
    seeds = {(x['strategy'], x['shots']): x['seeds'] for x in c.cells}
    assert seeds['feature-extraction', 5] == 20 and seeds['feature-extraction', 'all'] == 1
    assert seeds['fine-tuning', 'all'] == 3

def test_table(stages, tmp_path):
    c = stages[3]
    t = c.table
    assert [*t.columns] == ['labels', 'strategy', 'accuracy', '95 % interval', 'test images', 'seeds', 'tries', 'CPU s']
    assert t.labels.tolist()[-1] == 'all (816)' and t.labels.tolist()[0] == 1
    tries = {(r.labels, r.strategy): r.tries for r in t.itertuples()}
    assert tries[1, 'feature-extraction'] == 1 and tries[5, 'feature-extraction'] == 4
    assert tries['all (816)', 'last-layers'] == 3
    assert tries[1, 'k-nn'] == 1 and tries[5, 'fine-tuning'] == 3 # Taken over from all, chosen there among three
    plan = {**PLAN, 3: [('scratch', 'all')]}
    t = made_staged(tmp_path, arms=['feature-extraction', 'scratch'], plan=plan, missing=()).table
    assert [(r.strategy, r.training) for r in t.itertuples() if r.training] == [('scratch', '97.0')]

def test_families(stages):
    c = stages[3]
    got = [(p['shots'], p['a'], p['b'], p['family']) for p in c.pairs]
    assert got == [(1, 'feature-extraction', 'fine-tuning', None), (5, 'feature-extraction', 'fine-tuning', 'curve'),
                   (20, 'fine-tuning', 'feature-extraction', 'curve'),
                   ('all', 'fine-tuning', 'feature-extraction', 'decision'),
                   ('all', 'fine-tuning', 'last-layers', 'decision')]
    assert c.families == dict(decision=3, curve=2) # The augmented arm was asked for and has not run
    ps = [p['p'] for p in c.pairs]
    assert [p['p_holm'] for p in c.pairs] == [None, *holm(ps[1:3]), *holm([*ps[3:], 1.])[:2]]
    assert holm(ps[3:]) != holm([*ps[3:], 1.])[:2]
    assert set(c.pairs[0]) == {'shots', 'a', 'b', 'diff', 'low', 'high', 'p', 'p_holm', 'family', 'provisional'}

def test_family_of_the_decision_is_fixed_from_the_start(stages, whole):
    assert {c.families['decision'] for c in stages.values()} == {3} and whole.families == dict(decision=2, curve=2)
    at = {s: [p for p in c.pairs if p['shots'] == 'all'] for s,c in stages.items()}
    assert at[2] == at[3] # What ran later changes no verdict
    # Before the last stage nobody knows which cells of the curve will run: all are counted
    assert stages[2].families['curve'] == 6

def test_missing_cell_of_the_curve_is_counted(tmp_path):
    missing = [*MISSING, dict(strategy='last-layers', shots=20, minutes=.4)]
    c = made_staged(tmp_path, missing=missing)
    assert c.families == dict(decision=3, curve=3)

def test_pairs_take_the_first_seeds_that_both_have(stages):
    c = stages[3]
    p = next(p for p in c.pairs if p['shots'] == 20)
    a, b = c.correct['fine-tuning', 20], c.correct['feature-extraction', 20]
    assert (len(a), len(b)) == (3, 20) and p['diff'] == paired_ci(a, b[:3]).mean and p['p'] == paired_p(a, b[:3])
    p = c.pairs[3]
    a, b = c.correct['fine-tuning', 'all'], c.correct['feature-extraction', 'all']
    assert (len(a), len(b)) == (3, 1) and (p['low'], p['high']) == paired_ci(a, b)[1:3]

def test_stage_one_draws_no_verdict(stages, tmp_path):
    c = stages[1]
    assert not c.pairs and c.recommendation['stage'] == 1 and c.recommendation['strategy'] == 'feature-extraction'
    text = c.recommend()
    assert text.startswith('So far (frozen features alone, stage 1 of 3): with all 816 labels on my photos '
                           'feature-extraction reaches ')
    assert 'Holm' not in text and 'take ' not in text.split('(1 run')[0]
    assert 'Not run here: last-layers, fine-tuning, fine-tuning+aug' in text
    # Nor between two frozen arms
    arms = ['feature-extraction', 'random-features', 'fine-tuning']
    import staged
    old, staged.ASIDE = staged.ASIDE, ['k-nn']
    try: c = made_staged(tmp_path, 1, arms=arms)
    finally: staged.ASIDE = old
    assert [p['p_holm'] for p in c.pairs] == [None] and c.control is None and 'no verdict yet' in c.recommend()
    assert c.differences.iloc[0, -1] == 'so far'

def test_later_stages(stages, whole):
    for s,c in stages.items():
        r = c.recommendation
        assert (r['stage'], r['stages'], r['provisional'], r['shots']) == (s, 3, False, 'all')
    assert stages[2].recommend().startswith('So far (stage 2 of 3): '
                                            'with all 816 labels on my photos take fine-tuning: ')
    assert stages[3].recommend().startswith('So far (1 cell left out by the budget): with all 816 labels')
    assert whole.recommend().startswith('With all 816 labels on my photos take fine-tuning: ')
    assert 'So far' not in repr(whole)
    assert 'Holm-corrected over 3 comparisons, 1 of them not run yet)' in stages[3].recommend()
    assert 'Holm-corrected over 2 comparisons)' in whole.recommend()
    p = whole.pairs[-2]
    assert p['p_holm'] <= .05 and f", ahead of feature-extraction by {100*p['diff']:.1f} points [" in whole.recommend()

def test_open_is_not_equal_and_says_what_would_settle_it(stages):
    c = stages[3]
    p = c.pairs[-1]
    assert p['p_holm'] > .05
    need = n_to_settle(c.correct['fine-tuning', 'all'], c.correct['last-layers', 'all'])
    assert need.images is None
    assert f'measured lower, which is no finding: last-layers by {100*p["diff"]:.1f} points' in c.recommend()
    assert (f'(not separated: a difference of 2 points would take about {need.seeds} seeds, not more pictures)'
            in c.recommend())
    assert 'equal' not in c.recommend() and 'equal' not in repr(c)

@pytest.mark.parametrize('n,words', [(60, 'would take about {:,} test pictures'),
                                     (1200, 'would have shown on these 1,200 test pictures')])
def test_pictures_that_would_settle_it(tmp_path, n, words):
    acc = {**ACC, 'last-layers': {'all': .95}, 'feature-extraction': {**ACC['feature-extraction'], 'all': .96}}
    c = made_staged(tmp_path, acc=acc, n=n, plan={**PLAN, 2: [('last-layers', 'all')], 3: []}, arms=ARMS[:2],
                    missing=(), seeds=5)
    a, b = (c.correct[s, 'all'] for s in ARMS[:2])
    need = n_to_settle(a, b)
    text = c.recommend()
    assert c.pairs[-1]['p_holm'] > .05
    if need.images is None: assert f'about {need.seeds} seeds' in text
    else: assert words.format(need.images) in text

def test_a_tie_goes_to_the_cheaper_arm(tmp_path):
    acc = {**ACC, 'fine-tuning': {**ACC['fine-tuning'], 'all': .921}, 'last-layers': {'all': .8}}
    for seed_n in range(300, 340): # The first draw in which fine-tuning leads by less than a point
        d = tmp_path/str(seed_n)
        d.mkdir()
        c = made_staged(d, acc=acc, n=seed_n)
        p = c.pairs[-2]
        if p['a'] == 'fine-tuning' and 0 < p['diff'] <= .01: break
    else: raise AssertionError('no such draw')
    assert c.recommendation['strategy'] == 'feature-extraction'
    assert '; fine-tuning reaches ' in c.recommend() and 'costs 82.0 CPU s against 0.4' in c.recommend()
    assert 'not separated' in c.recommend()

def test_provisional(tmp_path):
    c = made_staged(tmp_path, edges=[('last-layers', 'all'), ('fine-tuning', 1)])
    assert c.recommendation['provisional']
    assert 'This is provisional: the learning rate of last-layers is still at the edge' in c.recommend()
    p, q = c.pairs[-2:]
    assert not p['provisional'] and q['provisional'] and q['p_holm'] is None
    assert c.differences.iloc[-1, -1] == 'provisional'
    assert p['p_holm'] == min(1, 3*p['p']) and 'no finding: last-layers by' in c.recommend()
    assert '(provisional)' in c.recommend()
    assert not c.pairs[0]['provisional'] # Fixed at one label: no rate was chosen

def test_few_labels_give_no_verdict(stages):
    c = stages[3]
    assert c.differences.iloc[0, -1] == 'no verdict'
    assert 'at 1 label per class it would be feature-extraction (no verdict at so few labels)' in c.recommend()
    assert 'no verdict at so few labels' in c.recommend(1) and 'Holm' not in c.recommend(1)

def test_verdicts_begin_at_three_labels(tmp_path):
    acc = {a: {**ACC[a], 2: ACC[a][1], 3: ACC[a][5]} for a in ('feature-extraction', 'fine-tuning')}
    plan = {1: [('feature-extraction', k)
                for k in (2, 3, 20)], 2: [('fine-tuning', 20)], 3: [('fine-tuning', 3), ('fine-tuning', 2)]}
    c = made_staged(tmp_path, acc=acc, plan=plan, shots=(2, 3, 20), arms=['feature-extraction', 'fine-tuning'],
                    missing=())
    assert ([(p['shots'], p['family'], p['p_holm'] is None) for p in c.pairs]
            == [(2, None, True), (3, 'curve', False), (20, 'decision', False)])
    assert c.families == dict(decision=1, curve=1) and c.differences.iloc[0, -1] == 'no verdict'

def test_rows_beside_take_no_part(tmp_path):
    acc = {**ACC, 'k-nn': dict.fromkeys((1, 5, 20, 'all'), .999)}
    c = made_staged(tmp_path, acc=acc)
    assert max(c.cells, key=lambda x: x['mean'])['strategy'] == 'k-nn' and c.recommendation['strategy'] == 'fine-tuning'
    assert not {'k-nn', 'random-features'} & {p[k] for p in c.pairs for k in 'ab'} and 'k-nn' not in c.recommend()

def test_own_number_of_labels(stages):
    c = stages[3]
    assert c.recommend(7).startswith('For 7 labels per class the nearest size measured at or '
                                     'below is 5 labels per class. ')
    assert 'at 5 labels per class on my photos take feature-extraction' in c.recommend(7)
    assert c.recommend(5) in c.recommend(7)
    assert 'Holm-corrected over 2 comparisons' in c.recommend(20)
    assert c.recommend(135).startswith('For 135 labels per class the nearest size measured at or below is 20 labels')
    assert 'with all 816 labels on' in c.recommend(136)
    assert 'is all 816 labels (136 per class on average)' in c.recommend(400)
    for bad in 0, 2.5, 'all':
        with pytest.raises(BadInput, match='whole number'): c.recommend(bad)

def test_too_few_labels_for_any_size(tmp_path):
    plan = {1: [('feature-extraction', k) for k in (5, 20)], 2: [], 3: [('fine-tuning', 5)]}
    c = made_staged(tmp_path, plan=plan, shots=(5, 20), arms=['feature-extraction', 'fine-tuning'], missing=())
    with pytest.raises(BadInput, match='the smallest size is 5'): c.recommend(3)

def test_forecast(stages):
    c = stages[3]
    f, ks = c.forecast, [5, 20, 'all']
    xs = [c.correct['feature-extraction', k] for k in ks]
    i, j = forecast(xs, [30, 120, 816], 1632), forecast(xs[:2], [30, 120], 816)
    now = float(xs[-1].mean())
    assert f == dict(strategy='feature-extraction', pictures=1632, mean=i.mean, low=i.low, high=i.high, measured=now,
                     sizes=ks, back_test=dict(sizes=[5, 20], mean=j.mean, low=j.low, high=j.high, miss=j.mean - now))
    assert ("(1,632 training pictures) would take feature-extraction from "
            f"{100*now:.1f} % to about {100*i.mean:.1f} % [") in c.recommend()
    assert (f"misses what was measured there by {100*(j.mean-now):+.1f} points, "
            "no less than the gain it promises: take it as a guess.") in c.recommend()
    assert {json.dumps(c.forecast) for c in stages.values()} == {json.dumps(f)}

def test_forecast_follows_the_law(tmp_path):
    acc = {**ACC, 'feature-extraction': {k: 1 - .8*n**-.3 for k,n in ((1, 6), (5, 30), (20, 120), ('all', 816))}}
    f = made_staged(tmp_path, 1, acc=acc, n=4000).forecast
    truth = 1 - .8*1632**-.3
    assert f['low'] < truth < f['high'] and f['high'] - f['low'] < .05 and abs(f['back_test']['miss']) < .02

@pytest.mark.parametrize('ks', [(1, 5, 'all'), (1, 5, 20)])
def test_too_few_sizes_for_a_forecast(tmp_path, ks):
    c = made_staged(tmp_path, 1, plan={1: [('feature-extraction', k) for k in ks]}, shots=ks)
    assert c.forecast is None and 'is not forecast: that takes three sizes of feature-extraction' in c.recommend()

def test_no_back_test_from_one_size(tmp_path):
    parts = {k: [n//5, a, b] for k,(n,a,b) in PARTS.items()} # 163 pictures: 120 are more than half
    c = made_staged(tmp_path, 1, parts=parts)
    assert c.forecast['back_test'] is None and 'How well such a forecast does here is not known' in c.recommend()

def test_control_has_a_line_after_the_table(stages, tmp_path):
    c = stages[3]
    x = c.control
    i = paired_ci(c.correct['feature-extraction', 'all'], c.correct['random-features', 'all'])
    assert (x['strategy'], x['shots'], x['diff'], x['diff_low'], x['diff_high']) == ('random-features', 'all', *i[:3])
    line = next(o for o in repr(c).split('\n') if o.startswith('A random body'))
    assert f"reaches {100*x['mean']:.1f} % [" in line
    assert f"{100*i.mean:.1f} points [{100*i.low:+.1f}, {100*i.high:+.1f}]" in line
    assert repr(c).index(line) > repr(c).index(c.recommend()) and 'A random body' not in c.recommend()
    plan = {1: [('feature-extraction', 'all')]}
    assert 'A random body' not in repr(made_staged(tmp_path, 1, plan=plan))

def test_missing_cells_are_named_with_their_minutes(stages, tmp_path):
    c = stages[3]
    assert repr(c).endswith('fine-tuning+aug with all 816 labels would take about 7 more minutes: raise --budget')
    assert 'would take about 7 more minutes' in c._repr_html_() and c.to_dict()['missing'] == MISSING
    more = [dict(strategy='fine-tuning', shots=1, minutes=.3), dict(strategy='fine-tuning', shots=20, minutes=1)]
    r = repr(made_staged(tmp_path, missing=more))
    assert 'fine-tuning at 1 label per class would take less than a minute: raise --budget' in r
    assert 'about 1 more minute: raise' in r
    assert '2 cells left out by the budget' in r

def test_json(stages):
    for c in stages.values():
        d = json.loads(json.dumps(c.to_dict()))
        assert {'cells', 'classes', 'parts', 'pairs', 'recommendation', 'stage', 'notes', 'rates', 'settings',
                'versions', 'missing',
                'forecast', 'control', 'families'} <= set(d)
        for x in d['cells']:
            assert {'strategy', 'shots', 'mean', 'low', 'high', 'n_test', 'seeds', 'tries', 'seconds'} <= set(x)
            assert x.get('beside', 'absent') == (True if x['strategy'] in ('k-nn', 'random-features') else 'absent')
        assert d['stage'] == c.stage and d['parts'] == PARTS and d['cells'][-1]['shots'] == 'all'

def test_nothing_run_yet(tmp_path):
    plan = {1: [('k-nn', 'all')]}
    c = made_staged(tmp_path, 1, arms=['last-layers', 'fine-tuning'], plan=plan)
    assert c.recommendation['strategy'] is None and 'none of last-layers, fine-tuning has run yet' in repr(c)
    with pytest.raises(BadInput, match='nothing was measured'): c.recommend(5)

def test_plot_of_all(stages):
    ax = stages[3].plot()
    assert [t.get_text() for t in ax.get_xticklabels()] == ['1', '5', '20', 'all'] and ax.get_xticks()[-1] == 136
    lines = {k: h for h,k in zip(*ax.get_legend_handles_labels())}
    assert lines['k-nn'][0].get_linewidth() < lines['fine-tuning'][0].get_linewidth()
    assert [t.get_text() for t in stages[3].plot_differences().get_yticklabels()][-1] == 'all'

# looks, and strategies that are alike

def test_each_look_has_its_share_of_the_error(tmp_path):
    "At the decision alone; the curve is looked at once"
    (tmp_path/'a').mkdir(), (tmp_path/'b').mkdir()
    once, thrice = made_staged(tmp_path/'a'), made_staged(tmp_path/'b', looks=[5, 10, 20])
    for p,q in zip(once.pairs, thrice.pairs, strict=True):
        if p['p_holm'] is None: assert q['p_holm'] is None; continue
        assert q['p_holm'] == pytest.approx(min(1, p['p_holm']*(3 if p['family'] == 'decision' else 1)))
    assert 'and 3 looks' in thrice.recommend() and 'looks' not in once.recommend()
    assert any('3 looks' in o for o in thrice.differences.iloc[:, -1])
    assert not any('looks' in o for o in once.differences.iloc[:, -1])

def test_alike_is_a_finding_and_not_separated_is_none(tmp_path):
    "The same difference, measured on 300 pictures and on 6,000"
    acc = {**ACC, 'last-layers': {'all': .983}}
    few, many = ({p['b']: p for p in c.pairs if p['shots'] == 'all'} | {'c': c} for c in
                 (made_staged(_new(tmp_path/n), acc=acc, n=m, size=1) for n,m in (('few', 60), ('many', 6000))))
    for got,yes in (few, False), (many, True):
        p = next(v for k,v in got.items() if k in ('last-layers', 'fine-tuning'))
        assert p['p_holm'] > .05 and got['c'].settled(p) == yes
        assert ('within 2 points of each other' in got['c'].recommend()) == yes

def _new(d):
    d.mkdir()
    return d
