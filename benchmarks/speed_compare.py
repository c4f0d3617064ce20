"""`tlcourse compare digits` with its default settings, against the training steps in it timed alone (row 6).

    python benchmarks/speed_compare.py [--smoke] [--rounds N] [--out FILE]     # about five minutes on 2 cores; writes speed_compare.json

The command runs once, in a fresh process with a fresh store and a fresh cache, on two cores. Then each kind of step in its store is timed
by itself, one process on one thread: the seconds that some more steps add to a run of the strategy, divided by their number; for feature
extraction also its passes over the pictures. Times their numbers in the store, they are what the command would cost if it did nothing else.
"""
import os, subprocess, sys, tempfile, time
from functools import lru_cache
from inspect import signature
from pathlib import Path
import numpy as np
from timing import arguments, at_most, clocks, finish, quiet, rounds, row, said, table
from tlcourse.backbones import arch, learner
from tlcourse.data import target
from tlcourse.features import pooled
from tlcourse.finetune import STRATEGIES
from tlcourse.layers import true_freeze
from tlcourse.records import Records
from tlcourse.sweep import cores, one_thread

TINY = '--strategies scratch,feature-extraction,fine-tuning --shots 1,2 --seeds 3 --steps 4 --tune none'.split()
FEW, MANY = 10, 70 # steps; the difference is what is timed
CACHED = 'feature-extraction', 'random-features' # their body's passes are their training

def command(out, smoke):
    "Wall and CPU seconds of the command, and what it printed"
    code = 'import sys; from tlcourse.cli import main; sys.exit(main(sys.argv[1:]))'
    cmd = [sys.executable, '-c', code, 'compare', 'digits', '--out', str(out/'out'), '--device', 'cpu', *(TINY if smoke else [])]
    if cores() > 2: cmd += ['--workers', '2']
    env = {**os.environ, 'TLCOURSE_CACHE': str(out/'cache')}
    c, w = clocks['process'](), time.perf_counter()
    r = subprocess.run(cmd, cwd=out, env=env, capture_output=True, text=True)
    c, w = clocks['process']() - c, time.perf_counter() - w
    if r.returncode: raise RuntimeError(f'compare failed:\n{r.stdout}\n{r.stderr}')
    return w, c, r.stdout

# --- steps alone --------------------------------------------------------------------------------------------------------
@lru_cache(1)
def digits(): return target('digits')

def dls(spec):
    return digits().dls(shots=spec['shots'], seed=0, bs=spec['bs'], augment=spec['augment'], valid_shots=spec['V'], device='cpu')

def fit(spec, steps):
    return STRATEGIES[spec['strategy']](dls(spec), spec['backbone'], steps=steps, seed=0, progress=False)

def batch(spec): return min(spec['bs'], spec['shots']*len(digits().classes))

def passes(spec):
    "A call that does the passes of a strategy on stored features, as often as it does them"
    learn = true_freeze(learner(dls(spec), arch(spec['backbone'])))
    views = signature(STRATEGIES[spec['strategy']]).parameters.get('views', signature(STRATEGIES['feature-extraction']).parameters['views'])
    train = learn.dls.train.new(shuffle=False, drop_last=False)
    def f():
        for _ in range(views.default): pooled(learn, train)
        pooled(learn, learn.dls.valid)
    return f

def plain_step(spec, steps):
    "The same number of steps in plain torch"
    from speed_training import network, plain
    t, bs = digits(), batch(spec)
    names, stats = t.augments if spec['augment'] else (), arch(spec['backbone']).stats
    return lambda: plain(network(spec['backbone']), t.train, stats, names, bs, steps)

def alone(specs, n, steps):
    "(strategy, batch) -> n seconds of a step, (strategy, shots) -> n seconds of its passes, and of a step in plain torch"
    kinds = {(s['strategy'], batch(s)): s for s in specs}
    cached = {(s['strategy'], s['shots']): s for s in specs if s['strategy'] in CACHED}
    few, many = steps
    arms = {(k, m): lambda s=s, m=m: fit(s, m) for k,s in kinds.items() for m in steps}
    arms |= {(k, 'passes'): passes(s) for k,s in cached.items()}
    arms |= {(k, 'plain'): plain_step(s, many) for k,s in kinds.items() if s['strategy'] not in CACHED}
    got = rounds(arms, n)
    step = {k: [(b - a)/(many - few) for a,b in zip(got[k, few], got[k, many])] for k in kinds}
    return step, {k: got[k, 'passes'] for k in cached}, {k: [o/many for o in got[k, 'plain']] for k in kinds if k[0] not in CACHED}

