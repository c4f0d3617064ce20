"""The stored grid of lesson 14: what each way to tune gains on the target, costs the source, and does under shift.

    python grids/keeping.py      # about 14 minutes of one core; goes on where it was stopped

Glyphnet, five labels per class, 150 steps. First three tuning seeds on the letters choose a strength of L2-SP and of
DELTA, by the loss on five validation pictures per class; then five other seeds of each method, and of each strength,
are scored once on the sealed test, and on source pictures with the old head. A run depends on its spec alone:
`run(spec)`. What a run makes beside its network (averages of its steps, networks between probe and tuned one) is in
the same result, its name behind each key.
"""
import time
from copy import deepcopy
from functools import cache, partial
import numpy as np, torch
from torch import nn
from tlcourse.backbones import glyphnet
from tlcourse.base import package_assets
from tlcourse.data import target
from tlcourse.passes import _adapt
from tlcourse.finetune import KeepStats
from tlcourse.keep import (Delta, ema, forgetting, importance, L2SP, lora, LwF, merge_lora, Replay, swa, wise_ft)
from tlcourse.records import Records
from tlcourse.runs import _measured
from tlcourse.strategy import _as_asked, _learner, fit_steps, seeded, STRATEGIES
from tlcourse.sweep import sweep
from tlcourse.world import SourceDrawer

out, LR = 'tlcourse-out/keeping', STRATEGIES['fine-tuning'].rate
SHIFTS, ALPHAS, TUNE = ('blur', 'noise', 'contrast'), (.25, .5, .75), (100, 101, 102)
# Strengths that are tried, weakest first; below them is 0, which is fine-tuning
KNOBS = {'L2-SP': (10, 100, 1000), 'DELTA': (.1, 1, 10)}
FIXED = {'norm-tuning': 1e-2, 'LoRA': 1e-2, # learning rates, that of lesson 5's frozen bodies
         'LwF': 1., 'replay': 1.} # as loud as the new pictures
PLAIN = 'feature-extraction', 'fine-tuning', 'statistics kept', 'lp-ft'

@cache
def letters(): return target('letters')

@cache
def other_font(): return target('letters-stix')

def old_head():
    net = glyphnet(pretrained=True)
    return nn.Sequential(net.pool, net.flatten, net.fc)

@cache
def pool(): # source pictures to replay; none of them is in the meter
    x, y = SourceDrawer('glyph', seed=2).batch(2000)
    return (x-.5)/.25, y

def replayed(seed, bs=32):
    g, (x, y) = torch.Generator().manual_seed(seed), pool()
    def batch():
        i = torch.randint(len(x), (bs,), generator=g)
        return x[i], y[i]
    return batch

def probe(dls, seed): return STRATEGIES['feature-extraction'](dls, 'glyphnet', seed=seed, progress=False)

def beside(learn, how, k, dls, seed):
    "The callback of a method"
    if how == 'L2-SP': return [L2SP(learn, k)]
    if how == 'DELTA': return [Delta(learn, k, importance(probe(dls, seed)))]
    if how == 'LwF': return [LwF(learn, old_head(), k)]
    if how == 'replay': return [Replay(learn, old_head(), replayed(seed), k)]
    return [KeepStats()] if how == 'statistics kept' else []

def on_training(model, dls):
    "A network whose body has BatchNorm statistics of the training pictures"
    with torch.no_grad(): body = _adapt(model[0], [x.as_subclass(torch.Tensor) for x,_ in dls.train], 'it')
    return nn.Sequential(body, model[1]).eval()

