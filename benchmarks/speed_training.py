"""Training: a fastai Learner beside plain torch, the optimiser, ten learning rates, a frozen part, bfloat16 (rows 3,
4 and 5).

    python benchmarks/speed_training.py [--smoke] [--rounds N] [--out FILE]
        # 15 to 20 minutes on one core; writes speed_training.json

Plain torch has the decoded pixels in memory, augments and normalises as our batches are, steps by torch's fused AdamW
and keeps no record: it is the limit. fastai's defaults read JPEG files (ImageDataLoaders, Resize, aug_transforms,
num_workers=0, its Adam). Nothing is validated in any arm, and weights are random: only speed is measured, but for the
last row, which scores finished runs.
"""
import os, tempfile
from contextlib import ExitStack
from pathlib import Path
import numpy as np
from timing import arguments, at_least, at_most, explain, finish, quiet, ratio, rounds, row, said
import torch
from fastai.vision.all import (Adam, Callback, CancelValidException, ImageDataLoaders, L, Normalize, Resize,
                               aug_transforms, imagenet_stats, params, set_seed, vision_learner)
from PIL import Image
from torch import nn
from tlcourse.backbones import arch
from tlcourse.learner import learner, linear_head
from tlcourse.augment import BatchAugment
from tlcourse.data import target
from tlcourse.activations import stored_activations
from tlcourse.features import extract
from tlcourse.strategy import STRATEGIES, stepped
from tlcourse.layers import true_freeze
from tlcourse.stats import paired_ci
from tlcourse.training import Bf16, bf16_units, fused_adam

LR, CLASSES = 1e-3, 10
FULL = dict(nets=dict(glyphnet=(32, 64, 40), resnet18=(128, 32, 3)), # size, batch, steps a round
            pictures=400, opt=dict(glyphnet=40, resnet18=10), curve=50, shots=9, epochs=10, fit=150, seeds=5)
SMOKE = dict(nets=dict(glyphnet=(32, 8, 2), resnet18=(32, 4, 1)), pictures=40, opt=dict(glyphnet=2, resnet18=1),
             curve=4, shots=2, epochs=2, fit=3, seeds=2)

# --- pictures and arms ------------------------------------------------------------------------------------------------
def photos(folder, n, classes=CLASSES, side=(160, 140), seed=0):
    "n JPEG files in `classes` folders: smooth noise, a different one each"
    rng = np.random.RandomState(seed)
    for i in range(n):
        d = Path(folder)/f'class{i % classes:04d}'
        d.mkdir(parents=True, exist_ok=True)
        im = Image.fromarray(rng.randint(0, 256, (9, 8, 3), dtype=np.uint8))
        im.resize(side, Image.Resampling.BICUBIC).save(d/f'{i:06d}.jpg', quality=90)

class NoValid(Callback):
    "An epoch without its validation"
    def before_validate(self): raise CancelValidException()

def ours(dls, net, opt=fused_adam, **kwargs):
    "A Learner of the course with channels-last weights, all layers training"
    learn = learner(dls, net, pretrained=False, opt_func=opt, cbs=[NoValid(), *kwargs.pop('cbs', [])], **kwargs)
    learn.model.to(memory_format=torch.channels_last)
    return learn

def train(learn, steps, lr=LR):
    "One cycle of so many steps"
    dls, learn.dls = learn.dls, stepped(learn.dls, steps)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, lr)
    learn.dls = dls

def network(net, c=CLASSES):
    "The same network as a plain module"
    a = arch(net, 'random')
    return nn.Sequential(a.cut(a()), linear_head(a.nf, c)).to(memory_format=torch.channels_last)

def plain(model, part, stats, names, bs, steps):
    "The limit: preloaded pixels, the same augmentation and normalisation, and nothing else"
    model.train()
    opt = torch.optim.AdamW(model.parameters(), lr=LR, betas=(.9, .99), eps=1e-5, weight_decay=.01, fused=True)
    aug, loss_func, (mean, std) = (BatchAugment(names), nn.CrossEntropyLoss(),
                                   (torch.tensor(o).view(1, 3, 1, 1) for o in stats))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < bs: order = torch.cat([order, torch.randperm(len(part))])
        ids, order = order[:bs], order[bs:]
        xb = aug.change(part.x[ids].float().div_(255)).sub_(mean).div_(std)
        loss_func(model(xb), part.y[ids]).backward()
        opt.step()
        opt.zero_grad()

