"The same code on CUDA: skipped where there is none."
from copy import deepcopy
import pytest, torch

pytestmark = pytest.mark.gpu

def test_strategies_train_on_cuda():
    from tlcourse.data import target
    from tlcourse.finetune import STRATEGIES
    t = target('digits')
    for name,fit in STRATEGIES.items():
        learn = fit(t.dls(shots=20, bs=32, device='cuda'), 'glyphnet', steps=60, progress=False)
        assert next(learn.model.parameters()).is_cuda
        assert t.score(learn).accuracy > .5, name

def test_true_freeze_in_mixed_precision():
    from tlcourse.backbones import learner
    from tlcourse.data import target
    from tlcourse.layers import true_freeze
    learn = true_freeze(learner(target('digits').dls(shots=5, device='cuda'), 'glyphnet')).to_fp16()
    before = deepcopy({k: v.cpu() for k,v in learn.model[0].state_dict().items()})
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2)
    for k,v in learn.model[0].state_dict().items(): assert torch.equal(v.cpu(), before[k]), k

def test_compare_on_cuda():
    from tlcourse.compare import compare
    c = compare('digits', shots=[5], seeds=3, steps=30, tune='none', device='cuda', say=None)
    assert c.settings['device'] == 'cuda' and len(c.cells) >= 3
