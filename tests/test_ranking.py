"Several backbones by their frozen features."
import json
import numpy as np, pytest
from PIL import Image
from tlcourse import runs
from tlcourse.base import BadInput
from tlcourse.cli import main
from tlcourse.compare import compare
from tlcourse.ranking import Ranking, rank_backbones
from tlcourse.stats import holm, paired_ci, paired_p

TWO = ['glyphnet', 'glyphnet_multi']

def quiet(*args, **kw): return rank_backbones(*args, say=None, device='cpu', **kw)

def test_as_each_would_be_compared(tmp_path, monkeypatch):
    "Cells, choices and differences are those of a study of each body; a second call passes no picture."
    r = quiet('digits', TWO, shots=[2, 5], out=tmp_path)
    both = {b: compare('digits', b, 'feature-extraction', [2, 5], say=None, device='cpu') for b in TWO}
    for row in r.rows:
        c = both[row['backbone']]
        for a,b in zip(row['cells'], c.cells, strict=True): assert [a[k] for k in KEYS] == [b[k] for k in KEYS]
        chosen = next(o for o in c.rates if o['shots'] == 5)
        assert row['loss'] == next(o[1] for o in chosen['tried'] if o[0] == chosen['rate'])
    assert [o['loss'] for o in r.rows] == sorted(o['loss'] for o in r.rows)
    a,b = (both[o['backbone']].correct['feature-extraction', 5] for o in r.rows)
    assert [r.pairs[0][k] for k in ('diff', 'low', 'high')] == [*paired_ci(a, b)[:3]]
    monkeypatch.setattr(runs, 'extract', lambda *args, **kw: pytest.fail('extracted again'))
    again = quiet('digits', TWO[::-1], shots=[2, 5], out=tmp_path)
    assert again.recommend() == r.recommend() and again.pairs == r.pairs

KEYS = 'strategy', 'shots', 'mean', 'low', 'high', 'seeds', 'n_test'

def made(accs, losses, n=400):
    "Bodies whose heads are right on the first pictures"
    def row(name, acc, loss):
        right = np.arange(n)[None] < acc*n
        return dict(backbone=name, params=10**6, seconds=.001, loss=loss, correct=right,
                    cells=[dict(shots='all', mean=acc, low=acc-.01, high=acc+.01)])
    return Ranking([row(*o) for o in zip('abc', accs, losses)], None)

def test_the_test_has_no_part_in_the_order():
    r = made([.5, .9, .505], [.1, .3, .2])
    assert [o['backbone'] for o in r.rows] == ['a', 'c', 'b']
    assert [(p['a'], p['b']) for p in r.pairs] == [('a', 'c'), ('a', 'b')]
    assert r.recommend().endswith('The test puts it behind b. Open is the difference to c.')

def test_one_family():
    r = made([.9, .85, .8], [.1, .2, .3])
    ps = [paired_p(r.rows[0]['correct'], o['correct']) for o in r.rows[1:]]
    assert [p['p_holm'] for p in r.pairs] == holm(ps) and 'It is ahead of b, c.' in r.recommend()

def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ['compare', 'digits', '--backbones', 'glyphnet,glyphnet_multi', '--shots', '2,5', '--device', 'cpu']
    assert not main([*args, '--json', 'r.json'])
    out = capsys.readouterr().out
    got = json.loads((tmp_path/'r.json').read_text())
    assert got['recommendation'] in out and len(got['backbones']) == 2 and got['parts']['0'] == [113, 15, 50]
    assert (tmp_path/'tlcourse-out/digits-backbones/records.db').is_file()

@pytest.mark.parametrize('more,says', [
    (['--backbone', 'glyphnet'], '--backbone has no part'), (['--seeds', '10'], '--seeds has no part'),
    (['--budget', '3'], '--budget has no part'), (['--backbones', 'glyphnet'], 'two or more'),
    (['--backbones', 'glyphnet,glifnet'], 'glifnet'), (['--shots', '2'], 'above 2 labels')])
def test_refused(more, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['compare', 'digits', '--backbones', 'glyphnet,glyphnet_multi', '--device', 'cpu', *more]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1

def test_a_folder(tmp_path):
    "Classes and what was read are said once, for all bodies."
    rng = np.random.default_rng(0)
    for c,level in ('dark', 60), ('light', 180):
        (tmp_path/'p'/c).mkdir(parents=True)
        for i in range(12):
            x = (rng.integers(0, 60, (32, 32, 3)) + level).astype(np.uint8)
            Image.fromarray(x).save(tmp_path/'p'/c/f'{i}.png')
    lines = []
    r = rank_backbones(tmp_path/'p', TWO, shots='2,all', size=32, say=lines.append, device='cpu', out=tmp_path/'out')
    assert sum('dark' in l for l in lines) == 1
    assert [l for l in lines if l.endswith(':')] == ['glyphnet:', 'glyphnet_multi:']
    assert {len(o['cells']) for o in r.rows} == {2} and r.to_dict()['classes'] == ['dark', 'light']
    with pytest.raises(BadInput, match='neither a column'):
        quiet(tmp_path/'p', TWO, size=32, groups='[', out=tmp_path/'out2')