def defaults(folder, net, size, bs):
    "fastai as its tutorials show it, from the same body without weights"
    tfms = [*aug_transforms(), Normalize.from_stats(*imagenet_stats, cuda=False)]
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.2, seed=0, item_tfms=Resize(size), batch_tfms=tfms, bs=bs,
                                       num_workers=0, device='cpu')
    return vision_learner(dls, arch(net, 'random'), pretrained=False, cbs=NoValid())

def why(rows, f, facts, by, what):
    "The profile where a row missed its target; a smoke run, whose rows mean nothing, shows one"
    if facts['sizes'] is FULL or 'profile' not in facts: explain(rows, f, facts, by, what)

# --- row 3 ------------------------------------------------------------------------------------------------------------
def throughput(net, t, folder, k, args, facts):
    "A step of the Learner against one of plain torch"
    size, bs, steps = k['nets'][net]
    def made(**kwargs): return lambda: ours(t.dls(bs=bs, device='cpu'), net, **kwargs)
    def go(learn): train(learn, steps)
    arms = {'plain torch': (lambda: network(net), lambda m: plain(m, t.train, arch(net).stats, t.augments, bs, steps)),
            'Learner of target.dls': (made(), go),
            "the same with fastai's Adam": (made(opt=Adam), go),
            'fastai defaults': (lambda: defaults(folder, net, size, bs), go)}
    s = facts['seconds'][f'training {net}'] = rounds(arms, args.rounds)
    r = {n: ratio(s['plain torch'], o) for n,o in s.items()}
    at = f'{net} at {size} px, bs {bs}: speed of plain torch'
    images = steps*bs/np.median(s['plain torch'])
    res = [at_least(f'{at}, Learner of target.dls', .97, r['Learner of target.dls'],
                    f'plain torch: {images:.1f} images a CPU second'),
           said(f"{at}, the same with fastai's Adam", r["the same with fastai's Adam"]),
           said(f'{at}, fastai defaults', r['fastai defaults'], 'reads JPEG files, num_workers=0, two-layer head')]
    learn = made()()
    why(res, lambda: train(learn, steps), facts, 'python', f'{net}: Learner of target.dls')
    return res

def optimiser(net, k, args, facts):
    "opt.step and zero_grad alone, on gradients that are set"
    def made(f):
        ps = list(network(net).parameters())
        state = f(ps, lr=LR), ps, [torch.randn_like(p) for p in ps]
        go(state, 1) # the first step makes the averages
        return state
    def go(state, n=k['opt'][net]):
        opt, ps, grads = state
        for _ in range(n):
            for p,g in zip(ps, grads): p.grad = g # either way of clearing leaves gradients to set
            opt.step()
            opt.zero_grad()
    arms = {n: (lambda f=f: made(f), go) for n,f in (("fastai's Adam", Adam), ('fused_adam', fused_adam))}
    s = facts['seconds'][f'optimiser {net}'] = rounds(arms, args.rounds)
    ms = [1e3*np.median(s[n])/k['opt'][net] for n in arms]
    return [at_least(f"{net}: fastai's Adam / fused_adam, step and zero_grad alone", 3, ratio(*s.values()),
                     '{:.2f} and {:.2f} ms'.format(*ms))]

class EachLoss(Callback):
    "The loss of each batch, not smoothed"
    def before_fit(self): self.seen = []
    def after_loss(self):
        if self.training: self.seen.append(float(self.learn.loss_grad.detach()))

def curve(t, steps, opt, jolt=0.):
    "The losses of a run with this optimiser, from weights moved by a share `jolt` of themselves"
    set_seed(0, reproducible=True)
    learn = ours(t.dls(shots=2 if steps < 10 else 20, bs=32, device='cpu'), 'glyphnet', opt, cbs=[c := EachLoss()])
    with torch.no_grad():
        for p in learn.model.parameters(): p.mul_(1 + jolt)
    set_seed(0, reproducible=True)
    train(learn, steps)
    return np.array(c.seen)

