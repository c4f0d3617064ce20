"The part on shifts: what the recommendation is worth on changed test pictures, in report, JSON and command line."
import copy, json
import numpy as np, pytest
from tlcourse.base import BadInput
from tlcourse.cli import main
from tlcourse.comparison import stored_comparison
from tlcourse.report import report_html
from tlcourse.shifted import shift_names
from tlcourse.stats import holm, paired_ci, paired_p
from tlcourse.stored_tables import lesson_records
from staged import ACC, ARMS, made_staged
from test_report import Page

def under(**top):
    "Accuracies as they are elsewhere, and others with all labels"
    res = copy.deepcopy(ACC)
    for s,v in top.items(): res[s.replace('_', '-')]['all'] = v
    return res

PLAN = {1: [('feature-extraction', 'all'), ('k-nn', 'all')], 2: [('last-layers', 'all'), ('fine-tuning', 'all')], 3: []}
THREE = ['feature-extraction', 'last-layers', 'fine-tuning']
def planted(d, arms=THREE, shifts=None, **kw):
    return made_staged(d, **dict(arms=arms, plan=PLAN, missing=[], stages=3, shots=['all'], shifts=shifts) | kw)

@pytest.fixture(scope='module')
def three(tmp_path_factory):
    "Noise leaves fine-tuning ahead, blur puts it behind, and with less contrast all are alike"
    shifts = dict(noise=under(fine_tuning=.96, last_layers=.6, feature_extraction=.5),
                  blur=under(fine_tuning=.4, last_layers=.9, feature_extraction=.7),
                  contrast=under(fine_tuning=.8, last_layers=.8, feature_extraction=.8))
    return planted(tmp_path_factory.mktemp('three'), shifts=shifts)

def test_verdicts(three):
    found = {o['shift']: o for o in three.under_shift}
    assert [*found] == ['noise', 'blur', 'contrast'] and {o['strategy'] for o in found.values()} == {'fine-tuning'}
    assert [found[s]['verdict'] for s in found] == ['stands', 'does not stand', 'open']
    assert found['noise']['text'] == ('Under noise the recommendation stands: fine-tuning is ahead of '
                                      'feature-extraction and last-layers.')
    assert 'last-layers is ahead by' in found['blur']['text'] and 'nothing is measurably' in found['contrast']['text']

def test_numbers_are_those_of_the_runs(three):
    "Accuracies, differences and corrected p-values, worked out again from the predictions"
    recs, y = three.records, three.records.labels('px')
    right = {(s, arm): np.stack([recs.get(sp)[f'pred {s}'] == y for sp in three.specs[arm, 'all']])
             for s in three.shifts for arm in [*THREE, 'k-nn']}
    keys, ps = [], []
    for o in three.under_shift:
        for c in o['cells']: assert c['mean'] == pytest.approx(right[o['shift'], c['strategy']].mean())
        assert {c['strategy'] for c in o['cells']} == {*THREE, 'k-nn'}
        for p in o['pairs']:
            a,b = (right[o['shift'], p[x]] for x in 'ab')
            m = max(len(a), len(b)) if 1 in (len(a), len(b)) else min(len(a), len(b))
            d = paired_ci(a[:m], b[:m])
            assert p['a'] == 'fine-tuning' and (p['diff'], p['low'], p['high']) == pytest.approx(d[:3])
            keys.append(p); ps.append(paired_p(a[:m], b[:m]))
    assert [p['p_holm'] for p in keys] == pytest.approx([*holm(ps, 6)]) and len(keys) == 6

def test_what_has_not_run_leaves_it_open(tmp_path):
    far = dict(noise=under(last_layers=.4, feature_extraction=.3))
    c = planted(tmp_path, arms=[*THREE, 'fine-tuning+aug'], shifts=far)
    o, = c.under_shift
    assert all(p['p_holm'] < .05 and p['diff'] > 0 for p in o['pairs']) and o['verdict'] == 'open'
    assert 'too few strategies so far' in o['text']

def test_no_verdict_early_or_at_an_edge(tmp_path):
    far = dict(noise=under(last_layers=.4, feature_extraction=.3))
    (tmp_path/'a').mkdir(); (tmp_path/'b').mkdir()
    early = planted(tmp_path/'a', stage=1, shifts=far).under_shift
    assert [(o['verdict'], o['pairs']) for o in early] == [('open', [])]
    o, = planted(tmp_path/'b', edges=[('last-layers', 'all')], shifts=far).under_shift
    assert {p['b']: p['p_holm'] is None for p in o['pairs']} == {'feature-extraction': False, 'last-layers': True}
    assert o['verdict'] == 'open' and 'last-layers' in o['text']

def test_report_and_json(three):
    text, found = report_html(three), three.under_shift
    page = Page(text)
    assert 'id="shifts"' in text and all(o['text'] in text for o in found)
    rows = [r for r in page.rows if r and r[0] in (*THREE, 'k-nn') and len(r) == 2 + len(found)]
    assert len(rows) == 4 and len([r for r in page.rows if r and r[0] in three.shifts]) == 6
    j = json.loads(json.dumps(three.to_dict()))
    assert [o['verdict'] for o in j['under_shift']] == [o['verdict'] for o in found]

def test_nothing_changes_without_shifts(tmp_path):
    c = planted(tmp_path)
    assert c.under_shift == [] and 'under_shift' not in c.to_dict() and 'id="shifts"' not in report_html(c)

def test_stored_letters():
    c = stored_comparison(lesson_records('extraction_or_tuning'), target='letters', tune='valid')
    assert [o['shift'] for o in c.under_shift] == c.shifts and 'letters-stix' in c.shifts
    assert all(o['verdict'] in ('stands', 'does not stand', 'open') for o in c.under_shift)
    assert 'id="shifts"' in report_html(c)

def test_names():
    assert shift_names('all') == ['blur', 'noise', 'contrast'] and shift_names(['noise', 'noise']) == ['noise']
    for bad in ('', 'noise,', 'all,noise', ['all', 'noise']):
        with pytest.raises(BadInput, match='name some of'): shift_names(bad)

@pytest.mark.parametrize('names,says', [('fog', "unknown shift 'fog'"), ('letters', 'is no shift of digits'),
                                        ('', 'name some of'), ('all,fog', "'all' alone")])
def test_refused_on_the_command_line(names, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['compare', 'digits', '--shifts', names, '--device', 'cpu', '--out', 'o']) == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1 and not (tmp_path/'o').exists()

def test_not_with_several_backbones(capsys):
    assert main(['compare', 'digits', '--backbones', 'glyphnet,glyphnet_multi', '--shifts', 'noise']) == 2
    assert '--shifts has no part in --backbones' in capsys.readouterr().err

def test_from_the_command_line(tmp_path, capsys):
    args = ['--strategies', 'feature-extraction,fine-tuning', '--shots', '5', '--steps', '2', '--seeds', '3', '--tune',
            'none', '--workers', '1', '--device', 'cpu', '--out', tmp_path/'o', '--json', tmp_path/'j.json']
    assert main(['compare', 'digits', '--shifts', 'noise', *map(str, args)]) == 0
    o, = json.loads((tmp_path/'j.json').read_text())['under_shift']
    assert o['shift'] == 'noise' and {c['strategy'] for c in o['cells']} == {'feature-extraction', 'fine-tuning'}
    assert o['text'] in capsys.readouterr().out and o['text'] in (tmp_path/'o'/'report.html').read_text()
