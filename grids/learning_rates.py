"""The stored grid of lesson 8: lower rates for early layers against one rate for all, on textures.

    python grids/learning_rates.py
        # about 4 minutes of one core; goes on where it was stopped

Records lie in tlcourse-out/learning_rates/records.db; the end writes tlcourse/assets/learning_rates.db. Rates are
chosen by the rule of `compare`: a grid for each arm, validation loss over three tuning seeds, no winner at an edge.
"""
from functools import cache, partial
from tlcourse.base import package_assets
from tlcourse.compare import compare
from tlcourse.records import Records
from tlcourse.runs import run_spec, task

out = 'tlcourse-out/learning_rates'
job = cache(partial(task, 'textures', 'glyphnet', device='cpu'))

def run(spec):
    "One stored run again"
    return run_spec(job(), spec)

if __name__ == '__main__':
    compare('textures', strategies=['fine-tuning', 'single-rate'], shots=[5], seeds=20, steps=60, out=out,
            device='cpu', workers=1, budget='none')
    print(Records(f'{out}/records.db').export(package_assets()/'learning_rates.db').stat().st_size, 'bytes')
