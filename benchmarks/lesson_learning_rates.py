"""The stored grid of lesson 8: lower rates for early layers against one rate for all, on textures.

    python benchmarks/lesson_learning_rates.py
        # about 6 minutes of one core; goes on where it was stopped

Records lie in tlcourse-out/learning_rates/records.db; the end writes tlcourse/assets/learning_rates.db. Rates are
chosen by the rule of `compare`: a grid for each arm, validation loss over three tuning seeds, no winner at an edge.
Then each arm is run at the other's rate too, with the same seeds.
"""
from functools import cache, partial
from tlcourse.base import package_assets
from tlcourse.compare import compare
from tlcourse.records import Records
from tlcourse.runs import run_spec, task
from tlcourse.sweep import sweep

strategies = 'fine-tuning', 'single-rate'
out = 'tlcourse-out/learning_rates'
job = cache(partial(task, 'textures', 'glyphnet', device='cpu'))

def run(spec):
    "One stored run again"
    return run_spec(job(), spec)

def grid(seeds=20, steps=60):
    c = compare('textures', strategies=list(strategies), shots=[5], seeds=seeds, steps=steps, out=out, device='cpu',
                workers=1, budget='none')
    chosen = {r['strategy']: r['rate'] for r in c.rates}
    for arm,other in zip(strategies[::-1], strategies):
        specs = [r.spec for r in c.records.rows(kind='report', strategy=other, lr=chosen[other])]
        sweep([{**s, 'strategy': arm} for s in specs], c.records, run, workers=1)

if __name__ == '__main__':
    grid()
    print(Records(f'{out}/records.db').export(package_assets()/'learning_rates.db').stat().st_size, 'bytes')
