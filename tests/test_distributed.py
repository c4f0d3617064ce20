"Two processes on one batch compute what one process does: fastai's `distrib_ctx` over gloo, on a CPU."
import json, os, socket, subprocess
from importlib.util import find_spec
import numpy as np
import pytest
from conftest import python

if not find_spec('accelerate'): pytest.skip('accelerate is not installed', allow_module_level=True)

# Each process takes one half of the pictures, so alone a batch is made of a piece of each half
script = '''
import json, os, sys, torch
from fastai.vision.all import *
from fastai.distributed import *
from tlcourse.backbones import arch
from tlcourse.data import target
out = sys.argv[1]
torch.set_num_threads(1)
size, n = int(os.environ.get('WORLD_SIZE', 1)), 128
order = torch.arange(n) if size > 1 else torch.arange(n).view(2, -1, 16).transpose(0, 1).flatten()
t = target('digits').train
x, y = t.x[:n][order].float()/255, t.y[:n][order]

def _broadcast(self, idxs, rank): # fastai's own goes over a GPU
    idxs = torch.tensor(idxs)
    torch.distributed.broadcast(idxs, rank)
    return idxs.tolist()
DistributedDL._broadcast = _broadcast

class Losses(Callback):
    def before_fit(self): self.seen = []
    def after_loss(self):
        if self.training: self.seen.append(self.loss.item())

def losses(norms):
    torch.manual_seed(0)
    net = arch('glyphnet')(pretrained=True)
    net.fc = nn.Linear(net.fc.in_features, 10)
    if norms == 'frozen':
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d): m.requires_grad_(False)
    dls = DataLoaders(*(DataLoader(list(zip(x, y)), bs=32//size) for _ in range(2)), device='cpu')
    learn = Learner(dls, net, CrossEntropyLossFlat(), lr=.005, train_bn=norms == 'live',
                    cbs=[Losses(), *[BnFreeze()]*(norms == 'frozen')])
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(2)
    return learn.losses.seen

res = {norms: losses(norms) for norms in ('frozen', 'live')}
with open(f"{out}{os.environ.get('RANK', '')}.json", 'w') as f: json.dump(res, f)
'''

def run(d, name, size=1):
    "{norms: the training losses of each step}: of two processes their means, for each has half of the batch"
    (d/'script.py').write_text(script)
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    def env(rank):
        if size == 1: return os.environ
        return {**os.environ, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(size),
                'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    ps = [subprocess.Popen([*python(), 'script.py', name], cwd=d, env=env(i), text=True,
                           stderr=subprocess.PIPE) for i in range(size)]
    errors = [p.communicate(timeout=300)[1] for p in ps]
    assert not any(p.returncode for p in ps), errors[0]
    each = [json.loads((d/f"{name}{'' if size == 1 else i}.json").read_text()) for i in range(size)]
    return {norms: np.mean([o[norms] for o in each], 0) for norms in each[0]}

@pytest.fixture(scope='module')
def losses(tmp_path_factory):
    "Of one process and of two; both kinds of norms in each, for a start takes longer than a fit"
    d = tmp_path_factory.mktemp('losses')
    return run(d, 'one'), run(d, 'two', 2)

def test_frozen_norms(losses):
    "Batch norm by its stored statistics, all else trained: the same losses, to a rounding error that grows"
    one, two = (o['frozen'] for o in losses)
    assert len(one) == len(two) == 8 and one[-1] < one[0]
    np.testing.assert_allclose(two, one, rtol=1e-4)

def test_norms_of_each_process(losses):
    "Batch norm by the batch: each process knows its half only, and the losses differ"
    one, two = (o['live'] for o in losses)
    assert len(one) == len(two) == 8 and abs(one - two).max() > 1e-2
