"""The fixed learning rates of tlcourse.finetune.RATES, chosen on validation pictures of two targets that no reported table shows.

    python benchmarks/rates.py      # about 5 minutes on 2 cores; writes benchmarks/rates.json, which the fine-tuning page checks RATES against
"""
import json
from pathlib import Path
import numpy as np
from tlcourse.compare import Study, TUNE_SEED
from tlcourse.finetune import STRATEGIES

targets, shots, rates = ['textures', 'letters-scripts'], [1, 5, 20], [2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]

def study(name):
    where = dict(target=name, size=None, drop_duplicates=False, weights=None, device='cpu')
    return Study(where, 'glyphnet', list(STRATEGIES), shots, 3, 150, 'valid', 15, 32, True, f'tlcourse-out/rates/{name}', None, print)

if __name__ == '__main__':
    cells, acc = [(s, lr, k) for s in STRATEGIES for lr in rates for k in shots], {}
    for name in targets:
        st = study(name)
        for (s,lr,_),r in zip(cells, st.sweep([st.spec(s, k, lr, TUNE_SEED) for s,lr,k in cells])): acc.setdefault((s, lr), []).append(r['valid_acc'])
    mean = {s: {lr: round(float(np.mean(acc[s, lr])), 4) for lr in rates} for s in STRATEGIES}
    res = dict(targets=targets, shots=shots, steps=150, accuracy=mean, chosen={s: max(a, key=a.get) for s,a in mean.items()})
    Path(__file__).with_suffix('.json').write_text(json.dumps(res, indent=1) + '\n')
    print(json.dumps(res, indent=1))
