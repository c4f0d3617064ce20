"""What every benchmark of speed here shares: interleaved rounds, ratios with their spread, rows against targets, the
JSON beside the scripts.

Arms are run in turn, each once a round, in an order that a fixed seed shuffles; torch, OpenMP and BLAS have one
thread for every arm. A ratio is the median of the ratios of single rounds, and its spread goes from the lowest to the
highest of them: what slows the machine for a minute slows both sides of a round. Seconds are CPU seconds of this
process and of the processes it waited for, unless said.
"""
import argparse, cProfile, gc, importlib, io, json, os, platform, pstats, random, re, statistics, sys, time
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1') # before torch is imported
from tlcourse.base import versions
from tlcourse.sweep import one_thread

here = Path(__file__).parent

def _cpu():
    t = os.times()
    return time.process_time() + t.children_user + t.children_system

def _sync():
    torch = sys.modules.get('torch')
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized(): torch.cuda.synchronize()

clocks = {'process': _cpu, 'wall': time.perf_counter}

def seconds(f, clock='process'):
    "Seconds of one call, and what it gives"
    _sync()
    t = clocks[clock]()
    res = f()
    _sync()
    return clocks[clock]() - t, res

def rounds(arms, # name -> callable; or -> (set-up, callable of what the set-up gave), of which the second is timed
           n=5, # Rounds that count
           warm=1, # Rounds before them that do not
           clock='process', # 'process': CPU seconds; 'wall'
           seed=0, # Of the order
           results=None # A dict: what each arm gave last
          ): # name -> list of n seconds
    "Every arm once a round, in shuffled order, on one thread."
    rng, res = random.Random(seed), {k: [] for k in arms}
    with one_thread():
        for i in range(-warm, n):
            for k in rng.sample(list(arms), len(arms)):
                setup, run = arms[k] if isinstance(arms[k], tuple) else (None, arms[k])
                state = (setup(),) if setup else ()
                gc.collect()
                t, out = seconds(lambda: run(*state), clock)
                if results is not None: results[k] = out
                if i >= 0: res[k].append(t)
                del state, out
    return res

def times(k, secs): # k of what was timed once, such as epochs
    "Seconds of k of them: extrapolated, each round by itself"
    return [k*t for t in secs]

def plus(*secs):
    "Seconds of several arms together, round by round"
    return [sum(o) for o in zip(*secs, strict=True)]

def ratio(a, b): # seconds by rounds, of the same rounds
    "Median of the ratios a/b of the rounds, with the lowest and the highest"
    rs = [x/y for x,y in zip(a, b, strict=True)]
    return dict(ratio=statistics.median(rs), low=min(rs), high=max(rs), n=len(rs))

def row(name, target_text, value, low, high, reached, note=''):
    """One line of a table: what, its target in words, what was measured with its spread, and whether it was
    reached (None: no target)"""
    return dict(name=name, target=target_text, value=float(value), low=float(low), high=float(high),
                reached=None if reached is None else bool(reached), note=note)

def at_most(name, limit, r, note=''):
    "A row from a `ratio` that has to stay at or below `limit`"
    return row(name, f'<= {limit:g}', r['ratio'], r['low'], r['high'], r['ratio'] <= limit, note)

def at_least(name, limit, r, note=''):
    "A row from a `ratio` that has to reach `limit`"
    return row(name, f'>= {limit:g}', r['ratio'], r['low'], r['high'], r['ratio'] >= limit, note)

def said(name, r, note=''):
    "A row from a `ratio` without a target"
    return row(name, '', r['ratio'], r['low'], r['high'], None, note)

def _n(x): return f'{x:.3g}' if x == 0 or 1e-3 <= abs(x) < 1e4 else f'{x:.1e}'

def table(lines, head=None):
    "Lists of words as aligned columns"
    lines = [[str(o) for o in l] for l in ([head] if head else []) + list(lines)]
    wide = [max(map(len, c)) for c in zip_longest(*lines, fillvalue='')]
    return '\n'.join('  '.join(f'{o:<{w}}' for o,w in zip(l, wide)).rstrip() for l in lines)

