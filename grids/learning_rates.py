"""The stored grid of lesson 8: the rate finder against sweeps, schedules, optimisers, and rates for each layer group.

    python grids/learning_rates.py [WORKERS]
        # about 20 minutes of one core; stopped and started again it goes on

Records lie in tlcourse-out/learning_rates/records.db; the end writes tlcourse/assets/learning_rates.db. A run depends
on its spec alone: `run(spec)`. Rates are chosen on 5 validation pictures per class, as the mean of two tuning seeds
that no reported run shares, and a winner at the edge of a grid extends it for all arms that are compared. Optimisers
at 60 steps are chosen twice: by accuracy (ties go to the lower loss), as was meant for all, and by loss, after that
had gone wrong; the rest, run later, by loss alone.
"""
import sys, tempfile
from functools import lru_cache, partial
from pathlib import Path
import numpy as np
from tlcourse.backbones import learner
from tlcourse.base import package_assets, writable_folder
from tlcourse.compare import compare
from tlcourse.runs import TUNE_SEED, run_spec, task
from tlcourse.data import target
from tlcourse.finetune import stepped
from tlcourse.layers import true_freeze
from tlcourse.records import Records
from tlcourse.sweep import cores, sweep
import torch
from fastai.callback.schedule import ParamScheduler, combined_cos, minimum, slide, steep, valley
from fastai.optimizer import SGD, Adam, OptimWrapper
from fastai.torch_core import set_seed

CODE = 1 # goes into each spec: raise it where a change here changes results
V = 5
OPTS = {'adam': Adam, 'sgd': partial(SGD, mom=.9), 'adagrad': partial(OptimWrapper, opt=torch.optim.Adagrad)}
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.]
_target = lru_cache(target)

def spec(kind, target, shots, seed, mode, lr=None, steps=60, opt='adam', schedule='one-cycle', head='zero'):
    """One run. `mode`: 'scratch', 'head' (truly frozen body), 'one' (one rate for all), 'disc' (slice(lr/25, lr)), or
    the rates of stem, stages and head as a list. `kind`: 'finder', 'tune', 'report' (opens the test)."""
    return dict(kind=kind, target=target, pixel_hash=_target(target).pixel_hash, shots=shots, seed=seed, mode=mode,
                lr=lr, steps=steps, opt=opt, schedule=schedule, head=head, bs=32, V=V, wd=0., backbone='glyphnet',
                code=CODE)

def made(spec, dls):
    "The Learner of a spec, untrained"
    set_seed(spec['seed'], reproducible=True)
    mode = spec['mode']
    learn = learner(dls, spec['backbone'], pretrained=mode != 'scratch', opt_func=OPTS[spec['opt']], wd=spec['wd'])
    if spec['head'] == 'random': learn.model[1][-1].reset_parameters()
    learn.model.to(memory_format=torch.channels_last)
    if mode == 'head': true_freeze(learn)
    elif mode != 'scratch': learn.unfreeze()
    return learn

def train(learn, spec):
    "Train by the schedule of a spec, for its steps"
    lr, mode, sched = spec['lr'], spec['mode'], spec['schedule']
    rates = slice(lr/25, lr) if mode == 'disc' else lr if isinstance(mode, str) else np.array(mode)
    dls, learn.dls = learn.dls, stepped(learn.dls, spec['steps'])
    with learn.no_bar(), learn.no_logging():
        if sched == 'one-cycle': learn.fit_one_cycle(1, rates)
        elif sched == 'flat-cos': learn.fit_flat_cos(1, rates)
        elif sched == 'constant': learn.fit(1, rates)
        else: # 'lr-cycle': one-cycle's rate, momentum left alone
            learn.create_opt() if learn.opt is None else None
            learn.opt.set_hyper('lr', rates)
            top = np.array([h['lr'] for h in learn.opt.hypers])
            learn.fit(1, rates, cbs=ParamScheduler({'lr': combined_cos(.25, top/25, top, top/1e5)}))
    learn.dls = dls
    return learn

def measure(learn, dl):
    "Loss and accuracy on `dl`, without augmentation"
    with dl.dataset.set_split_idx(1), learn.no_bar(), learn.no_logging():
        return [float(o) for o in learn.validate(dl=dl)]

def run(spec):
    "What a run of `spec` gives; a report run holds its answers on the test"
    if 'strategy' in spec: return run_spec(task('digits', 'glyphnet', device='cpu'), spec) # of `compare`
    t = _target(spec['target']).unopened()
    dls = t.dls(shots=spec['shots'], seed=spec['seed'], bs=spec['bs'], valid_shots=spec['V'], valid_seed=0,
                device='cpu')
    learn = made(spec, dls)
    if spec['kind'] == 'finder':
        with tempfile.TemporaryDirectory() as d, learn.no_bar(), learn.no_logging():
            learn.path = Path(d)
            s = learn.lr_find(suggest_funcs=(valley, steep, minimum, slide), show_plot=False)
        lrs, losses = (np.array(o, dtype=np.float32) for o in (learn.recorder.lrs, learn.recorder.losses))
        return dict(valley=s.valley, steep=s.steep, minimum=s.minimum, slide=s.slide, lrs=lrs, losses=losses)
    train(learn, spec)
    res = {}
    res['valid_loss'], res['valid_acc'] = measure(learn, learn.dls.valid)
    res['train_loss'], res['train_acc'] = measure(learn, learn.dls.train.new(shuffle=False, drop_last=False))
    every = t.dls(shots=spec['shots'], seed=spec['seed'], bs=spec['bs'], device='cpu').valid.dataset
    res['all_valid'] = measure(learn, learn.dls.valid.new(every))[1] # a map to look at; choices rest on `valid_acc`
    if spec['kind'] == 'report':
        s = t.score(learn)
        res.update(pred=s.pred, prob=s.prob)
    return res

