"""The code cells of lessons on the pretended device: `python tests/pretend_lessons.py RESULTS LESSON.ipynb...`, a process of its own (see
pretend.py). Every fit is cut to two steps (but for a range test of learning rates, whose suggestion needs thirty), and a study by `compare`
chooses no rates and takes photos of 64 pixels; a validation runs whole. Before a cell of which pretend_plants.py knows a mistake, the cell is run with that mistake, on a copy of the names.

A line of JSON for each lesson and each mistake is added to RESULTS: `name`, `errors` (cell, error), `mistakes`, `seconds` of processor time.
"""
import json, os, sys, time, warnings
from itertools import islice
from pathlib import Path
import pretend
pretend.install()
import fastai.vision.all, tlcourse.all
from fastai.callback.schedule import LRFinder
from fastai.learner import Learner
from IPython.core.interactiveshell import InteractiveShell
from tlcourse.dev import cells
import pretend_plants as plants

fit, all_batches, lr_find, compare = Learner.fit, Learner.all_batches, Learner.lr_find, tlcourse.all.compare

def whole(learn): return not learn.training or any(isinstance(cb, LRFinder) for cb in learn.cbs)

def short_fit(self, n_epoch, *args, **kwargs):
    return fit(self, n_epoch if any(isinstance(cb, LRFinder) for cb in fastai.vision.all.L(kwargs.get('cbs'))) else 1, *args, **kwargs)

def two_batches(self):
    if whole(self): return all_batches(self)
    self.n_iter = min(len(self.dl), 2)
    for o in enumerate(islice(self.dl, 2)): self.one_batch(*o)

def short_range_test(self, *args, **kwargs): return lr_find(self, *args, **{**kwargs, 'num_it': 30})

def small_study(target, *args, **kwargs):
    size = dict(size=64) if isinstance(target, Path) else {}
    return compare(target, *args, **{**kwargs, **size, 'tune': 'none'})

def run(shell, source):
    "The error of a cell, or ''"
    r, out, err = None, sys.stdout, sys.stderr
    with open(os.devnull, 'w') as sys.stdout:
        sys.stderr = sys.stdout
        try: r = shell.run_cell(source)
        finally: sys.stdout, sys.stderr = out, err
    e = r.error_before_exec or r.error_in_exec
    return f'{type(e).__name__}: {e}' if e else ''

def with_mistake(p, shell, cell):
    "What a cell says with a mistake in it; the names are afterwards what they were"
    assert cell.count(p.now) == 1 or not p.now, f'{p.name}: the cell has no longer the text {p.now!r}: plant the mistake anew'
    names, n = dict(shell.user_ns), len(pretend.mistakes)
    with plants.planted(p, shell.user_ns): error = run(shell, cell.replace(p.now, p.then) if p.now else cell)
    shell.user_ns.clear()
    shell.user_ns.update(names)
    seen = pretend.mistakes[n:]
    del pretend.mistakes[n:]
    return dict(name=f'planted: {p.name}', errors=[(p.seen_by, error)]*bool(error), mistakes=seen, seconds=0)

def lesson(path):
    "A line for the lesson, and one for each mistake planted in it"
    InteractiveShell.clear_instance()
    shell, errors, res = InteractiveShell.instance(), [], []
    os.chdir(path.parent)
    n, t = len(pretend.mistakes), time.process_time()
    for c in cells(path, 'code'):
        t0 = time.process_time()
        res += [with_mistake(p, shell, c['source']) for p in plants.LESSONS if p.lesson == path.stem[3:] and p.seen_by == c['id']]
        t += time.process_time() - t0
        if (e := run(shell, c['source'])): errors.append((c['id'], e))
    return [dict(name=path.stem, errors=errors, mistakes=pretend.mistakes[n:], seconds=round(time.process_time() - t, 1)), *res]

def main(out, *paths):
    warnings.filterwarnings('ignore')
    Learner.fit, Learner.all_batches, Learner.lr_find, tlcourse.all.compare = short_fit, two_batches, short_range_test, small_study
    for p in map(Path, paths):
        for line in lesson(p.absolute()):
            with open(out, 'a') as f: print(json.dumps(line), file=f)

if __name__ == '__main__': main(os.path.abspath(sys.argv[1]), *map(os.path.abspath, sys.argv[2:]))
