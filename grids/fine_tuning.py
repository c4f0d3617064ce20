"""The stored grid of lesson 7: head first or all at once, what a rate destroys, and how far the features move.

    python grids/fine_tuning.py [HH:MM]     # stops at that time; started again it goes on

The first edition made its grid by a study of `compare`, with rules that have changed since (`code` 1 in the specs);
its runs are kept, and this script adds to them by the same rules, a hundred runs of about 6 seconds on an idle core.
Records lie in tlcourse-out/fine_tuning/records.db; the end writes tlcourse/assets/fine_tuning.db. A run depends on
its spec alone: `run(spec)`. It gives what a run of `compare` gives and, of the tuned body, the source accuracy that
is left and how far the features moved.
"""
import sys, time
from copy import deepcopy
from functools import cache
import torch
from fastai.optimizer import Adam
from torch import nn
from tlcourse.backbones import arch, glyphnet
from tlcourse.base import package_assets
from tlcourse.augment import SHIFTS
from tlcourse.data import target
from tlcourse.records import Records
from tlcourse.stored_tables import lesson_records
from tlcourse.runs import _measured, _SGD
from tlcourse.strategy import _as_asked, _learner, fit_steps, seeded, STRATEGIES
from tlcourse.training import fused_adam
from tlcourse.world import SourceDrawer

targets, low_rates = ('digits', 'letters-stix'), (1e-4, 2e-4) # those of the first grid go from .0005 to .1
out = 'tlcourse-out/fine_tuning'
HEAD, RANDOM = 'pool-flatten-linear', 'pool-flatten-linear, random start'

@cache
def the_target(pixel_hash): return next(t for t in map(target, targets) if t.pixel_hash == pixel_hash)

@cache
def source():
    "Source pictures (1000,3,32,32) to measure with, their classes, and others to count BatchNorm statistics on"
    return *SourceDrawer('glyph').check(1000), SourceDrawer('glyph', seed=1).batch(1000)[0]

@cache
def original(): a = arch('glyphnet'); return a.cut(a(pretrained=True)).eval()

def random_start(dls, backbone, steps, lr, seed, **kwargs):
    "Fine-tuning from a head of random weights, as torch makes it, in place of zeros"
    with seeded(seed, dls.device):
        learn = _learner(dls, backbone, seed, **kwargs)
        learn.model[1][-1].reset_parameters()
        learn.unfreeze()
        with _as_asked(learn): fit_steps(learn, steps, slice(lr/25, lr))
    return learn

@torch.no_grad()
def feats(body, x):
    "Features (n,192) of pictures (n,3,32,32) in 0..1"
    return torch.cat([body((b-.5)/.25).mean((2,3)) for b in x.split(250)])

@torch.no_grad()
def source_acc(body):
    x,y,_ = source()
    return float((glyphnet(pretrained=True).fc(feats(body, x)).argmax(1) == y).float().mean())

@torch.no_grad()
def recounted(body):
    "The body with BatchNorm statistics counted again on source pictures"
    body = deepcopy(body)
    for m in body.modules():
        if isinstance(m, nn.BatchNorm2d): m.reset_running_stats(); m.momentum = None; m.train()
    feats(body, source()[2])
    return body.eval()

def moved(body, x):
    "How far the features of pictures moved, in units of their spread before (both root mean square)"
    was, now = feats(original(), x), feats(body, x)
    return float((now-was).pow(2).sum(1).mean().sqrt()/(was-was.mean(0)).pow(2).sum(1).mean().sqrt())

def run(spec):
    "What a run of `spec` gives"
    t = the_target(spec['pixel_hash']).unopened()
    dls = t.dls(shots=spec['shots'], seed=spec['seed'], bs=spec['bs'], augment=spec['augment'], device='cpu',
                valid_shots=spec['V'], valid_seed=0 if spec['code'] < 3 else None)
    fit = random_start if spec['head'] == RANDOM else STRATEGIES[spec['strategy']]
    if spec['code'] < 4: fit = _SGD.get(spec['strategy'], fit) # as `run_spec` has it
    how = {k: spec[k] for k in ('share', 'bn') if k in spec} # of lp-ft, where it is not the default
    how['opt_func'] = Adam if spec['code'] == 1 else fused_adam # as `run_spec` has it
    t0 = time.process_time()
    learn = fit(dls, 'glyphnet', steps=spec['steps'], lr=spec['lr'], seed=spec['seed'], progress=False, **how)
    res = dict(seconds=time.process_time()-t0,
               train_acc=float(_measured(learn, learn.dls.train.new(shuffle=False, drop_last=False))[1].mean()))
    s = t.score(learn, list(spec['shifts']))
    res.update(pred=s.pred, prob=s.prob, **{f'pred {n}': o.pred for n,o in s.shifts.items()})
    body, x = learn.model[0].eval(), t.valid.x.float()/255
    res.update(source=source_acc(body), source_recounted=source_acc(recounted(body)), moved=moved(body, x),
               moved_noise=moved(body, SHIFTS['noise'](x)), moved_source=moved(body, source()[0]))
    return res

def more(shipped):
    """The runs that were added to the first grid: fastai's own `fine_tune`, lower rates, and more seeds, each by the
    settings of a run that was there; in blocks, so that a grid that is cut short is balanced."""
    base = {n: next(r.spec for r in shipped.rows(kind='report', seed=0, shots=5, strategy='fine-tuning', head=HEAD)
                    if r.spec['pixel_hash'] == target(n).pixel_hash) for n in targets}
    one = dict(base['digits'], strategy='single-rate', shots=20, shifts={})
    def arm(n, name, seed):
        how = dict(strategy=name, seed=seed, lr=STRATEGIES[name].rate, shifts={})
        return {**base[n], **how, **(dict(head="fastai's") if name == 'fine_tune' else {})}
    yield from (arm(n, 'fine_tune', s) for s in range(5) for n in targets)
    yield from ({**one, 'lr': lr, 'seed': s} for s in range(3) for lr in low_rates)
    yield from (arm(n, a, s) for s in range(5, 20) for n in targets for a in ('fine-tuning', 'lp-ft', 'fine_tune'))

def main(until=None):
    shipped, records = lesson_records('fine_tuning'), Records(f'{out}/records.db')
    for t in map(target, targets): records.put_labels(t.pixel_hash, t._test_arrays[1], dict(classes=t.classes))
    for r in shipped.rows():
        if not records.has(r.spec): records.add(r.spec, r.result)
    for spec in more(shipped):
        if until and time.strftime('%H:%M') >= until: break
        if not records.has(spec): records.add(spec, run(spec))
    print(records.export(package_assets()/'fine_tuning.db').stat().st_size, 'bytes')

if __name__ == '__main__': main(*sys.argv[1:])