def finder(t, k, sweep=True, modes=('head', 'one', 'scratch')):
    "Suggestions of the finder, and the map of rates that they are held against"
    yield from (spec('finder', t, k, TUNE_SEED+i, m) for m in modes for i in range(5))
    for m in modes if sweep else ():
        yield from (spec('tune', t, k, TUNE_SEED+i, m, lr) for lr in RATES[:9 if m == 'head' else 7] for i in range(3))

def chosen(do, make, arms, rates, by, seeds=2, extend=2):
    """Rate of each arm by mean validation accuracy or loss; the same `rates` for all, which grow for all
    where one wins at an edge"""
    rates = list(rates)
    for _ in range(extend + 1):
        cells = [(a, lr) for a in arms for lr in rates]
        got = do([make('tune', TUNE_SEED+i, a, lr) for a,lr in cells for i in range(seeds)])
        acc, loss = ({c: np.mean([r[k] for r in got[seeds*i:seeds*(i+1)]]) for i,c in enumerate(cells)}
                     for k in ('valid_acc', 'valid_loss'))
        score = {c: (round(acc[c], 6) if by == 'accuracy' else 0, -loss[c]) for c in cells}
        res = {a: max(rates, key=lambda lr: score[a, lr]) for a in arms}
        if not set(res.values()) & {rates[0], rates[-1]}: break
        if rates[0] in res.values(): rates.insert(0, float(f'{rates[0]/3:.1g}'))
        if rates[-1] in res.values(): rates.append(float(f'{rates[-1]*3.2:.1g}'))
    return res, [lr for lr in rates if (arms[0], lr) in score]

def study(do, records, name, make, arms, rates, by='loss'):
    "Choose, report on five seeds, and note what was chosen"
    res, tried = chosen(do, make, arms, rates, by)
    do([make('report', i, a, res[a]) for a in arms for i in range(5)])
    what = dict(kind='chosen', by=by, **name)
    if not records.has(what): records.add(what, dict(rates=res, tried=tried))

def main(workers):
    records = Records(writable_folder('tlcourse-out/learning_rates')/'records.db')
    for t in 'digits', 'textures':
        records.put_labels(_target(t).pixel_hash, _target(t)._test_arrays[1], dict(classes=_target(t).classes))
    def do(specs): return sweep(specs, records, run, workers=workers)
    for k in 5, 1, 20: do(finder('digits', k, sweep=k == 5))
    arms = [2e-4, 1e-3, 5e-3], [5e-4, 5e-4, 5e-3], [5e-3]*3, [1e-3]*3
    def groups(t, shots, arms=arms): do(spec('report', t, k, i, m) for k in shots for m in arms for i in range(5))
    groups('digits', (1, 5, 20))
    def strategies(shots, tune):
        compare('digits', strategies='fine-tuning,single-rate,gradual', shots=shots, steps=60, tune=tune,
                out='tlcourse-out/learning_rates', device='cpu', workers=workers)
    strategies(1, 'none')
    strategies([5, 20], 'valid')
    def optimisers(mode, steps, rates, by='loss'):
        study(do, records, dict(what='optimiser', target='digits', shots=5, mode=mode, steps=steps),
              lambda kind, seed, a, lr: spec(kind, 'digits', 5, seed, mode, lr, steps, opt=a, schedule='lr-cycle'),
              list(OPTS), rates, by)
    def schedules(k):
        study(do, records, dict(what='schedule', target='digits', shots=k),
              lambda kind, seed, a, lr: spec(kind, 'digits', k, seed, 'disc', lr, schedule=a),
              ['one-cycle', 'constant'], RATES[2:5])
    for by in 'accuracy', 'loss': optimisers('disc', 60, RATES, by)
    groups('textures', (1, 20), arms[::2] + arms[3:])
    schedules(5)
    # few images and SGD at 0.0001 on the last layer, from a head that starts at random
    do(spec('tune', 'digits', 5, TUNE_SEED+i, 'head', lr, opt=o, schedule='constant', head='random')
       for o in ('sgd', 'adam') for lr in RATES[::2] for i in range(3))
    optimisers('disc', 20, RATES[2:5])
    schedules(20)
    print(records, records.export(package_assets()/'learning_rates.db').stat().st_size, 'bytes')

if __name__ == '__main__': main(int(sys.argv[1]) if sys.argv[1:] else cores())
