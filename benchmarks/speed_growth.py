"""Growth: seconds and memory against pictures, classes and heads (row 8).

    python benchmarks/speed_growth.py [--smoke] [--large] [--rounds N] [--out FILE]
        # about three minutes; writes speed_growth.json

--large goes on to 200,000 pictures, by hand (most of an hour). Each point is a fresh process with caches of its own:
the CPU seconds of the call alone, and how far the anonymous resident memory (RssAnon of /proc: what cannot be dropped
as the page of a file can) rose during it, sampled every 10 ms; where there is no /proc, the peak of all resident
memory. A slope is that of the straight line through the points in logarithms: 1 is proportional, 0 does not grow; its
spread, the slopes between neighbouring points.
"""
import json, math, os, statistics, subprocess, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from timing import arguments, finish, row # first of all: it sets one thread
from tlcourse.sweep import one_thread

STATUS = Path('/proc/self/status')
FULL = dict(read=(500, 2000, 5000, 20000), read_classes=(2, 10, 50, 250, 1000), extract=(500, 2000, 5000, 20000),
            classes=(2, 10, 50, 200, 1000), heads=(10, 100, 1000, 10000))
LARGE = dict(FULL, read=(*FULL['read'], 200_000), extract=(*FULL['extract'], 200_000))
SMOKE = dict(read=(40, 80), read_classes=(2, 4), extract=(16, 32), classes=(2, 4), heads=(4, 8))
DIMS = 192 # features of a picture for the heads

# --- one point, in a process of its own -----------------------------------------------------------------------------
def rss():
    "Anonymous resident MB now; None where /proc does not say"
    lines = STATUS.read_text().splitlines() if STATUS.is_file() else []
    return next((int(l.split()[1])/1024 for l in lines if l.startswith('RssAnon')), None)

def peak():
    "Highest resident MB of this process so far, files included"
    try: from resource import RUSAGE_SELF, getrusage
    except ImportError: return None # Windows
    return getrusage(RUSAGE_SELF).ru_maxrss/(1024 if sys.platform == 'linux' else 2**20)

class Watch:
    "The rise of the memory inside, in MB"
    def __enter__(self):
        self.before = self.top = rss()
        self.all, self.end = peak(), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self
    def _look(self):
        while self.before is not None and not self.end.wait(.01): self.top = max(self.top, rss())
    def __exit__(self, *_):
        self.end.set()
        self.thread.join()
        if self.before is not None: self.mb = max(self.top, rss()) - self.before
        else: self.mb = None if self.all is None else peak() - self.all

