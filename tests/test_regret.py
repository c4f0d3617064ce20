"The benchmark of the rates' regret: what it computes from runs that are known, and that the script runs."
import json, math, subprocess
import numpy as np, pytest
from conftest import ROOT, python
from tlcourse.rates import Chosen

@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))
    import regret
    return regret

def right(share, n=100): return np.stack([np.arange(n) < share*n]*3)

def chosen(rate): return Chosen(rate, 1, [(.01, .3, .01), (.03, .2, .0), (.09, math.inf, math.inf)])

def test_regret_of_known_runs(script):
    """The best rate's accuracy less that of the chosen one, and less that of the smallest loss;
    0 where the chosen is as good as any."""
    acc = {.00333: right(.8), .01: right(.9), .03: right(.87), .09: right(0)}
    l = script.regret(('digits', 5, 'fine-tuning'), chosen(.03), acc)
    assert (l['best'], l['chosen'], l['edge']) == (.01, .03, 1)
    assert l['regret'] == pytest.approx(.03) and l['low'] < .03 < l['high']
    assert l['regret_of_smallest_loss'] == pytest.approx(.03) and l['accuracy'][1] == [.01, .9]
    l = script.regret(('digits', 5, 'fine-tuning'), chosen(.01), acc)
    assert l['regret'] == 0 and l['regret_of_smallest_loss'] == pytest.approx(.03)
    l = script.regret(('digits', 5, 'fine-tuning'), chosen(.03), acc | {.03: right(.9)})
    assert l['best'] == .03 and l['regret'] == 0

@pytest.mark.parametrize('points,reached', [([.2, .6, .4], True), ([.2, .6, 1.4], False), ([.5], True)])
def test_aim(script, points, reached):
    "The mean over the cells is held against half a point; the smallest loss has no aim."
    rule, least = script.summary([dict(regret=x/100, regret_of_smallest_loss=2*x/100) for x in points])
    assert rule['value'] == pytest.approx(np.mean(points)) and rule['reached'] is reached
    assert rule['low'] <= rule['value'] <= rule['high']
    assert least['value'] == pytest.approx(2*np.mean(points)) and least['reached'] is None

def test_steps_of_a_cell(script):
    t = script.pictures('digits', 32)
    assert script.budget('digits', 5, t, 32) == 150 and script.budget('digits', 100, t, 32) == 5*32
    assert script.budget('flowers17', 5, t, 32) == 80

@pytest.mark.slow
def test_smoke(tmp_path):
    "Two cells at their smallest; nothing beside the script changes."
    before = sorted((ROOT/'benchmarks').glob('*.json'))
    r = subprocess.run([*python(), ROOT/'benchmarks/regret.py', '--smoke', '--out', tmp_path/'out.json'],
                       capture_output=True, text=True, cwd=tmp_path)
    assert not r.returncode, r.stderr
    got = json.loads((tmp_path/'out.json').read_text())
    assert sorted((ROOT/'benchmarks').glob('*.json')) == before and got['smoke'] is True
    assert ([(c['target'], c['shots'], c['arm']) for c in got['cells']]
            == [('digits', 2, a) for a in ('fine-tuning', 'feature-extraction')])
    for c in got['cells']:
        assert c['low'] <= c['regret'] <= c['high'] and c['regret'] >= 0 and len(c['accuracy']) >= 5
        assert c['chosen'] in [r for r,_ in c['accuracy']] and f"{c['chosen']:g} chosen" in r.stdout