def same_curve(t, k, facts):
    """The largest relative difference of the losses of two optimisers, beside that of runs of one
    from almost equal weights"""
    ulp = 2**-23 # one unit of float32's last place
    adam, fused, *near = (curve(t, k['curve'], *o)
                          for o in ((Adam,), (fused_adam,), *((Adam, j*ulp) for j in (1, -1, 2))))
    facts['losses'] = dict(adam=adam.tolist(), fused=fused.tolist(), near=[o.tolist() for o in near])
    diff, *noise = (float((np.abs(o - adam)/adam).max()) for o in (fused, *near))
    return [row(f'{k["curve"]} losses with fused_adam and with fastai\'s Adam, '
                'largest relative difference', f'<= noise ({max(noise):.1e})',
                diff, diff, diff, diff <= max(noise),
                "noise: the most among three runs of fastai's Adam from weights times 1 +- 1e-7 to 2e-7")]

def in_groups(n):
    "A splitter: n - 1 groups of about equal numbers of tensors, and the head"
    def split(m):
        ps = params(m[0])
        return L(*([ps[i] for i in ix] for ix in np.array_split(range(len(ps)), n-1)), params(m[1]))
    return split

def groups(net, t, k, args, facts):
    "A step with ten learning rates against one with one"
    _, bs, steps = k['nets'][net]
    splits = dict(ten=in_groups(10), one=lambda m: L([params(m)]).map(list))
    arms = {n: (lambda f=f: ours(t.dls(bs=bs, device='cpu'), net, splitter=f),
                lambda learn, lr=slice(LR/25, LR) if n == 'ten' else LR: train(learn, steps, lr))
                for n,f in splits.items()}
    s = facts['seconds'][f'groups {net}'] = rounds(arms, args.rounds)
    return [at_most(f'{net}: step with ten learning rates / with one', 1.1, ratio(s['ten'], s['one']))]

# --- row 4 ------------------------------------------------------------------------------------------------------------
CUTS = dict(glyphnet=4, resnet18=7) # children of the body before its last stage

def last_stage(cut): return lambda m: L(params(m[0][:cut]), params(m[0][cut:]), params(m[1]))

def frozen_arms(net, dls):
    "name -> a maker of a Learner: all layers, the last stage and head our way, and fastai's"
    def made(freeze, opt=fused_adam):
        def f():
            learn = ours(dls(), net, opt, splitter=last_stage(CUTS[net]))
            freeze(learn)
            return learn
        return f
    return {'all layers': made(lambda o: o.unfreeze()), 'last stage, true_freeze': made(lambda o: true_freeze(o, -2)),
            'last stage, fastai freeze_to': made(lambda o: o.freeze_to(-2), Adam)}

def partly(net, t, k, args, facts):
    "A step with the first three stages frozen, in the steady state"
    size, bs, steps = k['nets'][net]
    makers = frozen_arms(net, lambda: t.dls(bs=bs, augment=False, device='cpu'))
    with ExitStack() as keep:
        learns = {n: f() for n,f in makers.items()}
        stored = learns['last stage, stored'] = makers['last stage, true_freeze']()
        keep.enter_context(stored_activations(stored))
        arms = {n: lambda o=o: train(o, steps) for n,o in learns.items()}
        s = facts['seconds'][f'partly frozen {net}'] = rounds(arms, args.rounds)
        r = {n: ratio(s['all layers'], o) for n,o in s.items()}
        at = f'{net} at {size} px: step of all layers / of'
        res = [at_least(f'{at} the last stage and head, true_freeze', 2, r['last stage, true_freeze']),
               at_least(f'{at} the same from stored activations', 4.5, r['last stage, stored']),
               said(f"{at} the same by fastai's freeze_to", r['last stage, fastai freeze_to'],
                    'train_bn=True and its Adam, both defaults')]
        why(res[1:2], lambda: train(stored, steps), facts, 'torch', f'{net}: steps from stored activations')
    why(res[:1], lambda: train(learns['last stage, true_freeze'], steps), facts, 'torch',
        f'{net}: steps with true_freeze')
    return res