def fitted(dls, spec):
    "The Learner after its fit, and the networks that it makes beside"
    how, k, seed, steps = (spec[o] for o in ('method', 'knob', 'seed', 'steps'))
    if how == 'feature-extraction': return probe(dls, seed), {}
    with seeded(seed):
        if how == 'lp-ft':
            learn = probe(dls, seed)
            start = deepcopy(learn.model)
            learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'true_freeze'])
            learn.unfreeze()
            with _as_asked(learn), learn.added_cbs([KeepStats()]): fit_steps(learn, steps - steps//3, slice(LR/25, LR))
            return learn, {f'wise {a}': wise_ft(start, learn, a) for a in ALPHAS}
        learn = _learner(dls, 'glyphnet', seed, progress=False)
        if how == 'LoRA': lora(learn)
        elif how == 'norm-tuning': learn.freeze() # fastai's own freezing lets BatchNorm train
        else: learn.unfreeze()
        avgs = dict(EMA=ema(learn, .95), SWA=swa(learn, .75)) if how == 'fine-tuning' else {}
        lr = k if how in ('norm-tuning', 'LoRA') else slice(LR/25, LR)
        with _as_asked(learn), learn.added_cbs(beside(learn, how, k, dls, seed)): fit_steps(learn, steps, lr)
        if how == 'LoRA': merge_lora(learn)
        return learn, {n: on_training(a.module, learn.dls) for n,a in avgs.items()}

def measured(learn, t, spec):
    "What one network gives: on validation pictures, and in a report on the test, under shift and on the source"
    losses, right = _measured(learn, learn.dls.valid)
    res = dict(losses=losses, valid_acc=float(right.mean()))
    if spec['kind'] == 'tune': return res
    s = t.score(learn, SHIFTS)
    res.update(pred=s.pred, prob=s.prob, **{f'pred {n}': o.pred for n,o in s.shifts.items()})
    res['pred letters-stix'] = other_font().unopened().score(learn).pred
    f = forgetting(learn)
    return dict(res, source=f.after, recounted=f.recounted)

def run(spec):
    "What a run of `spec` gives"
    t = letters().unopened()
    if spec['kind'] == 'source': return dict(before=forgetting(_learner(t.dls(shots=1), 'glyphnet', 0)).before,
                                               other_font=other_font().pixel_hash)
    dls = t.dls(shots=spec['shots'], seed=spec['seed'], bs=spec['bs'], device='cpu', valid_shots=5)
    t0 = time.process_time()
    learn, others = fitted(dls, spec)
    res = dict(seconds=time.process_time() - t0)
    res.update(measured(learn, t, spec))
    if spec['kind'] == 'tune': return res
    for n,net in others.items():
        learn.model = net
        res.update({f'{k} {n}': v for k,v in measured(learn, t, spec).items()})
    return res

def spec(t, method, seed, knob=None, kind='report'):
    return dict(kind=kind, target=t.name, pixel_hash=t.pixel_hash, backbone='glyphnet', method=method, knob=knob,
                shots=5, steps=150, bs=32, lr=LR, seed=seed)

def tries(method):
    "Strength to the spec of its tuning run, given a seed"
    t = letters()
    return {0: lambda s: spec(t, 'fine-tuning', s, kind='tune'),
            **{k: partial(lambda k, s: spec(t, method, s, k, 'tune'), k) for k in KNOBS[method]}}

def chosen(records, method):
    "Of the strengths whose loss is within a standard error of the smallest, the strongest; and the mean losses"
    runs = {k: np.stack([records.get(f(s))['losses'] for s in TUNE]) for k,f in tries(method).items()}
    best = min(runs.values(), key=np.mean)
    def near(v):
        d = (v - best).ravel()
        return d.mean() <= d.std()/len(d)**.5
    return dict(chosen=[k for k in runs if near(runs[k])][-1], losses=[[k, float(v.mean())] for k,v in runs.items()])

def main():
    records, t = Records(f'{out}/records.db'), letters()
    for o in t, other_font():
        records.put_labels(o.pixel_hash, o._test_arrays[1], dict(target=o.name, classes=o.classes))
    def go(specs): sweep(specs, records, run, workers=1, progress=False)
    go([dict(kind='source', pixel_hash=t.pixel_hash)])
    go([f(s) for s in TUNE for m in KNOBS for f in tries(m).values()])
    for m in KNOBS:
        what = dict(kind='chosen', method=m, pixel_hash=t.pixel_hash)
        if not records.has(what): records.add(what, chosen(records, m))
    one = [(m, FIXED.get(m)) for m in (*PLAIN, *FIXED)] + [(m, k) for m,ks in KNOBS.items() for k in ks]
    go([spec(t, m, s, k) for s in range(5) for m,k in one])
    print(records.export(package_assets()/'keeping.db').stat().st_size, 'bytes')

if __name__ == '__main__': main()
