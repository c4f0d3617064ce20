"""Features once: decode, one pass of a frozen body and a head, against one bare pass and against frozen training in
other libraries.

    python benchmarks/speed_features.py [--smoke] [--rounds N] [--out FILE]     # about 20 minutes a round on one core

2,000 generated JPEGs (about 500 x 375, smooth noise and shapes, quality 85) at 128 px; resnet18 and mobilenet_v2 with
random weights, so no accuracy here means anything. The limit is what cannot be left out: each JPEG decoded once, each
picture through the body once, in eval mode, without gradients, channels last. The other libraries run the body again
each epoch: their epoch is timed on 400 pictures of the same kind (a fifth of them for validation), set-up excluded,
and ten epochs of 2,000 are extrapolated from it. They run as their documentation shows it, without augmentation,
bars, logging and checkpoints; `num_workers=0` and one thread for every arm.
"""
import inspect, json, os, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path
import timing
import numpy as np, torch, torchvision
from PIL import Image, ImageDraw
from fastai.vision.all import (BnFreeze, CrossEntropyLossFlat, DataLoaders, ImageDataLoaders, Learner, Normalize,
                               Resize, TfmdDL, imagenet_stats, set_seed, vision_learner)
from torch import nn
from torch.nn import functional as F
from torchvision import transforms
from tlcourse.backbones import arch
from tlcourse.data import kshot, target
from tlcourse.features import extract
from tlcourse.pictures import fit_picture, read_picture
from tlcourse.probes import fit_probes

WDS = 1e-4, 1e-3, 1e-2

