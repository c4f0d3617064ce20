"""The stored grid of lesson 6: probes at every stage of a trained and of a random body, views, adapted BatchNorm, and
two heads.

    python grids/feature_extraction.py
        # about 10 minutes on 2 cores; writes tlcourse/assets/feature_extraction.db

Stopped and started again it goes on from tlcourse-out/feature_extraction. Weight decays and rates are chosen on the
same five validation pictures per class in every arm, six tries each; the test is opened once for each finished run.
"""
from pathlib import Path
import torch
from fastai.vision.all import DataLoaders, Learner, set_seed
from tlcourse.backbones import arch, learner
from tlcourse.base import package_assets
from tlcourse.data import kshot, target
from tlcourse.features import extract, head_learner
from tlcourse.finetune import stepped
from tlcourse.layers import true_freeze
from tlcourse.probes import fit_probes
from tlcourse.records import Records
from tlcourse.sweep import sweep

TARGETS = ['letters', 'letters-stix', 'digits', 'textures', 'hues']
WDS, RATES, V = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.], [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1], 5
_targets = {}

def get(name): # with an empty log of openings: the store keeps them
    if name not in _targets: _targets[name] = target(name)
    return _targets[name].unopened()

def probe(spec, t):
    "A probe on features of one stage; weight decay by validation"
    a = arch('glyphnet', 'random' if spec['body'] == 'random' else None)
    seed = spec['seed'] if spec['body'] == 'random' or spec['views'] > 1 else 0
    kw = dict(layer=spec['layer'], bn=t.train if spec['bn'] == 'adapt' else 'eval', device='cpu', seed=seed)
    tr = extract(a, t.train, views=spec['views'], **kw)
    va = extract(a, t.valid, ids=kshot(t.valid.y, V, 0), **kw)
    ps = fit_probes(tr, [kshot(t.train.y, spec['shots'], spec['seed'])], WDS)
    j = int(ps.choose(va)[0])
    learn = head_learner(t.dls(device='cpu'), a, ps.head(0, j), spec['layer'], kw['bn'], seed)
    return learn, dict(wd=WDS[j], valid_acc=float(ps.accuracy(va)[0,j]), grad_norm=float(ps.grad_norm[0,j]))

def trained_head(spec, t):
    "fastai's head, or the linear one, trained by one cycle on stored maps of the frozen body; rate by validation"
    ids, vids = kshot(t.train.y, spec['shots'], spec['seed']), kshot(t.valid.y, V, 0)
    best = None
    for lr in RATES:
        set_seed(spec['seed'], reproducible=True)
        learn = true_freeze(learner(t.dls(device='cpu'), 'glyphnet', head=spec['head']))
        norm, body = learn.dls.valid.after_batch.fs[-1], learn.model[0].eval()
        def maps(part, i):
            with torch.no_grad(): return list(zip(body((part.x[i].float()/255 - norm.mean)/norm.std), part.y[i]))
        data = DataLoaders.from_dsets(maps(t.train, ids), maps(t.valid, vids), bs=min(32, len(ids)), device='cpu',
                                      num_workers=0)
        small = Learner(stepped(data, spec['steps']), learn.model[1], loss_func=learn.loss_func, metrics=learn.metrics)
        with small.no_bar(), small.no_logging():
            small.fit_one_cycle(1, lr)
            acc = small.validate(dl=data.valid)[1]
            seen = small.validate(dl=data.train.new(shuffle=False, drop_last=False))[1]
        if best is None or acc > best[1]['valid_acc']:
            best = learn, dict(lr=lr, valid_acc=float(acc), train_acc=float(seen))
    return best

def run(spec):
    "One run; it depends on its spec alone"
    t = get(spec['target'])
    learn, res = (probe if spec['kind'] == 'probe' else trained_head)(spec, t)
    s = t.score(learn)
    return dict(res, pred=s.pred, prob=s.prob)

def grid():
    "Every spec of the lesson"
    res = []
    def add(name, **kw):
        for seed in range(5):
            res.append(dict(target=name, pixel_hash=get(name).pixel_hash, backbone='glyphnet', **kw, seed=seed))
    def probes(name, **kw):
        add(name, kind='probe', **(dict(body='trained', layer=4, shots=5, views=1, bn='eval', wds=WDS, V=V) | kw))
    for t in TARGETS:
        for body in 'trained', 'random':
            for layer in range(5): probes(t, body=body, layer=layer)
        probes(t, bn='adapt')
    for t in 'letters-stix', 'digits', 'textures':
        for k in 1, 20:
            probes(t, shots=k)
            for head in 'linear', 'fastai': add(t, kind='head', head=head, shots=k, steps=150, rates=RATES, V=V)
        for k in 1, 5: probes(t, shots=k, views=8)
    return res

if __name__ == '__main__':
    store = Records(Path('tlcourse-out/feature_extraction/records.db'))
    sweep(grid(), store, run)
    for n in TARGETS:
        t = get(n)
        store.put_labels(t.pixel_hash, t._test_arrays[1], dict(name=n, classes=t.classes))
    store.export(package_assets()/'feature_extraction.db')