def files(folder, n, classes):
    "n small JPEG files, each another picture, in class folders"
    from PIL import Image
    rng = np.random.RandomState(0)
    for c in range(classes): (folder/f'class{c:04d}').mkdir(parents=True)
    for i in range(n):
        x = rng.randint(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(x).save(folder/f'class{i % classes:04d}'/f'{i:06d}.jpg', quality=85)

def of_folder(d, n, classes):
    from tlcourse.data import target
    files(d/'pictures', n, classes)
    return lambda: target(d/'pictures', size=32)

def read(d, n, _): return of_folder(d, n, 10)
def read_classes(d, n, most): return of_folder(d, 4*most, n)

def extract(d, n, _):
    "Features of n pictures that lie in a file, stored in a file"
    import torch
    from tlcourse.loaders import Part
    from tlcourse.features import extract
    x = np.lib.format.open_memmap(d/'x.npy', 'w+', np.uint8, (n, 3, 32, 32))
    rng = np.random.RandomState(0)
    for i in range(0, n, 1000): x[i:i+1000] = rng.randint(0, 256, (len(x[i:i+1000]), 3, 32, 32), dtype=np.uint8)
    part = Part('train', torch.from_numpy(x), np.arange(n) % 10, range(10))
    extract('glyphnet', part, ids=np.arange(8), device='cpu', cache=False, progress=False) # what is loaded once
    return lambda: extract('glyphnet', part, device='cpu', progress=False)

class Drawn:
    "Features of n pictures: Gaussian clouds, one around a centre for each class"
    views = 1
    def __init__(self, n, c):
        rng = np.random.RandomState(0)
        self.y, self.classes = np.arange(n) % c, list(range(c))
        self.x = (rng.randn(c, DIMS)[self.y] + 2*rng.randn(n, DIMS)).astype(np.float32)

def classes(_, n, most):
    from tlcourse.probes import fit_probes
    f = Drawn(2*most, n)
    return lambda: fit_probes(f, [np.arange(2*most)], (1e-2,), device='cpu')

def heads(_, n, most):
    from tlcourse.data import kshot
    from tlcourse.probes import fit_probes
    f = Drawn(1000, 10)
    subsets = [kshot(f.y, 5, s) for s in range(math.ceil(n/2))]
    return lambda: fit_probes(f, subsets, (1e-3, 1e-2), device='cpu')

def point(what, n, most): # most: the last point of the line
    "Seconds and memory of one point, as JSON on the screen"
    with tempfile.TemporaryDirectory() as d, one_thread():
        os.environ['TLCOURSE_CACHE'] = f'{d}/cache'
        f = globals()[what](Path(d), int(n), int(most))
        with Watch() as w:
            c, s = time.process_time(), time.perf_counter()
            f()
            c, s = time.process_time() - c, time.perf_counter() - s
        print(json.dumps(dict(seconds=c, wall=s, mb=w.mb, peak_mb=peak())))

# --- all of them ----------------------------------------------------------------------------------------------------
def measured(what, n, most, rounds):
    "The medians of some runs of a point"
    def once():
        cmd = [sys.executable, '-W', 'ignore', __file__, '--point', what, str(n), str(most)]
        r = subprocess.run(cmd, capture_output=True, text=True)
        if r.returncode: raise RuntimeError(f'{what} {n}:\n{r.stderr}')
        return json.loads(r.stdout.splitlines()[-1])
    runs = [once() for _ in range(rounds)]
    med = {k: None if runs[0][k] is None else statistics.median(r[k] for r in runs) for k in runs[0]}
    memory = f", {med['mb']:+9.1f} MB" if med['mb'] is not None else ''
    print(f"{what:>13} {n:>8,}: {med['seconds']:9.3f} CPU s{memory}", flush=True)
    return dict(what=what, n=n, **med, runs=runs)

def slope(points, key):
    "Slope in logarithms through the points, and the lowest and the highest between neighbours"
    x, y = (np.log([max(p[k], 1e-3) for p in points]) for k in ('n', key))
    parts = np.diff(y)/np.diff(x)
    return float(np.polyfit(x, y, 1)[0]), float(parts.min()), float(parts.max())

LINES = dict(read=('a folder read into a target', 'pictures', 1.1, None),
             read_classes=('a folder read into a target', 'classes of as many pictures', .1, None),
             extract=('extraction to a file', 'pictures', 1.1, .1),
             classes=('a head on as many pictures', 'classes', 1.1, None),
             heads=('heads at once', 'heads', 1.1, None))

def line(points, what):
    "The rows of one line: slope of the seconds, and of the memory"
    name, of, most, most_mb = LINES[what]
    ns = f"{points[0]['n']:,} to {points[-1]['n']:,} {of}"
    s = slope(points, 'seconds')
    last = points[-1]
    res = [row(f'{name}, seconds against {ns}: slope', f'<= {most:g}', *s, s[0] <= most,
               f"at {last['n']:,}: {last['seconds']:.2f} CPU s")]
    if last['mb'] is None: return res
    m, note = (slope(points, 'mb'),
               f"rise from {points[0]['mb']:.1f} to {last['mb']:.1f} MB, process at most {last['peak_mb']:.0f} MB")
    return res + [row(f'{name}, memory against {ns}: slope', '' if most_mb is None else f'<= {most_mb:g}', *m,
                      None if most_mb is None else m[0] <= most_mb, note)]

def taken(*flags):
    "Which of these words are on the command line; they are taken from it"
    got = [f in sys.argv for f in flags]
    sys.argv[1:] = [o for o in sys.argv[1:] if o not in flags]
    return got

def main():
    if sys.argv[1:2] == ['--point']: return point(*sys.argv[2:])
    large, = taken('--large')
    args = arguments(__doc__, 1)
    sizes = SMOKE if args.smoke else LARGE if large else FULL
    with ThreadPoolExecutor(2 if args.smoke else 1) as ex: # where figures count, one process at a time
        jobs = {what: [ex.submit(measured, what, n, ns[-1], args.rounds) for n in ns] for what,ns in sizes.items()}
        points = {what: [j.result() for j in js] for what,js in jobs.items()}
    rows = [r for what,ps in points.items() for r in line(ps, what)]
    finish(args, 'speed_growth', rows, points=[p for ps in points.values() for p in ps])

if __name__ == '__main__': main()