def draw(rng, c, classes, w=500, h=375):
    "One picture: smooth noise, and shapes whose form, colour and number go with the class"
    im = Image.fromarray(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(im)
    for _ in range(3 + c % 4):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(.06, .14)*w
        hue = tuple(int(127 + 120*np.cos(2*np.pi*(c/classes + k/3)) + rng.normal(0, 12)) for k in range(3))
        (pen.ellipse if c % 2 else pen.rectangle)((x-r, y-r*(.5 + c % 3/3), x+r, y+r*(.5 + c % 3/3)), fill=hue)
    fine = rng.normal(0, 8, (h, w, 1)) # grain, so that the files have the size of photographs
    return Image.fromarray((np.asarray(im) + fine).clip(0, 255).astype(np.uint8))

def draw_folder(folder, n, classes=10, seed=0, size=(500, 375)):
    "n JPEGs in train/ and valid/ (a fifth), and two more a class in test/, for a `Target` has a test part"
    rng = np.random.default_rng(seed)
    for part,k in (('train', n - n//5), ('valid', n//5), ('test', 2*classes)):
        for i in range(k):
            f = Path(folder)/part/f'c{i % classes:02d}'/f'{i:05d}.jpg'
            f.parent.mkdir(parents=True, exist_ok=True)
            draw(rng, i % classes, classes, *size).save(f, quality=85)
    return Path(folder)

@contextmanager
def cache(folder):
    "The library's cache in this folder"
    old = os.environ.get('TLCOURSE_CACHE')
    os.environ['TLCOURSE_CACHE'] = str(folder)
    try: yield
    finally:
        if old is None: os.environ.pop('TLCOURSE_CACHE')
        else: os.environ['TLCOURSE_CACHE'] = old

# The limit

def body_of(name):
    a = arch(name, weights='random')
    torch.manual_seed(0)
    return a.cut(a()).eval().to(memory_format=torch.channels_last), a.stats

def floor(folder, name, size, bs=64):
    "Set-up and the bare pass: decode as the library does (a JPEG at the least scale that will do), one forward"
    files = sorted(o for p in ('train', 'valid') for o in (folder/p).rglob('*.jpg'))
    body, (mean, std) = body_of(name)
    mean, std = (torch.tensor(o).view(3, 1, 1) for o in (mean, std))
    def one(f): return np.asarray(fit_picture(read_picture(f, (2*size, 2*size)), size))
    def run():
        with torch.no_grad():
            for i in range(0, len(files), bs):
                x = torch.from_numpy(np.stack([one(f) for f in files[i:i+bs]])).permute(0, 3, 1, 2)
                F.adaptive_avg_pool2d(body((x.float().div_(255) - mean)/std), 1).flatten(1)
    def decode():
        for f in files: one(f)
    return run, decode

# This library

class Rows(TfmdDL):
    "Batches gathered from stored features"
    def __init__(self, x, y, bs=64, shuffle=False):
        super().__init__(list(range(len(y))), bs=bs, shuffle=shuffle, num_workers=0)
        self.x, self.y = torch.tensor(x, dtype=torch.float32) if isinstance(x, np.ndarray) else x, torch.as_tensor(y)
    def create_batches(self, samps):
        for o in self.chunkify(samps): yield self.x[list(o)], self.y[list(o)]

def linear_head(tr, va, epochs=10, lr=2e-2):
    "Ten epochs of a plain fastai Learner on stored features, in the units of their spread"
    set_seed(0)
    mu, sd = tr.x.mean(0), tr.x.std() + 1e-6
    dls = DataLoaders(Rows((tr.x - mu)/sd, tr.y, shuffle=True), Rows((va.x - mu)/sd, va.y))
    learn = Learner(dls, nn.Linear(tr.d, len(tr.classes)), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return learn.model

def converged_head(tr, va, rows=None):
    "Three weight decays to convergence, one of them chosen on the validation pictures"
    ps = fit_probes(tr, [np.arange(len(tr)) if rows is None else rows], WDS)
    assert ps.converged.all()
    return ps.head(0, int(ps.choose(va)[0]))

def features(t, a, **kw): return [extract(a, p, progress=False, **kw) for p in (t.train, t.valid)]

def first(folder, a, size, **kw):
    "From JPEGs to stored features, nothing there before"
    with tempfile.TemporaryDirectory() as d, cache(d): return features(target(folder, size=size), a, **kw)

def second(folder, a, size, where, t=None):
    "A new head on another subset of the same pictures, with the caches there"
    with cache(where):
        tr, va = features(t or target(folder, size=size), a)
        assert tr.cached and va.cached
        return converged_head(tr, va, kshot(tr.y, max(1, len(tr)//len(tr.classes)//2), seed=1))

# Other libraries: each gives a set-up that is not timed, and one epoch

def frozen_net(name, c):
    "The network as the PyTorch tutorial freezes it: (whole, its new last layer)"
    m = getattr(torchvision.models, name)(weights=None)
    for p in m.parameters(): p.requires_grad = False
    if hasattr(m, 'fc'): m.fc = last = nn.Linear(m.fc.in_features, c)
    else: m.classifier[-1] = last = nn.Linear(m.classifier[-1].in_features, c)
    return m, last

def loaders(folder, size, bs=64):
    tfm = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(),
                              transforms.Normalize(*imagenet_stats)])
    sets = [torchvision.datasets.ImageFolder(folder/p, tfm) for p in ('train', 'valid')]
    return [torch.utils.data.DataLoader(s, batch_size=bs, shuffle=i == 0, num_workers=0) for i,s in enumerate(sets)]

def fastai(folder, name, size, **kw):
    def setup():
        dls = ImageDataLoaders.from_folder(folder, valid='valid', item_tfms=Resize(size), bs=64, num_workers=0,
                                           batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False), device='cpu')
        # `vision_learner` cannot cut a mobilenet_v2 itself
        # (StopIteration): it gets the course's `arch`, which says where
        net = getattr(torchvision.models, name) if name.startswith('resnet') else arch(name, weights='random')
        learn = vision_learner(dls, net, pretrained=False, normalize=False, **kw)
        learn.freeze()
        return learn
    def run(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    return setup, run

def tutorial(folder, name, size):
    "The loop of the PyTorch transfer learning tutorial, the body as a fixed feature extractor"
    def setup():
        (m, last), (tr, va) = frozen_net(name, len(list((folder/'train').iterdir()))), loaders(folder, size)
        return m, tr, va, nn.CrossEntropyLoss(), torch.optim.SGD(last.parameters(), lr=.001, momentum=.9)
    def run(state):
        m, tr, va, loss_func, opt = state
        for dl in tr, va:
            m.train(dl is tr)
            for x,y in dl:
                opt.zero_grad()
                with torch.set_grad_enabled(dl is tr):
                    loss = loss_func(m(x), y)
                    if dl is tr:
                        loss.backward()
                        opt.step()
    return setup, run

def lightning(folder, name, size):
    "The module of Lightning's page on transfer learning: the extractor in eval mode and without gradients"
    pl = timing.peer('lightning')
    if pl is None: return
    class Module(pl.LightningModule):
        def __init__(self, c):
            super().__init__()
            m, self.head = frozen_net(name, c)
            self.body = nn.Sequential(*list(m.children())[:-1], nn.AdaptiveAvgPool2d(1))
        def forward(self, x):
            self.body.eval()
            with torch.no_grad(): z = self.body(x).flatten(1)
            return self.head(z)
        def training_step(self, b, i): return F.cross_entropy(self(b[0]), b[1])
        def validation_step(self, b, i): F.cross_entropy(self(b[0]), b[1])
        def configure_optimizers(self): return torch.optim.Adam(self.head.parameters(), lr=1e-3)
    def setup():
        tr = pl.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
        return tr, Module(len(list((folder/'train').iterdir()))), *loaders(folder, size)
    return setup, lambda o: o[0].fit(*o[1:])

def hf(folder, name, size):
    "transformers' Trainer on a module that returns its loss"
    tf = timing.peer('transformers')
    if tf is None or timing.peer('accelerate') is None: return
    class Net(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.net, _ = frozen_net(name, c)
        def forward(self, pixel_values, labels=None):
            f = self.net(pixel_values)
            return dict(loss=F.cross_entropy(f, labels), logits=f)
    def collate(b): return dict(pixel_values=torch.stack([o[0] for o in b]), labels=torch.tensor([o[1] for o in b]))
    def setup():
        args = tf.TrainingArguments(tempfile.mkdtemp(prefix='hf'), num_train_epochs=1, per_device_train_batch_size=64,
                                    per_device_eval_batch_size=64,
            eval_strategy='epoch', save_strategy='no', logging_strategy='no', report_to='none', disable_tqdm=True,
            use_cpu=True, remove_unused_columns=False, dataloader_num_workers=0)
        tr, va = (dl.dataset for dl in loaders(folder, size))
        trainer = tf.Trainer(Net(len(tr.classes)), args, train_dataset=tr, eval_dataset=va, data_collator=collate)
        trainer.remove_callback(tf.PrinterCallback)
        return trainer
    return setup, lambda trainer: trainer.train()

# Rows

def peers(folder, name, size):
    res = {'fastai default': fastai(folder, name, size),
           'fastai train_bn=False': fastai(folder, name, size, train_bn=False),
           'fastai train_bn=False, BnFreeze': fastai(folder, name, size, train_bn=False, cbs=BnFreeze()),
           'PyTorch tutorial': tutorial(folder, name, size), 'Lightning': lightning(folder, name, size),
           'HF Trainer': hf(folder, name, size)}
    return {k: v for k,v in res.items() if v}

def has_bf16():
    "Whether the bf16 arm can run here; where it cannot, why"
    if 'precision' not in inspect.signature(extract).parameters:
        return print('bf16: left out, extract has no precision yet')
    from tlcourse.training import bf16_units
    if not bf16_units('cpu'): return print('bf16: left out, this CPU has no units for it')
    return True

def backbone(name, big, small, n, k, size, args, facts):
    "All rows of one backbone"
    a, rows, out = arch(name, weights='random'), [], {}
    bare, decode = floor(big, name, size)
    with tempfile.TemporaryDirectory() as where:
        with cache(where): t = target(big, size=size); tr, va = features(t, a)
        with cache(where): t_small = target(small, size=size)
        arms = {'floor': bare, 'decode alone': decode, 'decode + extract': lambda: first(big, a, size),
                'ten epochs of a linear head': lambda: linear_head(tr, va),
                'converged head': lambda: converged_head(tr, va),
                'second call': lambda: second(big, a, size, where),
                'second call, target in hand': lambda: second(big, a, size, where, t),
                'small: one view': lambda: extract(a, t_small.train, cache=False, progress=False),
                'small: four views': lambda: extract(a, t_small.train, views=4, cache=False, progress=False),
                'small: adapt': lambda: extract(a, t_small.train, bn='adapt', cache=False, progress=False)}
        if facts['bf16']: arms['bf16: decode + extract'] = lambda: first(big, a, size, precision='bf16')
        if facts['bf16']: arms['bf16: ten epochs of a linear head'] = arms['ten epochs of a linear head']
        others = peers(small, name, size)
        with timing.quiet(): r = timing.rounds(arms | others, args.rounds, warm=0, results=out)
    def add(kind, what, *x, **kw): rows.append(kind(f'{name}: {what}', *x, **kw))
    def head(h, p=''): return timing.plus(r[p + 'decode + extract'], r[h])
    ours = {'linear': head('ten epochs of a linear head'), 'converged': head('converged head')}
    if facts['bf16']: ours['bf16'] = head('ten epochs of a linear head', 'bf16: ')
    ten = {o: timing.times(10*n/k, r[o]) for o in others}
    for h in 'linear', 'converged':
        add(timing.at_most, f'features and {h} head / bare pass', 1.10, timing.ratio(ours[h], r['floor']))
    said = f'ten epochs of {n:,} from one of {k}'
    for o,goal in {'fastai default': 18, 'PyTorch tutorial': 12}.items():
        add(timing.at_least, f'{o}, ten frozen epochs / ours', goal, timing.ratio(ten[o], ours['linear']), said)
    for o in others:
        if o in ('fastai default', 'PyTorch tutorial'): continue
        add(timing.said, f'{o}, ten frozen epochs / ours', timing.ratio(ten[o], ours['linear']), said)
    if facts['bf16']:
        for o in others:
            add(timing.said, f'{o}, ten frozen epochs / ours in bf16', timing.ratio(ten[o], ours['bf16']), said)
        add(timing.said, 'ours in bf16 / bare pass in fp32', timing.ratio(ours['bf16'], r['floor']))
    add(timing.at_most, 'second call / bare pass', .05, timing.ratio(r['second call'], r['floor']),
        'pictures and features from their caches')
    add(timing.said, 'second call, target in hand / bare pass',
        timing.ratio(r['second call, target in hand'], r['floor']))
    four = timing.plus([x*y/z for x,y,z in zip(r['decode + extract'], r['small: four views'], r['small: one view'])],
                       r['ten epochs of a linear head'])
    for o in 'fastai default', 'PyTorch tutorial':
        add(timing.said, f'{o}, ten frozen epochs / ours with views=4', timing.ratio(ten[o], four),
            f'views from {k} pictures')
    add(timing.said, "bn='adapt', passes", timing.ratio(r['small: adapt'], r['small: one view']),
        'one of them takes the statistics')
    add(timing.said, 'decode / bare pass', timing.ratio(r['decode alone'], r['floor']))
    if any(o['reached'] is False and 'second' not in o['name'] for o in rows):
        timing.explain(rows, lambda: first(small, a, size), facts, 'python', f'{name}: decode + extract, {k} pictures')
    with tempfile.TemporaryDirectory() as where:
        with cache(where): features(target(small, size=size), a)
        timing.explain([o for o in rows if 'second' in o['name']], lambda: second(small, a, size, where), facts,
                       'python', f'{name}: second call, {k} pictures')
    facts['seconds'][name] = r
    return rows

# Memory

def anon():
    "Bytes of this process that no file stands behind"
    return next(int(l.split()[1])*1024
                for l in Path('/proc/self/status').read_text().splitlines() if l.startswith('RssAnon'))

def child(folder, size, name):
    "In a process of its own: the largest RssAnon before, while decoding, and while extracting"
    import threading
    torch.set_num_threads(1)
    peak, stop = [0], threading.Event()
    def watch():
        while not stop.wait(.005): peak[0] = max(peak[0], anon())
    def top():
        res, peak[0] = max(peak[0], anon()), 0
        return res
    threading.Thread(target=watch, daemon=True).start()
    # the libraries' own first buffers
    extract(name, target('digits').train, ids=np.arange(64), cache=False, progress=False)
    res = dict(before=top())
    t = target(folder, size=size)
    res |= dict(decoding=top())
    features(t, name)
    res |= dict(extracting=top(), pictures=len(t.train) + len(t.valid), pixels=t.train.x[0].numel())
    stop.set()
    print(json.dumps(res))

def memory(n, size, rounds, facts, name='glyphnet'):
    "Resident memory at n and at ten times n pictures"
    if not Path('/proc/self/status').exists(): return print('memory: left out, this system has no /proc') or []
    got = {k: [] for k in (n, 10*n)}
    with tempfile.TemporaryDirectory() as d:
        for k in got: draw_folder(Path(d)/f'{k}', k, seed=k, size=(96, 80))
        for i in range(rounds):
            for k in got:
                with tempfile.TemporaryDirectory() as c:
                    r = subprocess.run([sys.executable, __file__, '--child', f'{d}/{k}', str(size), name],
                                       capture_output=True, text=True, check=True,
                                       env=os.environ | {'TLCOURSE_CACHE': c})
                got[k].append(json.loads(r.stdout.splitlines()[-1]))
    def grown(what):
        return [(b[what] - a[what])/((b['pictures'] - a['pictures'])*a['pixels']) for a,b in zip(*got.values())]
    facts['memory'] = {str(k): v for k,v in got.items()}
    rows = []
    for what,limit in (('extracting', 1.1), ('decoding', 1.1)):
        a, b = ([o[what] for o in v] for v in got.values())
        g = grown(what)
        note = (f'{np.median(a)/2**20:.0f} MB at {n:,}, {np.median(b)/2**20:.0f} MB at {10*n:,} pictures of {size} px; '
                f'growth is {np.median(g):.2f} of their pixels')
        rows.append(timing.at_most(f'{name}: resident memory, {what}, '
                                   'ten times the pictures / once', limit, timing.ratio(b, a), note))
    return rows

def main():
    args = timing.arguments(__doc__, n=3)
    n, k, size, names = (40, 20, 64, ['resnet18']) if args.smoke else (2000, 400, 128, ['resnet18', 'mobilenet_v2'])
    facts = dict(seconds={}, pictures=n, pictures_of_an_epoch=k, px=size, bf16=bool(has_bf16()),
                 peers=timing.packages('lightning', 'transformers', 'accelerate'))
    rows = []
    with tempfile.TemporaryDirectory() as d:
        big, small = (draw_folder(Path(d)/o, m, seed=m) for o,m in (('big', n), ('small', k)))
        for name in names:
            rows += backbone(name, big, small, n, k, size, args, facts)
            print()
    rows += memory(*((40, 32) if args.smoke else (1000, 64)), args.rounds, facts)
    timing.finish(args, 'speed_features', rows, **facts)

if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']: child(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else: main()
