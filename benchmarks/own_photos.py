"""What the three commands of the README's "Your own photos" say: `compare`, `train` and `predict` on drawings written
to a folder.

    python benchmarks/own_photos.py [--budget MINUTES] [--size PIXELS] [--out FILE]     # writes own_photos.json

The drawings of `emoji` stand for photos that anybody could have. They are written to the folder `my-pictures` with
their split; `new-pictures` holds one test drawing of each of some classes, which `train` leaves out. All of it
happens in a temporary folder, without a network. The file keeps what was printed, line by line, and the seconds of
each command.
"""
import argparse, os, shutil, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path
from timing import save
from tlcourse.comparison import stored_comparison
from tlcourse.data import target
from tlcourse.records import Records

TLCOURSE = [sys.executable, '-c', 'import sys; from tlcourse.cli import main; sys.exit(main())']

@contextmanager
def inside(d): # contextlib.chdir is there from Python 3.11 on
    was = os.getcwd()
    os.chdir(d)
    try: yield
    finally: os.chdir(was)

def pictures(n):
    "Write `my-pictures`, and one test drawing of each of n classes to `new-pictures`"
    target('emoji').to_folder('my-pictures')
    os.mkdir('new-pictures')
    classes = sorted(Path('my-pictures/test').iterdir())
    for c in classes[::max(1, len(classes)//n)][:n]: shutil.copy(sorted(c.iterdir())[0], f'new-pictures/{c.name}.png')

def ask(*args, more=()):
    "Run `tlcourse *args *more`, and keep what it says, and after how many seconds"
    t0, lines = time.perf_counter(), []
    p = subprocess.Popen([*TLCOURSE, *args, *more], stdout=subprocess.PIPE, text=True)
    for line in p.stdout:
        print(line, end='', flush=True)
        lines.append((round(time.perf_counter() - t0), line.rstrip('\n')))
    if p.wait(): raise SystemExit(f"tlcourse {' '.join(args)}: exit {p.returncode}")
    return dict(command='tlcourse ' + ' '.join(args), lines=[l for _,l in lines], seconds=[t for t,_ in lines])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--budget', metavar='MINUTES', help='for compare (default: its own)')
    p.add_argument('--size', help="side of the pictures in pixels (default: the target's)")
    p.add_argument('--out', metavar='FILE', default=Path(__file__).with_suffix('.json'),
                   help='the JSON file (default: beside the script)')
    a = p.parse_args()
    size, out = ['--size', a.size]*bool(a.size), Path(a.out).resolve()
    with tempfile.TemporaryDirectory() as d, inside(d):
        pictures(6)
        asked = [ask('compare', 'my-pictures', *(['--budget', a.budget] if a.budget else []), more=size)]
        study = stored_comparison(Records(next(Path('tlcourse-out').glob('*/records.db')), readonly=True)).to_dict()
        asked += [ask('train', 'my-pictures', '-o', 'model', more=size), ask('predict', 'model', 'new-pictures')]
    save(out, [], commands=asked, study={k: study[k] for k in ('target', 'backbone', 'cells', 'missing',
                                                               'recommendation', 'stage', 'clock')})

if __name__ == '__main__': main()
