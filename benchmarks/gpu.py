"""Everything on CUDA: images per second against the limit, bfloat16, heads in a batch, waiting, and the code of every
lesson.

    python benchmarks/gpu.py [--rounds N] [--out FILE] [--parts throughput,waits,...] [--lessons freezing,inside]
                             [--at-once N]
    python benchmarks/gpu.py --device cpu --smoke        # the same code, tiny, on a CPU

All of it takes about ten minutes and writes card.json; `card.sh` runs its parts by the clock. Where there is no CUDA
device it says so and ends. A file named by --out is written after each part, so that what was measured outlives a run
that is stopped.

The limit is a plain torch loop over one synthetic batch that lies on the device: no pictures, no augmentation, no
record, the same network, precision and fused AdamW. Our arm is a fastai Learner from target.dls(device=...) with its
augmentations, uint8 pixels to normalised floats, one cycle of the learning rate. Weights are random and nothing is
validated. Seconds are wall seconds between two synchronisations of the device.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from timing import arguments, at_least, explain, finish, quiet, ratio, rounds, row, said, save, table
import numpy as np
import torch
from speed_training import LR, network, ours, photos, train
from tlcourse.data import kshot, target
from tlcourse.dev import find_root, pages
from tlcourse.probes import fit_probes
from tlcourse.training import Bf16, NoSync, bf16_units

# size, batch, steps, target
FULL = dict(nets=dict(resnet50=(224, 128, 20, .95), resnet18=(128, 256, 40, .85), glyphnet=(32, 256, 120, .6)),
            graphs=.9, pictures=600, feats=(2000, 512), shots=(1, 2, 3, 5, 10, 20, 50, 100), seeds=5, wait=20,
            cells=None)
SMOKE = dict(nets=dict(resnet18=(32, 4, 1, .85), glyphnet=(32, 8, 2, .6)), graphs=.9, pictures=40, feats=(60, 16),
             shots=(1, 2), seeds=2, wait=2, cells=8)

PARTS = 'throughput', 'waits', 'precision', 'heads', 'lessons'

# --- images per second ----------------------------------------------------------------------------------------------
def limit(net, size, bs, dev, precision, last=True, graphs=False):
    "steps -> a plain loop of so many over one synthetic batch"
    form = torch.channels_last if last else torch.contiguous_format
    model = network(net).to(dev, memory_format=form).train()
    x = torch.rand(bs, 3, size, size, device=dev).to(memory_format=form)
    y, loss_func = torch.randint(0, 10, (bs,), device=dev), torch.nn.CrossEntropyLoss()
    opt = torch.optim.AdamW(model.parameters(), lr=LR, betas=(.9, .99), eps=1e-5, weight_decay=.01, fused=True)
    if graphs: model = graphed(model, x, precision, dev)
    def go(steps):
        for _ in range(steps):
            with torch.autocast(dev.type, torch.bfloat16, enabled=precision == 'bf16'): p = model(x)
            loss_func(p.float(), y).backward()
            opt.step()
            opt.zero_grad()
    return go

def graphed(model, x, precision, dev):
    "The module with its forward and backward pass as CUDA graphs for batches like x"
    cast = torch.autocast(dev.type, torch.bfloat16, cache_enabled=False) if precision == 'bf16' else nullcontext()
    with cast: return torch.cuda.make_graphed_callables(model, (x,))

def mine(t, net, bs, dev, precision, graphs=False):
    "A Learner of the course that waits for nothing"
    learn = ours(t.dls(bs=bs, device=dev), net, cbs=[NoSync(), *[Bf16()]*(precision == 'bf16')])
    learn.model.to(dev) # fastai moves it when the fit begins, which is too late for a graph
    if graphs:
        learn.model = graphed(learn.model.train(), learn.dls.one_batch()[0].as_subclass(torch.Tensor), precision, dev)
    return learn

def throughput(net, t, k, dev, precision, args, facts):
    "The Learner as a fraction of the limit; for the smallest network also from CUDA graphs"
    size, bs, steps, aim = k['nets'][net]
    graphs = net == 'glyphnet' and dev.type == 'cuda'
    if net == 'glyphnet' and not graphs: print('CUDA graphs: left out on a CPU')
    loops = {'limit': limit(net, size, bs, dev, precision), 'Learner': mine(t, net, bs, dev, precision)}
    if graphs: loops['limit, graphs'] = limit(net, size, bs, dev, precision, graphs=True)
    if graphs: loops['Learner, graphs'] = mine(t, net, bs, dev, precision, graphs=True)
    def arm(o): return (lambda: train(o, steps)) if hasattr(o, 'dls') else (lambda: o(steps))
    s = facts['seconds'][f'throughput {net}'] = rounds({n: arm(o) for n,o in loops.items()}, args.rounds, 2, 'wall')
    rate = facts['images a second'][net] = {n: bs*steps/statistics.median(o) for n,o in s.items()}
    def note(*names): return ', '.join(f'{n}: {rate[n]:,.0f} images/s' for n in names)
    at = f'{net} at {size} px, bs {bs}, {precision}: fraction of the limit'
    rows = [at_least(at, aim, ratio(s['limit'], s['Learner']), note('Learner', 'limit'))]
    explain(rows, lambda: train(loops['Learner'], min(steps, 20)), facts, 'torch', f'{net}: steps of the Learner')
    if graphs:
        rows += [at_least(f'{at}, CUDA graphs', k['graphs'], ratio(s['limit'], s['Learner, graphs']),
                          note('Learner, graphs')),
                 said(f'{at} with CUDA graphs too', ratio(s['limit, graphs'], s['Learner, graphs']),
                      note('limit, graphs'))]
        explain(rows[1:2], lambda: train(loops['Learner, graphs'], min(steps, 20)), facts, 'python',
                f'{net}: steps with CUDA graphs')
    return rows

def precisions(net, k, dev, args, facts):
    "bfloat16 with channels last against float32 as torch has it by default, and without TF32"
    size, bs, steps, _ = k['nets'][net]
    steps = max(1, steps//4) # float32 is slow, and the three arms of one network need no more
    def exact(go):
        def f():
            old = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
            try: go(steps)
            finally: torch.backends.cudnn.allow_tf32 = old
        return f
    fast, plain = limit(net, size, bs, dev, 'bf16'), limit(net, size, bs, dev, 'fp32', last=False)
    arms = {'bf16': lambda: fast(steps), 'fp32': lambda: plain(steps),
            **({'exact': exact(plain)} if dev.type == 'cuda' else {})}
    s = facts['seconds'][f'precision {net}'] = rounds(arms, args.rounds, 2, 'wall')
    what = f'{net} at {size} px: step in float32 / in bfloat16 with channels last'
    rows = [at_least(what, 2, ratio(s['fp32'], s['bf16']),
                     f'TF32 in convolutions, as torch has it: {torch.backends.cudnn.allow_tf32}')]
    explain(rows, lambda: fast(min(steps, 20)), facts, 'torch', f'{net}: steps in bfloat16')
    return rows + ([said(f'{what}, TF32 off', ratio(s['exact'], s['bf16']))] if 'exact' in s else [])

# --- waiting --------------------------------------------------------------------------------------------------------
def waits(t, k, dev, facts):
    "How often a step waits for the device, with and without NoSync"
    if dev.type != 'cuda': return print('steps that wait for the device: left out on a CPU') or []
    _, bs, *_ = k['nets']['glyphnet']
    def count(steps, *cbs):
        learn = ours(t.dls(bs=bs, device=dev), 'glyphnet', cbs=list(cbs))
        train(learn, 2)
        torch.cuda.set_sync_debug_mode('warn')
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter('always')
                train(learn, steps)
        finally: torch.cuda.set_sync_debug_mode('default')
        return Counter(f'{Path(w.filename).name}:{w.lineno}' for w in seen if 'synchroniz' in str(w.message))
    rows = []
    for name,cbs in (('with NoSync', [NoSync]), ("with fastai's recorder alone", [])):
        # what more steps add; the rest is once a fit
        few, many = (count(n*k['wait'], *(c() for c in cbs)) for n in (1, 2))
        each = (many.total() - few.total())/k['wait']
        where = {p: n - few[p] for p,n in many.items() if n > few[p]}
        facts.setdefault('waits', {})[name] = dict(each=each, where=where, once=2*few.total() - many.total())
        rows.append(row(f'glyphnet: times that a step waits for the device, {name}', '0' if cbs else '', each, each,
                        each, each == 0 if cbs else None, ', '.join(where)))
    return rows

# --- heads ----------------------------------------------------------------------------------------------------------
class Drawn:
    "Features of n pictures: Gaussian clouds, one around a centre for each of ten classes"
    views = 1
    def __init__(self, n, d):
        rng = np.random.RandomState(0)
        self.y, self.classes = np.arange(n) % 10, list(range(10))
        self.x = (rng.randn(10, d)[self.y] + 2*rng.randn(n, d)).astype(np.float32)

def heads(k, dev, args, facts):
    "All heads of a learning curve in one call, against one by one"
    f, wds = Drawn(*k['feats']), (1e-3, 1e-2, 1e-1)
    subsets = [kshot(f.y, shots, s) for shots in k['shots'] for s in range(k['seeds'])]
    def alone():
        for o in subsets:
            for wd in wds: fit_probes(f, [o], (wd,), device=str(dev))
    s = facts['seconds']['heads'] = rounds({'together': lambda: fit_probes(f, subsets, wds, device=str(dev)),
                                            'one by one': alone},
                                           min(args.rounds, 3), clock='wall')
    n = len(subsets)*len(wds)
    rows = [at_least(f'{n} heads: one by one / together', 20, ratio(s['one by one'], s['together']),
                     f"together {statistics.median(s['together']):.2f} s, {k['feats'][1]} "
                     "features, 10 classes, float64")]
    explain(rows, lambda: fit_probes(f, subsets, wds, device=str(dev)), facts, 'torch', f'{n} heads together')
    return rows

# --- lessons --------------------------------------------------------------------------------------------------------
# What a fresh process does with a notebook: its code cells, or so many of them, up to the first error; the last line
# says what came of it
LESSON = '''
import json, os, sys, time
from IPython.core.interactiveshell import InteractiveShell
from tlcourse.dev import cells
shell, out, t, error = InteractiveShell.instance(), sys.stdout, time.perf_counter(), ''
sys.stdout = open(os.devnull, 'w')
for c in cells(sys.argv[1], 'code')[:int(sys.argv[2]) if sys.argv[2:] else None]:
    r = shell.run_cell(c['source'])
    if e := r.error_before_exec or r.error_in_exec:
        error = f'{type(e).__name__}: {e}'
        break
torch = sys.modules.get('torch')
mb = torch.cuda.max_memory_allocated()/2**20 if torch and torch.cuda.is_available() else 0
print(json.dumps(dict(seconds=time.perf_counter() - t, error=error, mb=mb)), file=out, flush=True)
'''

def lessons(names, k, dev, folder, facts, at_once=1):
    """Each lesson in a fresh process, so many at a time: its seconds, whether all cells passed, the most memory
    that it held on the device; a smoke run takes the first cells of each"""
    few = [str(k['cells'])]*bool(k['cells'])
    env = {**os.environ, 'IN_TEST': '1', 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore',
           'IPYTHONDIR': f'{folder}/ipython'}
    if dev.type == 'cpu': env['CUDA_VISIBLE_DEVICES'] = ''
    def one(p):
        r = subprocess.run([sys.executable, '-c', LESSON, str(p), *few], cwd=p.parent, env=env,
                           capture_output=True, text=True)
        lines = r.stdout.splitlines()
        if lines and lines[-1].startswith('{'): res = json.loads(lines[-1])
        else: res = dict(error=f'ended with code {r.returncode}: {r.stderr[-400:]}', seconds=0., mb=0.)
        how = 'FAILED' if res['error'] else 'passed'
        print(f"{p.stem[3:]}: {how}, {res['seconds']:.1f} s, {res['mb']:,.0f} MB on "
              f"the device {res['error']}", flush=True)
        return dict(lesson=p.stem[3:], **res)
    paths = [p for p in pages(['lessons'],
                              find_root(Path(__file__).parent)) if names == 'all' or p.stem[3:] in names.split(',')]
    with ThreadPoolExecutor(at_once) as pool: got = facts['lessons'] = list(pool.map(one, paths))
    passed, used = (sum(f(r) for r in got)/len(got) for f in (lambda r: not r['error'], lambda r: r['mb'] > 0))
    on = f"{len(got)} lessons, {'the first' if few else 'all'} code cells: share that passes on {dev.type}"
    rows = [row(on, '1', passed, passed, passed, passed == 1, f"{sum(r['seconds'] for r in got):.0f} s")]
    return rows + ([row('and share that computes on the device', '1', used, used, used,
                        used == 1)] if dev.type == 'cuda' else [])

# --- all ------------------------------------------------------------------------------------------------------------
def main():
    p = argparse.ArgumentParser(add_help=False) # what `arguments` does not know
    p.add_argument('--device', default='cuda')
    p.add_argument('--parts', default=','.join(PARTS))
    p.add_argument('--lessons', default='all')
    p.add_argument('--at-once', type=int, default=1)
    own, sys.argv[1:] = p.parse_known_args()
    args, parts = arguments(__doc__), own.parts.split(',')
    if wrong := [o for o in parts if o not in PARTS]: sys.exit(f"--parts: {wrong[0]!r} is none of {', '.join(PARTS)}")
    dev = torch.device(own.device)
    if dev.type == 'cuda' and not torch.cuda.is_available(): return print('no CUDA here')
    if dev.type == 'cpu' and not args.smoke: sys.exit('--device cpu is for a smoke run: add --smoke')
    k, rows, facts = SMOKE if args.smoke else FULL, [], dict(seconds={}, **{'images a second': {}})
    facts['sizes'] = k
    precision = 'bf16' if bf16_units(dev) else print(f'bfloat16: left out, {own.device} has no units for it') or 'fp32'
    with tempfile.TemporaryDirectory() as d, quiet():
        os.environ['TLCOURSE_CACHE'] = f'{d}/cache'
        def done(more):
            rows.extend(more)
            if args.out: save(args.out, rows, smoke=args.smoke, rounds=args.rounds, **facts)
        def pictures(net):
            if not Path(f'{d}/photos').exists(): photos(f'{d}/photos', k['pictures'], side=(256, 240))
            return target(f'{d}/photos', size=k['nets'][net][0])
        if 'throughput' in parts:
            for net in k['nets']: done(throughput(net, pictures(net), k, dev, precision, args, facts))
        if 'waits' in parts: done(waits(pictures('glyphnet'), k, dev, facts))
        if 'precision' in parts and precision == 'bf16': done(precisions(next(iter(k['nets'])), k, dev, args, facts))
        if 'heads' in parts: done(heads(k, dev, args, facts))
        if 'lessons' in parts: done(lessons(own.lessons, k, dev, d, facts, own.at_once))
    print(table([(n, kind, f'{v:,.0f}') for n,o in facts['images a second'].items()
                 for kind,v in o.items()], ('network', 'arm', 'images/s')))
    finish(args, 'card', rows, **facts)

if __name__ == '__main__': main()