def show(rows):
    "The rows as an aligned table on the screen"
    words = {True: 'reached', False: 'MISSED', None: ''}
    print(table([(r['name'], r['target'], _n(r['value']), f"{_n(r['low'])} - {_n(r['high'])}", words[r['reached']],
                  r['note'])
                 for r in rows], ('what', 'target', 'measured', 'lowest - highest', '', 'note')), flush=True)

def device():
    "The machine in words"
    cpu = platform.processor() or platform.machine()
    try: cpu = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError): pass # another system than Linux, or another kind of CPU
    import torch
    card = dict(gpu=torch.cuda.get_device_name()) if torch.cuda.is_available() else {}
    return dict(cpu=cpu, cores=os.cpu_count(), threads=1, **card)

def packages(*names):
    "Versions of the peers that are installed"
    from importlib import metadata
    res = {}
    for n in names:
        try: res[n] = metadata.version(n)
        except metadata.PackageNotFoundError: pass
    return res

def save(file, rows, **facts): # a name: a JSON file beside this one; or a path
    "Write rows and facts (the raw seconds among them) with date, versions and machine; -> the path"
    path = Path(file)
    if not path.suffix: path = here/f'{path.name}.json'
    res = dict(date=time.strftime('%Y-%m-%d'), versions=versions(), device=device(), rows=rows, **facts)
    path.write_text(json.dumps(res, indent=1, default=float) + '\n', encoding='utf-8')
    return path

def arguments(doc, n=5):
    "The arguments of every script; `--smoke` means one round"
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--smoke', action='store_true',
                   help='tiny sizes, one round, no JSON unless --out: only shows that the script runs')
    p.add_argument('--rounds', type=int, default=n, metavar='N', help='rounds that count (default: %(default)s)')
    p.add_argument('--out', type=Path, metavar='FILE', help='the JSON file (default: beside the script)')
    args = p.parse_args()
    if args.rounds < 1: p.error('--rounds: one or more')
    if args.smoke: args.rounds = 1
    return args

def finish(args, name, rows, **facts):
    "Show the rows, and write them where the arguments say"
    show(rows)
    if args.smoke and not args.out:
        return print('smoke run: sizes are tiny, so the figures mean nothing; nothing written')
    print(f'written: {save(args.out or name, rows, smoke=args.smoke, rounds=args.rounds, **facts)}')

def peer(module, what=None):
    "The module of a peer; None, and one line, where it is not installed"
    try: return importlib.import_module(module)
    except ImportError as e:
        print(f"{what or module}: left out, it cannot be imported ({e}); pip install -e '.[benchmarks]'")

def profiled(f, k=8, by='torch'):
    "The k costliest entries of one call, as lines: by operator of torch ('torch') or by function ('python')"
    with one_thread():
        if by == 'python':
            pr, out = cProfile.Profile(), io.StringIO()
            pr.runcall(f)
            pstats.Stats(pr, stream=out).sort_stats('tottime').print_stats(k)
            lines = [re.sub(r'\S*/(\w+/[\w.]+:)', r'\1', l.strip()) for l in out.getvalue().splitlines()]
            return [l for l in lines[lines.index(next(l for l in lines if l.startswith('ncalls'))):] if l]
        from torch.profiler import ProfilerActivity, profile
        with profile(activities=[ProfilerActivity.CPU]) as pr: f()
    es = sorted(pr.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in es) or 1
    return [f'{e.self_cpu_time_total/total:6.1%} {e.self_cpu_time_total/1e6:8.3f} s {e.count:7,} x {e.key}'
            for e in es[:k]]

def explain(rows, f, facts, by='torch', what=''):
    "Where a row missed its target: print the profile of `f` and keep it in `facts['profile']`"
    if all(r['reached'] is not False for r in rows): return
    lines = profiled(f, by=by)
    print(f"profile of {what or 'one call'}:", *lines, sep='\n  ')
    facts.setdefault('profile', {})[what or 'one call'] = lines

@contextmanager
def quiet():
    "No warnings, no bars and no logging of the peers inside"
    import logging, warnings
    loud = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: yield
        finally: logging.disable(loud)
