"""The stored grid of lesson 5: what a frozen body costs its source, and does for its target, when its BatchNorm is
left moving.

    python grids/freezing.py      # about 16 minutes on 2 idle cores; goes on where it was stopped

Each run freezes glyphnet in one of three ways, trains a linear head, and is scored once on the sealed test and twice
on source pictures: as the fit left it, and after its running statistics were estimated again on source pictures.
"""
from tlcourse.all import *
from tlcourse.base import package_assets
from fastai.vision.all import *

TARGETS = 'letters', 'digits', 'textures'
FREEZES = 'default', 'train_bn=False', 'true_freeze'

def source_right(body, n=500):
    "Which of `n` source pictures the body gets right with the head that it was pretrained with"
    net, (x, y) = glyphnet(pretrained=True), SourceDrawer('glyph').check(n)
    model = nn.Sequential(body, net.pool, net.flatten, net.fc).eval()
    with torch.no_grad(): return (model((x - .5)/.25).argmax(1) == y).numpy()

def estimate_again(body, batches=20):
    "Set the running statistics to their mean over source batches, drawn as in training"
    bns,d = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)], SourceDrawer('glyph', seed=1)
    for m in bns: m.reset_running_stats(); m.momentum = None
    with torch.no_grad():
        for _ in range(batches): body.train()((d.batch(128)[0] - .5)/.25)

def run(spec:dict # What to run
       ) -> dict: # `pred`, `prob` on the test; `source`, `repaired` (500,) bool
    "Freeze, train the head, score; a run depends on its spec alone."
    t = target(spec['target'])
    dls = t.dls(shots=spec['shots'], seed=spec['seed'], bs=32, device='cpu')
    set_seed(spec['seed'], reproducible=True)
    learn = learner(dls, spec['backbone'], train_bn=spec['freeze'] == 'default')
    learn.dls = stepped(learn.dls, spec['steps'])
    if spec['freeze'] == 'true_freeze': true_freeze(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, spec['lr'])
    s,source = t.score(learn), source_right(learn.model[0])
    estimate_again(learn.model[0])
    return dict(pred=s.pred, prob=s.prob, source=source, repaired=source_right(learn.model[0]))

def grid() -> list:
    "Three targets, 20 labels per class, 20 seeds, three ways to freeze; one number of steps and one rate, not tuned."
    pixels = {t: target(t).pixel_hash for t in TARGETS}
    # `lesson` is a part of the stored specs: the number that the page had when they were made
    return [dict(lesson=4, target=t, pixel_hash=h, backbone='glyphnet', freeze=f, shots=20, steps=70, lr=1e-2, seed=s)
            for t,h in pixels.items() for s in range(20) for f in FREEZES]

if __name__ == '__main__':
    records = Records('tlcourse-out/freezing/records.db')
    for t in map(target, TARGETS): records.put_labels(t.pixel_hash, t._test_arrays[1], dict(target=t.name))
    sweep(grid(), records, run)
    print(records.export(package_assets()/'freezing.db').stat().st_size, 'bytes')
