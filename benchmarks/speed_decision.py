"""The real path: from a folder of photos to a decision, beside the same decision made by hand.

    python benchmarks/speed_decision.py [--parts stage1,big,...] [--smoke] [--rounds N] [--out FILE]
        # writes speed_decision.json

Each part can be run alone and then replaces its own rows in the file; the others stay, each with its date.

stage1     stage 1 of `compare` on flowers17 against a bare pass: every picture decoded once and once through the body
           (2 minutes)
big        the same on 2,000 JPEGs of 12 megapixels, made for it: some 7 GB in the folder for temporary files (8
           minutes)
hand       stage 1 against timm and scikit-learn, and `compare` against fastai's `fine_tune(5)`, one seed of three (25
           minutes)
digits     `tlcourse compare digits`: its seconds on two idle cores (4 minutes)
budget     `tlcourse compare flowers17` within its default budget: is anything trimmed that must not be? (10 minutes)
announced  announced seconds of stages 1 and 2 against true ones, on digits, flowers17 and ants_bees (20 minutes; 10
           after the two above)

Every arm is a fresh process with empty caches, on one thread; files have been read once before. In a ratio the
seconds are CPU seconds, of the processes that an arm started too, and imports are no part of it; where a row is in
seconds they are wall seconds of the whole process. flowers17 and ants_bees are looked for in the folder that
TLCOURSE_ASSETS names; the network is tf_efficientnet_lite0, at 128 px.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest
from pathlib import Path
from timing import arguments, at_least, at_most, clocks, profiled, ratio, rounds, row, said, save, show
import numpy as np
from PIL import Image, ImageChops, ImageOps
from tlcourse.base import photo_assets
from tlcourse.sweep import cores, one_thread

PARTS = 'stage1', 'big', 'hand', 'digits', 'budget', 'announced'
NET = 'tf_efficientnet_lite0'
FULL = dict(size=128, options={}, shots=(1, 5, 20, 'all'), curve=(5, 20, 'all'), seeds=20, big=2000, side=(4000, 3000),
            bs=64)
SMOKE = dict(size=32, options=dict(steps=2, seeds=3, tune='none'), shots=(1, 2, 'all'), curve=(2, 'all'), seeds=2,
             big=48, side=(400, 300), bs=4)
# digits, in a smoke run
TINY = dict(strategies='scratch,feature-extraction,fine-tuning', shots='1,2', seeds=3, steps=2, tune='none')
MUST = ('last-layers', 'all'), ('fine-tuning', 'all'), ('fine-tuning', 20) # What the default budget has to leave whole

# --- pictures -------------------------------------------------------------------------------------------------------
def photos(name, where, smoke):
    "The folder of a set of photos; in a smoke run 60 small drawn ones; None, and a line, where there are none"
    if smoke: return small(Path(where)/name)
    if d := photo_assets(): return d/'data'/name
    print(f'{name}: left out, TLCOURSE_ASSETS names no folder')

def small(folder):
    "60 JPEG files of three classes"
    from speed_training import photos
    if not folder.exists(): photos(folder, 60, classes=3, side=(60, 50))
    return folder

def sources(folder): # In turns from each class, so that a first part of them has all
    return [f for f in chain(*zip_longest(*(sorted(d.glob('*.jpg'))
                                            for d in sorted(folder.iterdir()) if d.is_dir()))) if f]

def turned(jpeg, how):
    "The bytes of a JPEG file with an EXIF block that says how it lies, 1 to 8"
    exif = Image.Exif()
    exif[0x0112] = how
    block = exif.tobytes()
    return jpeg[:2] + b'\xff\xe1' + (len(block) + 2).to_bytes(2, 'big') + block + jpeg[2:]

def enlarge(folder, files, n, side):
    "n JPEG files: photos enlarged, with grain as a camera's, each in the eight positions that EXIF knows"
    grain = Image.merge('RGB', [Image.effect_noise(side, 12) for _ in range(3)])
    def one(i):
        im = ImageOps.fit(Image.open(files[i]).convert('RGB'), side, Image.Resampling.BICUBIC)
        im = ImageChops.add(im, ImageChops.offset(grain, 37*i, 53*i), 1, -128)
        d = Path(folder)/files[i].parent.name
        d.mkdir(parents=True, exist_ok=True)
        im.save(d/f'{i:04d}.jpg', quality=85)
        jpeg = (d/f'{i:04d}.jpg').read_bytes()
        for k in range(min(8, n - 8*i)): (d/f'{i:04d}-{k}.jpg').write_bytes(turned(jpeg, k + 1))
        (d/f'{i:04d}.jpg').unlink()
    with ThreadPoolExecutor(cores()) as pool: list(pool.map(one, range(-(-n//8))))
    return Path(folder)

def listed(folder, size):
    "The files of each part, as `target` splits them: part -> list of [path within the folder, class]"
    from tlcourse.data import target
    from tlcourse.folders import list_folder
    t = target(folder, size=size)
    part = {p: o.name for o in (t.train, t.valid) for p in o.paths}
    res = {p: [] for p in ('train', 'valid', 'test')}
    for r in list_folder(folder)[0]: res[part.get(r.path, 'test')].append([str(r.path.relative_to(folder)), r.label])
    return res

# --- what runs in processes of its own: each gives a dict, with the seconds of what counts --------------------------
def spent(f):
    "CPU and wall seconds of a call, on one thread, and what it gives"
    with one_thread():
        start = {k: c() for k,c in clocks.items()}
        res = f()
        return {k: c() - start[k] for k,c in clocks.items()}, res

def stage1(folder, size, profile=False):
    "Stage 1 of `compare`, and its report"
    from tlcourse.compare import compare
    def f(): return compare(folder, strategies='feature-extraction', size=size, out='out', device='cpu')
    if profile: return dict(profile=profiled(f, by='python'))
    s, c = spent(f)
    c.report('out')
    return dict(seconds=s, cells=c.to_dict()['cells'])

def network():
    "The body as timm has it, in eval mode"
    import torch
    from tlcourse.backbones import tf_efficientnet_lite0 # timm's network, with the weights that pip brought
    m = tf_efficientnet_lite0(pretrained=True)
    m.reset_classifier(0)
    return m.eval().to(memory_format=torch.channels_last)

def picture(f, size):
    "uint8 (size,size,3): a JPEG at the least scale that will do, upright, short side to `size`, the centre of it"
    im = Image.open(f)
    im.draft('RGB', (2*size, 2*size))
    return np.asarray(ImageOps.fit(ImageOps.exif_transpose(im).convert('RGB'), (size, size), Image.Resampling.BILINEAR))

def forward(m, files, size, bs=64):
    "float32 (n,1280): every picture decoded once, and once through the body"
    import torch
    res = []
    with torch.no_grad():
        for i in range(0, len(files), bs):
            x = torch.from_numpy(np.stack([picture(f, size) for f in files[i:i+bs]])).permute(0, 3, 1, 2)
            res.append(m((x.float().div_(255) - .5)/.5))
    return torch.cat(res).numpy()

def bare(folder, size, parts):
    "The limit: plain torch and Pillow"
    m, files = network(), [Path(folder)/f for p in parts.values() for f,_ in p]
    s, x = spent(lambda: forward(m, files, size))
    return dict(seconds=s, pictures=len(x))

def by_hand(folder, size, parts, shots, seeds):
    "The same decision with timm and scikit-learn"
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import normalize
    m = network()
    def f(): return decide(m, folder, size, parts, shots, seeds, LogisticRegression, log_loss, normalize)
    s, cells = spent(f)
    return dict(seconds=s, cells=cells)

def decide(m, folder, size, parts, shots, seeds, Head, log_loss, normalize):
    """For each number of labels: C by the loss on the validation pictures, accuracy on the test,
    an interval over seeds and pictures"""
    x = {p: normalize(forward(m, [Path(folder)/f for f,_ in rows], size)) for p,rows in parts.items()}
    y = {p: np.array([c for _,c in rows]) for p,rows in parts.items()}
    def draw(k, seed):
        if k == 'all': return np.arange(len(y['train']))
        rng = np.random.default_rng(seed)
        return np.concatenate([rng.permutation(np.flatnonzero(y['train'] == c))[:k] for c in np.unique(y['train'])])
    def fit(ids, C): return Head(C=C, max_iter=1000).fit(x['train'][ids], y['train'][ids])
    cells = []
    for k in shots:
        tune = [draw(k, 1000 + i) for i in range(1 if k == 'all' else 3)]
        def loss(C):
            return np.mean([log_loss(y['valid'], h.predict_proba(x['valid']), labels=h.classes_)
                            for h in (fit(o, C) for o in tune)])
        C = min(10.**np.arange(-1, 5), key=loss)
        right = np.stack([fit(draw(k, i), C).predict(x['test']) == y['test']
                          for i in range(1 if k == 'all' else seeds)])
        mean, n = right.mean(), right.shape[1]
        seed = right.mean(1).std(ddof=1)/len(right)**.5 if len(right) > 1 else 0
        half = 1.96*(seed**2 + mean*(1 - mean)/n)**.5
        cells.append(dict(shots=k, C=C, mean=mean, low=mean - half, high=mean + half, seeds=len(right)))
    return cells

def decision(folder, size, last, options):
    "`compare` up to the end of stage 2, and fine-tuning at `last` labels, by one store as one command would"
    from tlcourse.compare import compare
    how = dict(size=size, out='out', device='cpu', workers=min(2, cores()), budget='none', **options)
    todo = ('feature-extraction', None), ('last-layers,fine-tuning', 'all'), ('fine-tuning', [last, 'all'])
    s, done = spent(lambda: [compare(folder, **{**how, 'strategies': a, 'shots': k}) for a,k in todo])
    return dict(seconds=s, cells=[o for c in done for o in c.to_dict()['cells']])

def fine_tune(folder, size, parts, k, bs, weights):
    """fastai as its documentation shows it: files, `vision_learner`, five epochs of `fine_tune`,
    the accuracy on the test"""
    import pandas as pd
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, set_seed, vision_learner
    train = pd.DataFrame(parts['train'], columns=['file', 'label'])
    if k != 'all': train = train.groupby('label', group_keys=False).sample(k, random_state=0)
    valid, test = (pd.DataFrame(parts[p], columns=['file', 'label']) for p in ('valid', 'test'))
    df = pd.concat([train.assign(valid=False), valid.assign(valid=True)])
    def f():
        set_seed(0)
        dls = ImageDataLoaders.from_df(df, folder, valid_col='valid', item_tfms=Resize(size), bs=bs, num_workers=0,
                                       device='cpu')
        learn = vision_learner(dls, NET, metrics=accuracy, pretrained_cfg_overlay=dict(file=weights))
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(5)
            return float(learn.validate(dl=dls.test_dl(test, with_labels=True))[1])
    s, acc = spent(f)
    return dict(seconds=s, mean=acc)

class Enough(Exception): pass

def clock(where, size, options):
    "Announced and true seconds of stages 1 and 2 of a first run"
    from tlcourse.compare import compare
    res = {}
    def stop(c):
        res.update(c.to_dict()['clock'])
        if c.stage >= 2: raise Enough
    try: compare(where, size=size, out='out', device='cpu', workers=min(2, cores()), on_stage=stop, **options)
    except Enough: pass
    return dict(clock=res)

CHILDREN = dict(stage1=stage1, bare=bare, by_hand=by_hand, decision=decision, fine_tune=fine_tune, clock=clock)

def run(cmd, what):
    "A fresh process in an empty folder, with empty caches -> what it printed, and the wall seconds of the whole of it"
    with tempfile.TemporaryDirectory() as d:
        env = {**os.environ, 'TLCOURSE_CACHE': f'{d}/cache', 'OMP_NUM_THREADS': '1'}
        t = time.perf_counter()
        r = subprocess.run(list(map(str, cmd)), cwd=d, env=env, capture_output=True, text=True)
        t = time.perf_counter() - t
    if r.returncode: raise RuntimeError(f'{what} failed:\n{r.stdout[-2000:]}\n{r.stderr[-4000:]}')
    return r.stdout, t

def child(what, **how):
    "One of CHILDREN in a process of its own: what it gives, and `whole`, the wall seconds with imports"
    out, t = run([sys.executable, '-W', 'ignore', Path(__file__).resolve(), '--child', what,
                  json.dumps(how, default=str)], what)
    return {**json.loads(out.splitlines()[-1]), 'whole': t}

def command(target, out, options):
    "`tlcourse compare` in a process of its own -> its JSON, with the wall seconds and what it printed"
    code = 'import sys; from tlcourse.cli import main; sys.exit(main(sys.argv[1:]))'
    more = [o for k,v in options.items() for o in (f'--{k}', v)] + (['--workers', 2] if cores() > 2 else [])
    cmd = [sys.executable, '-W', 'ignore', '-c', code, 'compare', target, '--device', 'cpu', '--out', out/'out',
           '--json', out/'c.json', *more]
    printed, t = run(cmd, f'compare {target}')
    return {**json.loads((out/'c.json').read_text()), 'wall': t, 'printed': printed.replace(f'{out}/', '')}

def interleaved(arms, n):
    "Every arm once a round -> name -> what it gave in each round"
    got = {k: [] for k in arms}
    rounds({k: (lambda k=k: got[k].append(arms[k]())) for k in arms}, n, warm=0, clock='wall')
    return got

def cpu(runs): return [r['seconds']['process'] for r in runs]

# --- the parts: each gives rows and facts ---------------------------------------------------------------------------
def against_bare(name, folder, k, n, limit=None):
    "Stage 1 beside the bare pass on one folder"
    parts = listed(folder, k['size'])
    got = interleaved(dict(stage1=lambda: child('stage1', folder=folder, size=k['size']),
                           bare=lambda: child('bare', folder=folder, size=k['size'], parts=parts)), n)
    whole, count = [r['whole'] for r in got['stage1']], got['bare'][0]['pictures']
    mid = statistics.median(whole)
    note = (f"{count:,} pictures at {k['size']} px; {statistics.median(cpu(got['stage1'])):.0f} CPU s against "
            f"{statistics.median(cpu(got['bare'])):.0f}")
    rows = [at_most(f'{name}: stage 1 / each picture decoded and once through the body', 1.5,
                    ratio(cpu(got['stage1']), cpu(got['bare'])), note),
            row(f'{name}: stage 1 with imports and report, wall seconds', f'<= {limit}' if limit else '', mid,
                min(whole), max(whole), mid <= limit if limit else None)]
    facts = dict(seconds={a: [dict(r['seconds'], whole=r['whole']) for r in o]
                          for a,o in got.items()}, cells=got['stage1'][0]['cells'])
    if limit and not rows[0]['reached']:
        facts['profile'] = child('stage1', folder=folder, size=k['size'], profile=True)['profile']
    return rows, facts

def read_once(folder):
    for f in Path(folder).rglob('*.jpg'): f.read_bytes()

def part_stage1(k, args, where, known):
    if not (folder := photos('flowers17', where, args.smoke)): return [], {}
    read_once(folder)
    return against_bare('flowers17', folder, k, args.rounds, None if args.smoke else 60)

def part_big(k, args, where, known):
    if not (folder := photos('flowers17', where, args.smoke)): return [], {}
    n = k['big']
    while n > 100 and shutil.disk_usage(where).free < n*4e6: n //= 2 # What is made for it takes 2 to 3 MB each
    files = sources(folder)
    t = time.perf_counter()
    made = enlarge(Path(where)/'big', files, n, k['side'])
    size = sum(f.stat().st_size for f in made.rglob('*.jpg'))/n
    w, h = k['side']
    name = f'{n:,} JPEGs of {w*h/1e6:.2g} megapixels'
    print(f'{name}, {size/1e6:.1f} MB each, made in {time.perf_counter() - t:.0f} s', flush=True)
    try: rows, facts = against_bare(name, made, k, 1)
    finally: shutil.rmtree(made)
    return rows, dict(facts, bytes=size)

def part_hand(k, args, where, known):
    if not (folder := photos('flowers17', where, args.smoke)): return [], {}
    read_once(folder)
    parts, size = listed(folder, k['size']), k['size']
    got = interleaved(dict(ours=lambda: child('stage1', folder=folder, size=size),
                           hand=lambda: child('by_hand', folder=folder, size=size, parts=parts, shots=k['shots'],
                                              seeds=k['seeds'])), args.rounds)
    note = f"{statistics.median(cpu(got['ours'])):.0f} CPU s against {statistics.median(cpu(got['hand'])):.0f}"
    rows = [at_most('flowers17: stage 1 / the same by hand, timm and scikit-learn', 1.3,
                    ratio(cpu(got['ours']), cpu(got['hand'])), note)]
    weights = Path(where)/'lite0.pth'
    torch_file(weights)
    ours = child('decision', folder=folder, size=size, last=k['curve'][-2], options={'seeds': 3, **k['options']})
    theirs = {s: child('fine_tune', folder=folder, size=size, parts=parts, k=s, bs=k['bs'], weights=weights)
              for s in k['curve']}
    def both(clock): return ratio([3*sum(r['seconds'][clock] for r in theirs.values())], [ours['seconds'][clock]])
    what = (f"flowers17: fastai's fine_tune(5) at {', '.join(map(str, k['curve']))}, one seed x 3 / "
            f"compare up to stage 2 and fine-tuning at {k['curve'][-2]}")
    note = (f"{3*sum(cpu(theirs.values())):.0f} CPU s against {ours['seconds']['process']:.0f}, of them stage 1 "
            f"about {statistics.median(cpu(got['ours'])):.0f}")
    rows += [at_least(what, 5, both('process'), note),
             said('the same in wall seconds: compare has two processes, fastai one', both('wall'))]
    facts = dict(seconds={a: [r['seconds'] for r in o] for a,o in got.items()} | {'compare': ours['seconds']},
                 fastai={s: dict(seconds=r['seconds'], mean=r['mean']) for s,r in theirs.items()},
                 cells=dict(ours=ours['cells'], hand=got['hand'][0]['cells']))
    return rows, facts

def torch_file(path):
    "The weights under timm's names, as `pretrained_cfg_overlay` wants them"
    import torch
    from tlcourse.backbones import tf_efficientnet_lite0
    torch.save(tf_efficientnet_lite0(pretrained=True).state_dict(), path)

def whole_command(name, k, args, where, known):
    "The command on a target with its default settings, once for all parts; None where the pictures are not here"
    if name not in known:
        target = name if name == 'digits' else photos(name, where, args.smoke)
        options = TINY if args.smoke and name == 'digits' else dict(k['options'], size=k['size']) if args.smoke else {}
        if target is None: return
        (Path(where)/f'{name}-out').mkdir()
        known[name] = command(target, Path(where)/f'{name}-out', options)
    return known[name]

def part_digits(k, args, where, known):
    c = whole_command('digits', k, args, where, known)
    t = c['wall']
    note = f'2 of {cores()} cores, once'
    return ([row('compare digits, default settings: wall seconds', '<= 240', t, t, t, t <= 240, note)],
            dict(printed=c['printed'], clock=c['clock']))

def trimmed(c, must=MUST, seeds=3, heads=20):
    "What a study (its JSON) lacks of what no budget may take, in words"
    have = {(o['strategy'], o['shots']): o for o in c['cells']}
    rates = {(o['strategy'], o['shots']): o for o in c['rates']}
    res = []
    for k in c['settings']['shots']:
        n, need = have.get(('feature-extraction', k), {}).get('seeds', 0), 1 if k == 'all' else heads
        if n < need: res.append(f'feature-extraction at {k}: {n} of {need} seeds')
    for cell in must:
        n = have.get(cell, {}).get('seeds', 0)
        if n < seeds: res.append(f"{cell[0]} at {cell[1]}: {n} of {seeds} seeds")
        elif rates.get(cell, dict(fixed=True))['fixed']: res.append(f"{cell[0]} at {cell[1]}: its rate was not chosen")
    return res

def part_budget(k, args, where, known):
    c = whole_command('flowers17', k, args, where, known)
    if not c: return [], {}
    t, lack = c['wall'], trimmed(c)
    more = [f"{o['strategy']} at {o['shots']}" for o in c['missing']]
    return [row('compare flowers17, default budget: wall seconds', '<= 600', t, t, t, t <= 600,
                f'2 of {cores()} cores, once'),
            row('and cells or seeds trimmed that must not be', '0', len(lack), len(lack), len(lack), not lack,
                '; '.join(lack)),
            row('and other cells left out', '', len(more), len(more), len(more), None, ', '.join(more))
           ], dict(printed=c['printed'], clock=c['clock'], cells=c['cells'], rates=c['rates'], missing=c['missing'])

def kept_word(name, announced, true, limit=1.5):
    "A row of true seconds over announced ones; of a stage that did not run it is 0, which is missed"
    r = true/announced if announced else 0
    note = f'{true:.1f} s, announced {announced:.1f}' if announced else 'no cell of it ran'
    return row(f'{name}: true / announced seconds', f'1/{limit:g} to {limit:g}', r, r, r, 1/limit <= r <= limit, note)

def part_announced(k, args, where, known):
    rows, facts = [], {}
    for name in 'digits', 'flowers17', 'ants_bees':
        if name in known: times = known[name]['clock']
        else:
            target = name if name == 'digits' else photos(name, where, args.smoke)
            if target is None: continue
            size = None if name == 'digits' else k['size']
            times = child('clock', where=target, size=size,
                          options=(TINY if name == 'digits' else k['options']) if args.smoke else {})['clock']
        facts[name] = times
        for stage in '1', '2':
            rows.append(kept_word(f'{name}, stage {stage}', *times.get(stage, (0, 0))))
    return rows, dict(clock=facts)

# --- all ------------------------------------------------------------------------------------------------------------
def keep(path, done, **facts):
    "Put the rows of the parts measured now into a file in place of older ones; rows of other parts stay"
    path = Path(path)
    old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else dict(rows=[], parts={})
    rows = [r for r in old['rows'] if r['part'] not in done]
    rows += [dict(r, part=p) for p,o in done.items() for r in o['rows']]
    parts = {**old['parts'], **{p: {k: v for k,v in o.items() if k != 'rows'} for p,o in done.items()}}
    return save(path, sorted(rows, key=lambda r: PARTS.index(r['part'])),
                parts={p: parts[p] for p in PARTS if p in parts}, **facts)

def main():
    p = argparse.ArgumentParser(add_help=False) # What `arguments` does not know
    p.add_argument('--parts', default=','.join(PARTS))
    own, sys.argv[1:] = p.parse_known_args()
    args, parts = arguments(__doc__, 3), own.parts.split(',')
    if wrong := [o for o in parts if o not in PARTS]: sys.exit(f"--parts: {wrong[0]!r} is none of {', '.join(PARTS)}")
    k, known, done = SMOKE if args.smoke else FULL, {}, {}
    out = args.out or (None if args.smoke else Path(__file__).with_suffix('.json'))
    with tempfile.TemporaryDirectory() as where:
        os.environ['TLCOURSE_CACHE'] = f'{where}/cache'
        for part in (o for o in PARTS if o in parts):
            load = os.getloadavg()[0] # Of the minute before: on two idle cores it is near 0
            rows, facts = globals()[f'part_{part}'](k, args, where, known)
            if not rows: continue
            done[part] = dict(rows=rows, date=time.strftime('%Y-%m-%d'), load=load, **facts)
            show(rows)
            if out: print(f'written: {keep(out, done, smoke=args.smoke, rounds=args.rounds)}')
    if args.smoke: print('smoke run: sizes are tiny, so the figures mean nothing')
    elif 'budget' in done and done['budget']['rows'][1]['value']: sys.exit('the budget trimmed what it must not')

if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']: print(json.dumps(CHILDREN[sys.argv[2]](**json.loads(sys.argv[3])), default=float))
    else: main()
