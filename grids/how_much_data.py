"""The stored grid of lesson 10: digits at seven sizes, and many draws of one label per class.

    python grids/how_much_data.py      # about 20 minutes on 2 idle cores; goes on where it was stopped

Scratch, extraction and fine-tuning at rates chosen on validation pictures; the ways to fine-tune at fixed rates,
among themselves.
"""
from functools import cache, partial
from tlcourse.base import package_assets
from tlcourse.compare import compare
from tlcourse.runs import run_spec, task
from tlcourse.records import Records

shifts = 'blur', 'noise', 'contrast'
sizes = [1, 2, 5, 10, 20, 50, 100]
out = 'tlcourse-out/how_much_data'

@cache
def digits(): return task('digits', 'glyphnet', device='cpu')

def run(spec):
    "One stored run again"
    return run_spec(digits(), spec)

def grid(**kwargs):
    study = partial(compare, 'digits', shifts=shifts, out=out, device='cpu', **kwargs)
    study(strategies=['scratch', 'random-features', 'feature-extraction', 'fine-tuning'], shots=sizes)
    study(strategies=['scratch', 'feature-extraction', 'fine-tuning'], shots=1, seeds=20, tune='none')
    # what one label and five to choose with would have bought
    study(strategies=['feature-extraction', 'fine-tuning'], shots=6, tune='none')
    study(strategies=['fine-tuning', 'lp-ft', 'gradual', 'single-rate'], shots=[1, 5, 20], tune='none')

if __name__ == '__main__':
    grid()
    print(Records(f'{out}/records.db').export(package_assets()/'how_much_data.db').stat().st_size, 'bytes')