def total(specs, step, pas, i):
    "Seconds of round i for all steps and passes of these runs"
    return sum(s['steps']*step[s['strategy'], batch(s)][i] + (pas[s['strategy'], s['shots']][i] if s['strategy'] in CACHED else 0) for s in specs)

# --- why, where it takes longer -------------------------------------------------------------------------------------------
def busy():
    "Steps until the process that started this one ends it, or is gone"
    parent = os.getppid()
    spec = dict(strategy='fine-tuning', shots=20, bs=32, augment=True, V=5, backbone='glyphnet')
    with one_thread():
        fit(spec, FEW)
        print('on', flush=True)
        while os.getppid() == parent: fit(spec, MANY)

def beside(spec, n):
    "How many times the CPU seconds of a step grow while another process trains on the other core"
    def step(): return [(b - a)/(MANY - FEW) for a,b in zip(*rounds({m: lambda m=m: fit(spec, m) for m in (FEW, MANY)}, n).values())]
    before = np.median(step())
    p = subprocess.Popen([sys.executable, '-W', 'ignore', __file__, '--busy'], stdout=subprocess.PIPE, text=True)
    try:
        p.stdout.readline()
        return float(np.median(step())/before)
    finally:
        p.kill()
        p.wait()
        p.stdout.close()

# --- all ------------------------------------------------------------------------------------------------------------------
def costs(runs, step, pas, cpu):
    "A line for each arm: runs, steps, CPU seconds recorded and alone"
    res = []
    for name in dict.fromkeys(r.spec['strategy'] for r in runs):
        of = [r for r in runs if r.spec['strategy'] == name]
        sums = [total([r.spec for r in of], step, pas, i) for i in range(len(next(iter(step.values()))))]
        res.append(dict(arm=name, runs=len(of), steps=sum(r.spec['steps'] for r in of), seconds=sum(r.result['seconds'] for r in of),
                        alone=float(np.median(sums))))
    rest = cpu - sum(r['seconds'] for r in res)
    return [*res, dict(arm='all else: start, pictures, trial runs, scores, report', runs='', steps='', seconds=rest, alone='')]

def main():
    if sys.argv[1:] == ['--busy']: return busy()
    args = arguments(__doc__)
    steps = (1, 3) if args.smoke else (FEW, MANY)
    with tempfile.TemporaryDirectory() as d, quiet():
        d = Path(d)
        wall, cpu, said_ = command(d, args.smoke)
        print(said_.splitlines()[0], f'{wall:.1f} s wall, {cpu:.1f} CPU s', sep='\n', flush=True)
        os.environ['TLCOURSE_CACHE'] = str(d/'cache')
        store = Records(d/'out/records.db')
        runs = [r for r in store.rows() if r.spec['kind'] in ('tune', 'report')]
        store.close()
        specs = [r.spec for r in runs]
        step, pas, bare = alone(specs, args.rounds, steps)
        n = range(args.rounds)
        over = [cpu/total(specs, step, pas, i) for i in n]
        over_plain = [cpu/total(specs, {**step, **bare}, pas, i) for i in n]
        arms = costs(runs, step, pas, cpu)
        def spread(v): return dict(ratio=float(np.median(v)), low=min(v), high=max(v), n=len(v))
        rows = [row('compare digits, default settings: wall seconds', '<= 180', wall, wall, wall, wall <= 180, f'2 of {cores()} cores, once'),
                at_most('CPU seconds of the command / of its training steps alone', 1.15, spread(over), f'{cpu:.0f} CPU s'),
                said('the same, steps of scratch and fine-tuning in plain torch', spread(over_plain))]
        facts = dict(arms=arms, wall=wall, cpu=cpu, printed=said_.replace(f'{d}/', ''), step={f'{a}, batch of {b}': v for (a,b),v in step.items()},
                     passes={f'{a}, {k} labels per class': v for (a,k),v in pas.items()},
                     plain={f'{a}, batch of {b}': v for (a,b),v in bare.items()})
        if not args.smoke and not all(r['reached'] for r in rows[:2]) and cores() > 1:
            spec = next(s for s in specs if s['strategy'] == 'fine-tuning' and batch(s) == s['bs'])
            facts['beside'] = beside(spec, args.rounds)
            print(f"a step of fine-tuning takes {facts['beside']:.2f} x the CPU seconds while the other core trains too")
    def word(v): return f'{v:.1f}' if isinstance(v, float) else v
    print(table([[word(v) for v in o.values()] for o in arms], ('arm', 'runs', 'steps', 'CPU s in the command', 'CPU s alone')))
    finish(args, 'speed_compare', rows, **facts)

if __name__ == '__main__': main()
