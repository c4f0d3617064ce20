"""The fixed learning rates of the strategies in tlcourse.finetune, chosen on validation pictures of two targets that
no reported table shows.

    python grids/rates.py [--all]    # writes grids/rates.json, which a test checks the strategies against

Strategies and rates that the file holds already are kept; --all runs every one again (about 15 minutes on 2 cores).
Every strategy is tried at the same rates; a winner at an edge is said, and the rates are then to be extended for all
of them. Ties go to the rate nearest the middle.
"""
import json, math, sys
from pathlib import Path
import numpy as np
import tlcourse.study_stages # What a study does
from tlcourse.strategy import STRATEGIES
from tlcourse.runs import TUNE_SEED, task
from tlcourse.study import Study

targets, shots, rates = ['textures', 'letters-scripts'], [1, 5, 20], [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]
file = Path(__file__).with_suffix('.json')
# Heads on a frozen body have a weight decay instead, and `fine_tune` fastai's own rate
arms = [s for s,f in STRATEGIES.items() if f.rate is not None and not getattr(f, 'untuned', False)]

def study(name):
    return Study(task(name, 'glyphnet', device='cpu'), arms, shots, seeds=3, steps=150, V=15,
                 out=f'tlcourse-out/rates/{name}')

if __name__ == '__main__':
    old = {} if '--all' in sys.argv else json.loads(file.read_text())['accuracy']
    mean = {s: {lr: old.get(s, {}).get(str(lr)) for lr in rates} for s in arms}
    cells, acc = [(s, lr, k) for s in arms for lr in rates for k in shots if mean[s][lr] is None], {}
    for name in targets:
        st = study(name)
        with st.pool: runs = st.sweep([st.spec(s, k, lr, TUNE_SEED) for s,lr,k in cells])
        for (s,lr,_),r in zip(cells, runs): acc.setdefault((s, lr), []).append(r['valid_acc'])
    for (s,lr),a in acc.items(): mean[s][lr] = round(float(np.mean(a)), 4)
    middle = math.sqrt(rates[0]*rates[-1])
    chosen = {s: max(a, key=lambda lr: (a[lr], -abs(math.log(lr/middle)))) for s,a in mean.items()}
    res = dict(targets=targets, shots=shots, steps=150, accuracy=mean, chosen=chosen)
    file.write_text(json.dumps(res, indent=1) + '\n')
    print(json.dumps(res, indent=1),
          *[f'{s}: the winner {lr} is at an edge' for s,lr in chosen.items() if lr in (rates[0], rates[-1])], sep='\n')
