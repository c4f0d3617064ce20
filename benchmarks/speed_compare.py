"""`tlcourse compare digits` with its default settings, against its training steps and passes timed alone.

    python benchmarks/speed_compare.py [--smoke] [--rounds N] [--out FILE]
        # about six minutes on 2 cores; writes speed_compare.json

The command runs once, in a fresh process with a fresh store and a fresh cache. Then each kind of training step in its
store is timed by itself, one process on one thread: the seconds that some more steps add to a run of the strategy,
divided by their number; and for the heads on a frozen body one pass of all pictures through it. Times their numbers
in the store, they are what the command would cost if it did nothing else. How long the command takes on a clock is a
row of speed_decision.py.
"""
import os, tempfile
from functools import lru_cache
from pathlib import Path
import numpy as np
from speed_decision import TINY, command
from timing import arguments, at_most, clocks, finish, quiet, rounds, said, table
from tlcourse.backbones import arch
from tlcourse.data import target
from tlcourse.features import extract
from tlcourse.strategy import STRATEGIES
from tlcourse.records import Records

FEW, MANY = 10, 70 # Steps; the difference is what is timed
FROZEN = 'feature-extraction', 'random-features', 'k-nn'

# --- steps alone ----------------------------------------------------------------------------------------------------
@lru_cache(1)
def digits(): return target('digits')

def labels(spec): # Training pictures of a run
    return len(digits().train) if spec['shots'] == 'all' else spec['shots']*len(digits().classes)

def batch(spec): return min(spec['bs'], labels(spec))

def fit(spec, steps):
    k = None if spec['shots'] == 'all' else spec['shots']
    dls = digits().dls(shots=k, seed=0, bs=spec['bs'], augment=spec['augment'], valid_shots=spec['V'], device='cpu')
    return STRATEGIES[spec['strategy']](dls, spec['backbone'], steps=steps, seed=0, progress=False)

def passes(spec):
    "A call that does the passes of all heads of a strategy: the training pictures in their views, the others once"
    t, control = digits(), spec['weights'] == 'random'
    a = arch(spec['backbone'], 'random' if control else None)
    # The test part is sealed: the validation part stands in for it, in proportion
    again = 1 + round(sum(t.test.counts.values())/len(t.valid))
    def one(part, views=1):
        extract(a, part, views=views, bn=t.train if control else 'eval', device='cpu', cache=False, progress=False)
    def f():
        one(t.train, spec['views'])
        for _ in range(again): one(t.valid)
    return f

def plain_step(spec, steps):
    "The same number of steps in plain torch"
    from speed_training import network, plain
    t, bs = digits(), batch(spec)
    names, stats = t.augments if spec['augment'] else (), arch(spec['backbone']).stats
    return lambda: plain(network(spec['backbone']), t.train, stats, names, bs, steps)

def alone(specs, n, steps):
    """(strategy, batch) -> n seconds of a step, frozen strategy -> n seconds of its passes, and
    (strategy, batch) -> of a step in plain torch"""
    kinds = {(s['strategy'], batch(s)): s for s in specs if s['strategy'] not in FROZEN}
    frozen = {s['strategy']: s for s in specs if s['strategy'] in FROZEN[:2]}
    few, many = steps
    arms = {(k, m): lambda s=s, m=m: fit(s, m) for k,s in kinds.items() for m in steps}
    arms |= {(k, 'passes'): passes(s) for k,s in frozen.items()}
    arms |= {(k, 'plain'): plain_step(s, many) for k,s in kinds.items()}
    got = rounds(arms, n)
    step = {k: [(b - a)/(many - few) for a,b in zip(got[k, few], got[k, many])] for k in kinds}
    return step, {k: got[k, 'passes'] for k in frozen}, {k: [o/many for o in got[k, 'plain']] for k in kinds}

def total(specs, step, pas, i):
    "Seconds of round i for all steps of these runs, and for the passes of their frozen bodies"
    steps = sum(s['steps']*step[s['strategy'], batch(s)][i] for s in specs if s['strategy'] not in FROZEN)
    return steps + sum(pas[k][i] for k in {s['strategy'] for s in specs} & set(pas))

# --- all ------------------------------------------------------------------------------------------------------------
def costs(runs, step, pas, cpu):
    """A line for each arm that trains, one for all frozen features, one for the rest:
    runs, steps, CPU seconds recorded and alone"""
    def mid(specs):
        return float(np.median([total(specs, step, pas, i)
                                for i in range(len(next(iter([*step.values(), *pas.values()]))))]))
    res = []
    for name in dict.fromkeys(r.spec['strategy'] for r in runs if r.spec['strategy'] not in FROZEN):
        of = [r for r in runs if r.spec['strategy'] == name]
        res.append(dict(arm=name, runs=len(of), steps=sum(r.spec['steps'] for r in of),
                        seconds=sum(r.result['seconds'] for r in of), alone=mid([r.spec for r in of])))
    heads = [r.spec for r in runs if r.spec['strategy'] in FROZEN]
    rest = cpu - sum(r['seconds'] for r in res)
    if heads:
        res.append(dict(arm='passes through frozen bodies', runs=len(heads), steps='', seconds='', alone=mid(heads)))
    return [*res, dict(arm='all but training: start, pictures, passes, heads, scores, report', runs='', steps='',
                       seconds=rest, alone='')]

def main():
    args = arguments(__doc__)
    steps = (1, 3) if args.smoke else (FEW, MANY)
    with tempfile.TemporaryDirectory() as d, quiet():
        d = Path(d)
        before = clocks['process']()
        c = command('digits', d, TINY if args.smoke else {})
        cpu = clocks['process']() - before
        print(f"{c['wall']:.1f} s wall, {cpu:.1f} CPU s", flush=True)
        os.environ['TLCOURSE_CACHE'] = str(d/'cache')
        store = Records(d/'out/records.db')
        runs = [r for r in store.rows() if r.spec['kind'] in ('tune', 'report')]
        store.close()
        specs = [r.spec for r in runs]
        step, pas, bare = alone(specs, args.rounds, steps)
        n = range(args.rounds)
        over, over_plain = ([cpu/total(specs, o, pas, i) for i in n] for o in (step, bare))
        arms = costs(runs, step, pas, cpu)
        def spread(v): return dict(ratio=float(np.median(v)), low=min(v), high=max(v), n=len(v))
        rows = [at_most('CPU seconds of the command / of its training steps and passes alone', 1.15, spread(over),
                        f'{cpu:.0f} CPU s'),
                said('the same, steps in plain torch', spread(over_plain))]
        facts = dict(arms=arms, wall=c['wall'], cpu=cpu, printed=c['printed'],
                     step={f'{a}, batch of {b}': v for (a,b),v in step.items()},
                     passes=pas, plain={f'{a}, batch of {b}': v for (a,b),v in bare.items()})
    def word(v): return f'{v:.1f}' if isinstance(v, float) else v
    print(table([[word(v) for v in o.values()]
                 for o in arms], ('arm', 'runs', 'steps', 'CPU s in the command', 'CPU s alone')))
    finish(args, 'speed_compare', rows, **facts)

if __name__ == '__main__': main()
