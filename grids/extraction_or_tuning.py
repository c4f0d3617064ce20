"""The stored map of lesson 9: five ways to train at 1, 5, 20 and all labels per class, on four drawn targets and emoji.

    python grids/extraction_or_tuning.py [MINUTES]
        # about six hours on one idle core; begins no cell after MINUTES, and goes on where it was stopped

The cells that change most what the page can say come first (`plan`). What is complete is written to
tlcourse/assets/extraction_or_tuning.db at the end (with 0 MINUTES: at once), and a later start with an empty
tlcourse-out begins from that file. A frozen body's heads have 20 seeds; what trains has 5 first and 20 later, emoji 5.
The file also holds the first edition's runs of the drawn targets (code 1, which no script makes again); those of
digits came from the grid of lesson 10.
"""
import shutil, sys, time
from functools import cache
from pathlib import Path
import tlcourse.study_stages # What a study does
from tlcourse.base import package_assets
from tlcourse.records import Records
from tlcourse.runs import Heads, run_spec, task
from tlcourse.study import Study

arms = 'scratch', 'random-features', 'feature-extraction', 'last-layers', 'fine-tuning', 'fine_tune'
shots = [1, 5, 20, 'all']
drawn = 'digits', 'letters', 'textures', 'hues'
out, stored = Path('tlcourse-out/extraction_or_tuning'), package_assets()/'extraction_or_tuning.db'

shifts = {n: ('blur', 'noise', 'contrast', *['letters-stix']*(n == 'letters')) for n in drawn} # Of the first edition

@cache
def tasks():
    "Pixel hash to the task of the target that has these pixels"
    every = [task(n, 'glyphnet', device='cpu', shifts=sh) for n,sh in shifts.items()]
    return {t.target.pixel_hash: t for t in every}

def run(spec):
    "One stored run again"
    t = tasks()[spec['pixel_hash']]
    if 'wd' not in spec: return run_spec(t, spec)
    return Heads(t, spec['strategy'] == 'random-features', spec['views'], progress=False).run([spec])[0]

def plan():
    "(target, arm, size, seeds) of the cells that train, the most telling first"
    # What review and correction left open: hues, whose rates were cut, and one label per class, at fixed rates
    yield 'hues', 'random-features', 'all', 20
    yield 'hues', 'fine-tuning', 'all', 5
    yield 'hues', 'scratch', 'all', 5
    yield 'textures', 'fine-tuning', 1, 20
    for k in 20, 5:
        for arm in 'fine-tuning', 'scratch': yield 'hues', arm, k, 5
    for k in 'all', 20, 5: yield 'hues', 'fine_tune', k, 5
    yield 'digits', 'fine-tuning', 1, 20
    yield 'letters', 'fine-tuning', 1, 20
    for k in 5, 20, 'all', 1:
        for t in 'digits', 'textures', 'letters', 'hues': yield t, 'fine-tuning', k, 5
    for arm in 'scratch', 'fine_tune':
        for k in 5, 20, 1, 'all':
            for t in drawn: yield t, arm, k, 5
    for arm in 'fine-tuning', 'scratch', 'fine_tune':
        for k in shots:
            for t in drawn: yield t, arm, k, 20
    for t in drawn: yield t, 'random-features', 'all', 20
    for n in 5, 20:
        for k in shots:
            for t in drawn: yield t, 'last-layers', k, n
    for arm in 'fine-tuning', 'fine_tune', 'last-layers', 'scratch':
        for k in shots: yield 'emoji', arm, k, 5

class Map:
    "The studies, each made when it is first needed"
    def __init__(self): self.studies = {}
    def __getitem__(self, name):
        if name not in self.studies:
            job = task(name, 'glyphnet' if name in drawn else None, device='cpu')
            self.studies[name] = Study(job, list(arms), shots, 5, out=out, workers=1)
        return self.studies[name]
    def run(self, name, arm, k, seeds):
        "Run a cell, and before the first of a target the heads on its body"
        st = self[name]
        if arm == 'random-features': st.control(); return # All its sizes at once
        if not any(c['strategy'] == 'feature-extraction' for c in st.cells): st.frozen()
        st.choose([(arm, k)])
        st._run_cells({(arm, k): seeds})

def complete(st):
    "The study with the cells whose runs are all stored, and with no other"
    if st._heads_stored(['feature-extraction']): st.frozen()
    if st._heads_stored(['random-features']): st.control()
    for cell in ((a, k) for a in st.trained for k in st.shots):
        if (rate := st._known(cell)) is None: continue
        seeds = [n for n in (20, 5) if st._stored([st.spec(*cell, rate.rate, i, 'report') for i in range(n)])]
        if not seeds: continue
        st.rates[cell] = rate
        st._run_cells({cell: seeds[0]})
    return st

def export():
    "Write what is complete to the package"
    cells = Map()
    for name in (*drawn, 'emoji'):
        if complete(cells[name]).cells: cells[name].finish(1)
    print(Records(out/'records.db').export(stored).stat().st_size, 'bytes')

def main(minutes):
    began, cells = time.monotonic(), Map()
    if not (out/'records.db').exists() and stored.exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(stored, out/'records.db')
    for cell in plan():
        if time.monotonic() - began >= 60*minutes: break
        cells.run(*cell)
    export()

if __name__ == '__main__': main(float(sys.argv[1]) if sys.argv[1:] else float('inf'))
