"""Start-up: the command, the package and everything of it, each in a fresh process (row 7).

    python benchmarks/speed_start.py [--smoke] [--rounds N] [--out FILE]     # about a minute; writes speed_start.json

Wall seconds of whole processes, interpreter included, in interleaved rounds after one that fills the system's file
cache.
"""
import re, statistics, subprocess, sys, tempfile
from functools import partial
from pathlib import Path
from timing import arguments, at_most, finish, ratio, rounds, row

def command():
    "`tlcourse --help` as it is installed beside this Python, else what that command calls"
    name = Path(sys.executable).with_name('tlcourse.exe' if sys.platform == 'win32' else 'tlcourse')
    if name.is_file(): return [str(name), '--help']
    print('tlcourse --help: no such command beside this Python, so its function is called')
    return [sys.executable, '-c', 'from tlcourse.cli import main; main(["--help"])']

def statement(s): return [sys.executable, '-W', 'ignore', '-c', s]

def run(cmd, where): # where: an empty folder, so that nothing in it is imported
    r = subprocess.run(cmd, cwd=where, capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f"{cmd} failed:\n{r.stderr}")
    return r

def imports(cmd, where):
    "Own milliseconds of each module that a Python command imports, by `-X importtime`"
    out = run([cmd[0], '-X', 'importtime', *cmd[1:]], where).stderr
    return {m[2]: int(m[1])/1e3 for m in re.finditer(r'^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$', out, re.M)}

def slow_imports(cmd, where, but=()):
    "The modules that cost most by themselves, without those in `but`, as lines"
    ms = {k: v for k,v in imports(cmd, where).items() if k not in but}
    top = sorted(ms.items(), key=lambda o: -o[1])[:10]
    return [f'{sum(ms.values()):8.1f} ms in {len(ms):,} modules', *(f'{v:8.1f} ms {k}' for k,v in top)]

def main():
    args = arguments(__doc__, 7)
    cmds = {'tlcourse --help': command(), **{s: statement(s) for s in (
        'import tlcourse', 'from tlcourse.all import *', 'from fastai.vision.all import *', 'pass')}}
    with tempfile.TemporaryDirectory() as d:
        s = rounds({k: partial(run, c, d) for k,c in cmds.items()}, args.rounds, warm=not args.smoke, clock='wall')
        def within(k, limit):
            m = statistics.median(s[k])
            return row(f'{k}, seconds', f'< {limit:g}', m, min(s[k]), max(s[k]), m < limit)
        both = 'from tlcourse.all import *', 'from fastai.vision.all import *'
        rows = [within('tlcourse --help', .5), within('import tlcourse', .3),
                at_most(' / '.join(both), 1.1, ratio(*(s[k] for k in both)),
                        ' and '.join(f'{statistics.median(s[k]):.2f} s' for k in both))]
        facts = dict(seconds=s, python_alone=statistics.median(s['pass']))
        for k,r in zip(cmds, rows):
            if r['reached']: continue
            cmd = [sys.executable, *cmds[k]] if 'python' not in Path(cmds[k][0]).name else cmds[k]
            lines = slow_imports(cmd, d, imports(cmds[both[1]], d) if k == both[0] else ())
            print(f'imports of {k}' + (" that fastai's are not" if k == both[0] else '') + ':', *lines, sep='\n  ')
            facts.setdefault('profile', {})[k] = lines
    finish(args, 'speed_start', rows, **facts)

if __name__ == '__main__': main()
