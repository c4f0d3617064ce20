"""Predicting: pictures a second from files to probabilities, against what cannot be left out.

    python benchmarks/speed_predict.py [--smoke] [--rounds N] [--out FILE]     # about five minutes on two cores

Generated JPEGs (about 500 x 375) and tf_efficientnet_lite0 at 128 px with random weights: no answer means anything.
The limit decodes each JPEG once (at the least scale that will do) and gives it to the network once, in batches of 64,
in eval mode, without gradients, channels last: one after the other, on one thread. `Model.predict` has to reach .8 of
its pictures a second. By CPU seconds that is what one core alone would see; by wall seconds a second thread, which
decodes ahead, may have a core of its own. Imports and loading are not counted.
"""
import tempfile
from pathlib import Path
import numpy as np, torch
import timing
from speed_features import cache, draw_folder
from tlcourse.learner import learner
from tlcourse.data import target
from tlcourse.model import load, save
from tlcourse.pictures import fit_picture, read_picture

def stored(folder, name, size, to):
    "An untrained model of these pictures, saved and loaded"
    t = target(folder, size=size)
    save(learner(t.dls(bs=8, augment=False), name, pretrained=False), to)
    return load(to, 'cpu')

def bare(m, files, bs=64):
    "Decode, then forward, batch by batch"
    mean, std = (torch.tensor(m.card['statistics'][k]).view(3, 1, 1) for k in ('mean', 'std'))
    def one(f): return np.asarray(fit_picture(read_picture(f, (2*m.size, 2*m.size)), m.size))
    def run():
        res = []
        with torch.no_grad():
            for i in range(0, len(files), bs):
                x = torch.from_numpy(np.stack([one(f) for f in files[i:i+bs]])).permute(0, 3, 1, 2)
                res.append(m.net((x.float().div_(255) - mean)/std).softmax(1))
        return torch.cat(res)
    return run

def main():
    args = timing.arguments(__doc__, 5)
    n, size = (40, 32) if args.smoke else (1000, 128)
    with tempfile.TemporaryDirectory() as d, cache(Path(d)/'cache'):
        folder = draw_folder(Path(d)/'pictures', n, 5)
        files = sorted(folder.rglob('*.jpg'))
        m = stored(folder, 'tf_efficientnet_lite0', size, Path(d)/'model')
        arms, out = {'bare': bare(m, files), 'predict': lambda: m.predict(folder, workers=1)}, {}
        by = {'wall': timing.rounds(arms, args.rounds, results=out, clock='wall'),
              'CPU': timing.rounds(arms, args.rounds, warm=0)}
        same = np.abs(np.array([p.probability for p in out['predict']]) - out['bare'].max(1).values.numpy()).max()
        def reach(secs):
            return timing.at_least(f'predict, pictures a {secs} second / decode + forward', .8,
                                   timing.ratio(by[secs]['bare'], by[secs]['predict']),
                                  f"{len(files)/min(by[secs]['predict']):.0f} against "
                                  f"{len(files)/min(by[secs]['bare']):.0f}")
        rows = [reach('CPU'), reach('wall'),
                timing.row('largest difference of a probability', '<= 1e-5', same, same, same, same <= 1e-5)]
        facts = dict(seconds=by, pictures=len(files), size=size)
        timing.explain(rows, arms['predict'], facts, 'python', 'predict')
    timing.finish(args, 'speed_predict', rows, **facts)

if __name__ == '__main__': main()