def epochs(net, t, k, args, facts):
    "Ten epochs as a whole, the pass that stores included"
    size, bs, _ = k['nets'][net]
    shots = k['shots'] if net == 'resnet18' else None
    makers = frozen_arms(net, lambda: t.dls(shots=shots, bs=bs, augment=False, device='cpu', valid_shots=1))
    def fit(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(k['epochs'], LR)
    def stored(learn):
        with stored_activations(learn): fit(learn)
    arms = {'all layers': (makers['all layers'], fit), 'stored': (makers['last stage, true_freeze'], stored)}
    s = facts['seconds'][f'epochs {net}'] = rounds(arms, max(1, args.rounds*3//5), warm=0 if net == 'resnet18' else 1)
    n = CLASSES*shots if shots else len(t.train)
    res = [at_least(f'{net} at {size} px: {k["epochs"]} epochs of all layers / of the last stage and head, '
                    'the storing pass included', 4.5,
                    ratio(s['all layers'], s['stored']), f'{n} pictures')]
    learn = makers['last stage, true_freeze']()
    why(res, lambda: stored(learn), facts, 'torch', f'{net}: {k["epochs"]} epochs from stored activations')
    return res

# --- row 5 ------------------------------------------------------------------------------------------------------------
def bf16(net, t, k, args, facts):
    "A fine-tuning step and a pass of extraction, float32 against bfloat16"
    size, bs, steps = k['nets'][net]
    body, stats, some = network(net)[0], arch(net).stats, np.arange(min(len(t.train), 2*bs))
    def passes(how):
        return lambda: extract(body, t.train, stats=stats, cache=False, device='cpu', progress=False, ids=some,
                               precision=how)
    def made(cbs): return lambda: ours(t.dls(bs=bs, device='cpu'), net, cbs=cbs)
    arms = {'step fp32': (made([]), lambda o: train(o, steps)),
            'step bf16': (made([Bf16()]), lambda o: train(o, steps)),
            'pass fp32': passes('fp32'), 'pass bf16': passes('bf16')}
    s = facts['seconds'][f'bf16 {net}'] = rounds(arms, args.rounds)
    res = [at_least(f'{net} at {size} px: {what} in float32 / in bfloat16', 1.5, ratio(s[f'{o} fp32'], s[f'{o} bf16']))
           for o,what in (('step', 'fine-tuning step'), ('pass', 'pass of extraction'))]
    learn = made([Bf16()])()
    why(res[:1], lambda: train(learn, steps), facts, 'torch', f'{net}: steps in bfloat16')
    why(res[1:], passes('bf16'), facts, 'torch', f'{net}: a pass of extraction in bfloat16')
    return res

def accuracy(k, facts):
    "Fine-tuned digits at 20 labels per class, the same seeds in both precisions"
    right = {}
    for how in 'fp32', 'bf16':
        t = target('digits')
        def run(seed):
            dls = t.dls(shots=20, seed=seed, bs=32, device='cpu')
            return t.score(STRATEGIES['fine-tuning'](dls, 'glyphnet', steps=k['fit'], seed=seed, progress=False,
                                                     precision=how)).correct
        right[how] = np.stack([run(s) for s in range(k['seeds'])])
    d = paired_ci(right['bf16'], right['fp32'])
    facts['accuracy'] = {n: o.mean(1).tolist() for n,o in right.items()}
    means = ' and '.join(f'{100*o.mean():.1f} %' for o in right.values())
    return [row('digits, 20 labels per class: accuracy in bfloat16 minus float32',
                '0 in the interval', d.mean, d.low, d.high,
                d.low <= 0 <= d.high, f"{means}, {k['seeds']} seeds, {right['fp32'].shape[1]} "
                                      "test pictures, 95 % interval")]

# --- all --------------------------------------------------------------------------------------------------------------
def main():
    args = arguments(__doc__)
    k, res, facts = SMOKE if args.smoke else FULL, [], dict(seconds={}, sizes=None)
    facts['sizes'] = k
    with tempfile.TemporaryDirectory() as d, quiet():
        os.environ['TLCOURSE_CACHE'] = f'{d}/cache'
        photos(Path(d)/'photos', k['pictures'])
        ts = {net: target(f'{d}/photos', size=o[0]) for net,o in k['nets'].items()}
        def done(rows):
            for r in rows: print(f"{r['name']}: {r['value']:.4g}", flush=True)
            res.extend(rows)
        for net,t in ts.items(): done(throughput(net, t, f'{d}/photos', k, args, facts))
        for net in ts: done(optimiser(net, k, args, facts))
        done(same_curve(target('digits'), k, facts))
        for net,t in ts.items(): done(groups(net, t, k, args, facts))
        for net,t in ts.items(): done(partly(net, t, k, args, facts) + epochs(net, t, k, args, facts))
        if bf16_units('cpu'):
            for net,t in ts.items(): done(bf16(net, t, k, args, facts))
            done(accuracy(k, facts))
        else: print('bfloat16: left out, this CPU has no units for it')
    finish(args, 'speed_training', res, **facts)

if __name__ == '__main__': main()
