"""The stored grid of lesson 7: head first or all at once, what a rate destroys, and how far the features move.

    python grids/fine_tuning.py      # about 8 minutes on 2 idle cores; stopped and started again it goes on

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
from tlcourse.compare import Study
from tlcourse.augment import SHIFTS
from tlcourse.data import target
from tlcourse.finetune import _SGD, STRATEGIES, _fit, _learner
from tlcourse.records import Records
from tlcourse.runs import _measured, task
from tlcourse.sweep import cores, sweep
from tlcourse.training import fused_adam
from tlcourse.world import SourceDrawer

strategies = 'feature-extraction', 'fine-tuning', 'lp-ft'
shots = {'digits': [1, 5, 20], 'letters-stix': [1, 5]}
seeds, steps, shifts = 5, 150, ('blur', 'noise', 'contrast')
rates = [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1] # of one rate for all layers, on digits
out = 'tlcourse-out/fine_tuning'
RANDOM = 'pool-flatten-linear, random start'

@cache
def the_target(pixel_hash): return next(t for t in map(target, shots) if t.pixel_hash == pixel_hash)

@cache
def source():
    "Source pictures (1000,3,32,32) to measure with, their classes, and others to count BatchNorm statistics on"
    return *SourceDrawer('glyph').check(1000), SourceDrawer('glyph', seed=1).batch(1000)[0]

@cache
def original(): a = arch('glyphnet'); return a.cut(a(pretrained=True)).eval()

def random_start(dls, backbone, steps, lr, seed, **kwargs):
    "Fine-tuning from a head of random weights, as torch makes it, in place of zeros"
    learn = _learner(dls, backbone, seed, **kwargs)
    learn.model[1][-1].reset_parameters()
    learn.unfreeze()
    return _fit(learn, None, steps, slice(lr/25, lr))

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

class Watched(Study):
    "A study by `run` above"
    def sweep(self, specs, on_done=None): return sweep(specs, self.records, run, workers=self.workers, on_done=on_done)

def study(name, workers=None):
    job = task(name, 'glyphnet', device='cpu')
    return Watched(job, list(strategies), shots[name], seeds, steps, 'none', out=out, workers=workers, shifts=shifts)

def main(workers):
    st = study('digits', workers)
    st.sweep([st.spec('single-rate', 20, lr, s, 'report') for lr in rates for s in range(3)])
    st.sweep([{**st.spec('fine-tuning', 5, STRATEGIES['fine-tuning'].rate, s, 'report'), 'head': RANDOM}
              for s in range(seeds)])
    # LP-FT differs from fine-tuning in two things, the head start and BatchNorm's statistics: each of them alone
    st.sweep([{**st.spec('lp-ft', 5, STRATEGIES['lp-ft'].rate, s, 'report'), **how}
              for how in (dict(share=0), dict(bn='train')) for s in range(seeds)])
    for n in shots: study(n, workers).run('none')
    print(Records(f'{out}/records.db').export(package_assets()/'fine_tuning.db').stat().st_size, 'bytes')

if __name__ == '__main__': main(int(sys.argv[1]) if sys.argv[1:] else cores())
