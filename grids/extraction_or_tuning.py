"""The stored grid of lesson 9: four strategies on three drawn targets at four sizes, in distribution and under shift.

    python grids/extraction_or_tuning.py
        # about 20 minutes on 2 idle cores; goes on where it was stopped

The digits of the same lesson come from the grid of lesson 10, which runs them with the same settings. Each target has
two studies: rates chosen on validation pictures, and, for what is said about one label per class, fixed rates.
"""
from functools import cache, partial
from tlcourse.base import package_assets
from tlcourse.compare import compare
from tlcourse.runs import run_spec, task
from tlcourse.records import Records

strategies = 'scratch', 'random-features', 'feature-extraction', 'fine-tuning'
shifts = 'blur', 'noise', 'contrast'
targets = {'letters': (*shifts, 'letters-stix'), 'textures': shifts, 'hues': shifts}
out = 'tlcourse-out/extraction_or_tuning'

@cache
def tasks():
    "Pixel hash to the task of the target that has these pixels"
    every = [task(n, 'glyphnet', device='cpu', shifts=sh) for n,sh in targets.items()]
    return {t.target.pixel_hash: t for t in every}

def run(spec):
    "One stored run again"
    return run_spec(tasks()[spec['pixel_hash']], spec)

def grid(**kwargs):
    for n,sh in targets.items():
        study = partial(compare, n, strategies=strategies, shifts=sh, out=out, device='cpu', **kwargs)
        study(shots=[1, 5, 20, 100])
        study(shots=1, tune='none')

if __name__ == '__main__':
    grid()
    print(Records(f'{out}/records.db').export(package_assets()/'extraction_or_tuning.db').stat().st_size, 'bytes')
