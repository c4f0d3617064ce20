"""The stored grid of lesson 13: which remedy against overfitting pays, from scratch and after transfer.

    python grids/overfitting.py [SEED ...]
        # about 17 minutes of one core; goes on where it was stopped; by default seeds 0 to 14

Glyphnet under fastai's own head, digits, five labels per class, all of them right or 40 % of them wrong; 30 steps at
the rates of the course. Each remedy has one strength, fastai's default where it has one; none was chosen here. What
ships are the seeds of which every cell has run: 0 to 4 and 14 so far. Early stopping sees five validation pictures per
class, whose labels are right. Each run is scored once on the sealed test. A run depends on its spec alone: `run(spec)`.
"""
import io, sys, tempfile, time
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
import numpy as np, torch
from fastai.vision.all import (Callback, CancelValidException, CrossEntropyLossFlat, EarlyStoppingCallback,
                               LabelSmoothingCrossEntropyFlat, MixUp, SaveModelCallback)
from tlcourse.base import package_assets
from tlcourse.data import target
from tlcourse.layers import true_freeze
from tlcourse.learner import learner
from tlcourse.overfitting import ByHeart, mislabelled
from tlcourse.records import Records
from tlcourse.runs import _measured
from tlcourse.strategy import seeded, STRATEGIES
from tlcourse.sweep import sweep
from tlcourse.training import fused_adam

out = 'tlcourse-out/overfitting'
ARMS = {a: STRATEGIES[a].rate for a in ('scratch', 'fine-tuning')}
ARMS['feature-extraction'] = 1e-2 # of lesson 5's frozen bodies
SHARES, SEEDS = (0., .4), range(15)
# More data has no strength: four times the labels
KNOBS = {'augmentation': 'affine', 'dropout': .5, 'weight decay': 1., 'early stopping': 3, 'label smoothing': .1,
         'mixup': .4}
REMEDIES = (*KNOBS, 'more data')

@cache
def digits(): return target('digits')

class NoValid(Callback):
    "Saves time where nobody reads the validation loss of each epoch"
    def before_validate(self): raise CancelValidException

def fitted(t, spec):
    "The Learner after its fit, its epochs, and what it knew by heart after each, where nothing was done about it"
    remedy, k, lr, seed = (spec[o] for o in ('remedy', 'knob', 'lr', 'seed'))
    dls = t.dls(bs=spec['bs'], augment=k.split() if remedy == 'augmentation' else False, device='cpu',
                valid_shots=spec['V'], valid_seed=seed)
    with seeded(seed), tempfile.TemporaryDirectory() as tmp, redirect_stdout(io.StringIO()):
        loss = LabelSmoothingCrossEntropyFlat(eps=k) if remedy == 'label smoothing' else CrossEntropyLossFlat()
        learn = learner(dls, 'glyphnet', pretrained=spec['arm'] != 'scratch', head='fastai', loss_func=loss,
                        ps=k if remedy == 'dropout' else 0., wd=k if remedy == 'weight decay' else 0.,
                        opt_func=fused_adam)
        learn.path = Path(tmp)
        learn.model.to(memory_format=torch.channels_last)
        if spec['arm'] == 'feature-extraction': true_freeze(learn)
        else: learn.unfreeze()
        heart = ByHeart(t.wrong)
        cbs = {'early stopping': lambda: [EarlyStoppingCallback(patience=k), SaveModelCallback()],
               'mixup': lambda: [MixUp(k), NoValid()], None: lambda: [heart]}.get(remedy, lambda: [NoValid()])()
        epochs = max(1, round(spec['steps']/len(learn.dls.train)))
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, slice(lr/25, lr) if spec['arm'] == 'fine-tuning' else lr, cbs=cbs)
    learn.loss_func = CrossEntropyLossFlat() # by which all are measured
    return learn, np.array([list(o) for o in learn.recorder.values]), np.array(getattr(heart, 'rows', []))

def run(spec):
    "What a run of `spec` gives"
    t = mislabelled(digits().unopened(), spec['shots'], spec['share'], spec['seed'])
    t0 = time.process_time()
    learn, values, heart = fitted(t, spec)
    losses, right = _measured(learn, learn.dls.valid)
    res = dict(seconds=time.process_time() - t0, losses=losses, valid_acc=float(right.mean()))
    hit = _measured(learn, learn.dls.train.new(shuffle=False, drop_last=False))[1]
    s = t.score(learn)
    return dict(res, pred=s.pred, prob=s.prob, hit=hit, wrong=t.wrong, values=values, heart=heart)

def spec(arm, share, remedy, seed):
    t = digits()
    return dict(kind='report', target=t.name, pixel_hash=t.pixel_hash, backbone='glyphnet', head='fastai', arm=arm,
                share=share, remedy=remedy, knob=KNOBS.get(remedy), lr=ARMS[arm], seed=seed,
                shots=20 if remedy == 'more data' else 5, steps=30, bs=25, V=5)

def whole(records):
    "A store of the seeds of which every cell has run: a pair needs both"
    rows, t = records.rows(kind='report'), digits()
    n = {s: sum(r.spec['seed'] == s for r in rows) for s in SEEDS}
    res = Records(f'{out}/whole.db')
    res.put_labels(t.pixel_hash, t._test_arrays[1], dict(target=t.name, classes=t.classes))
    for r in rows:
        all_there = n[r.spec['seed']] == len(ARMS)*len(SHARES)*(len(REMEDIES) + 1)
        if all_there and not res.has(r.spec): res.add(r.spec, r.result)
    return res

def main(seeds):
    records, t = Records(f'{out}/records.db'), digits()
    records.put_labels(t.pixel_hash, t._test_arrays[1], dict(target=t.name, classes=t.classes))
    for s in seeds:
        for share in SHARES:
            sweep([spec(a, share, r, s) for a in ARMS for r in (None, *REMEDIES)], records, run, workers=1,
                  progress=False)
    print(whole(records).export(package_assets()/'overfitting.db').stat().st_size, 'bytes')

if __name__ == '__main__': main([int(o) for o in sys.argv[1:]] or SEEDS)
