"Weights as people have them: under the names and in the wrappings of the scripts that made them, and at other sizes."
import re
import numpy as np
import pytest, timm, torch
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, RandomSplitter, SGD, vision_learner
from timm.models.vision_transformer import checkpoint_filter_fn
from torchvision.models import resnet18, resnet34
from torchvision.models.vision_transformer import VisionTransformer
from tlcourse.backbones import arch
from tlcourse.bodies import _body
from tlcourse.learner import learner
from tlcourse.base import BadInput
from tlcourse.runs import task

def dls(size=32):
    x = np.random.RandomState(0).randint(0, 255, (12,size,size,3), np.uint8)
    block = DataBlock((ImageBlock, CategoryBlock), splitter=RandomSplitter(seed=0), get_x=lambda i: x[i],
                      get_y=lambda i: 'ab'[i%2])
    return block.dataloaders(range(12), bs=4, num_workers=0, device='cpu')

NAMES = 'glyphnet', 'resnet18', 'timm/mobilenetv2_035', 'tf_efficientnet_lite0'

def state(name, seed=1):
    "The tensors of a network like no other"
    torch.manual_seed(seed)
    sd = arch(name, 'random')().state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k,v in sd.items()}

def under(prefix, sd): return {prefix + k: v for k,v in sd.items()}

WRAPPED = dict(
    module=lambda sd: under('module.', sd), prefix=lambda sd: under('net.encoder.', sd),
    compiled=lambda sd: under('_orig_mod.module.', sd),
    model_state_dict=lambda sd: dict(epoch=3, model_state_dict=sd,
                                     optimizer_state_dict=dict(state={}, param_groups=[])),
    state_dict=lambda sd: dict(state_dict=under('module.', sd), args=__import__('argparse').Namespace(lr=.1)),
    twice=lambda sd: dict(model=dict(state_dict=sd)),
    averaged=lambda sd: dict(n_averaged=torch.tensor(3), **under('module.', sd)),
    larger=lambda sd: {**under('backbone.', sd), 'projector.0.weight': torch.zeros(3, 3)})

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('how', WRAPPED)
def test_wrappings(name, how, tmp_path): # I4
    sd = state(name)
    torch.save(WRAPPED[how](sd), tmp_path/'w.pth')
    a = arch(name, tmp_path/'w.pth')
    got = a(pretrained=True).state_dict()
    assert all(got[k].equal(v) for k,v in sd.items()) and len(got) >= len(sd)
    assert ("'projector.0.weight'" in a.notice and 'left out' in a.notice) == (how == 'larger')

@pytest.mark.parametrize('maker', ['fastai', 'timm in fastai', *NAMES])
def test_a_file_of_learn_save(maker, tmp_path): # I4
    "With the optimiser's state, in which fastai keeps its own kind of list and numbers of numpy"
    name = dict(fastai='resnet18').get(maker, maker.replace('timm in fastai', 'timm/mobilenetv2_035'))
    if maker == 'fastai': learn = vision_learner(dls(), resnet18, pretrained=False, path=tmp_path, opt_func=SGD)
    elif maker == 'timm in fastai':
        learn = vision_learner(dls(), 'mobilenetv2_035', pretrained=False, path=tmp_path, opt_func=SGD)
    else: learn = learner(dls(), name, pretrained=False, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    for f in learn.save('w'), learn.save('v', with_opt=False):
        a = arch(name, f)
        body = a.cut(a(pretrained=True)).eval()
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad(): assert body(x).flatten(1).equal(learn.model[0].eval()(x).flatten(1))
        assert not [o for o in a(pretrained=True).said if 'left out' in o]

def test_averaged_weights_are_preferred_and_said(tmp_path): # I4
    sd, ema = state('resnet18'), state('resnet18', 2)
    for i,w in enumerate([dict(state_dict=sd, state_dict_ema=ema), dict(model=sd, model_ema=dict(module=ema), epoch=1),
                          dict(ema=dict(decay=.9), model=ema), {**under('student.', sd), **under('teacher.', ema)}]):
        torch.save(w, tmp_path/f'{i}.pth')
        a = arch('resnet18', tmp_path/f'{i}.pth')
        assert a(pretrained=True).conv1.weight.equal(ema['conv1.weight'])
        assert ('averaged weights' in a.notice) == (i != 2), a.notice

def refused(name, sd, f, *words):
    torch.save(sd, f)
    with pytest.raises(BadInput) as e: arch(name, f)(pretrained=True)
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

def test_what_does_not_fit_is_named(tmp_path): # I4
    sd = state('resnet18')
    refused('resnet18', under('module.', {k: v for k,v in sd.items() if 'layer4' not in k}), tmp_path/'a.pth',
            "missing ('layer4.0.conv1.weight'", "begin with 'module.'")
    refused('resnet18', {**under('one.', sd), **under('two.', sd)}, tmp_path/'b.pth',
            "2 networks that fit resnet18, under 'one.', 'two.'")
    # All of a ResNet-18 is in it
    refused('resnet18', resnet34().state_dict(), tmp_path/'c.pth', 'are unknown', 'layer1.2.conv1.weight')
    refused('resnet18', under('module.', resnet34().state_dict()), tmp_path/'d.pth', 'are unknown',
            'module.layer1.2.conv1.weight')

def test_nothing_of_a_checkpoint_is_run(tmp_path): # I4
    import os
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    from fastcore.foundation import L
    for i,w in enumerate([dict(model=state('glyphnet'), opt=Evil()), dict(model=state('glyphnet'), opt=L(Evil())),
                          dict(model=state('glyphnet'), opt=L([1]).map(lambda o: Evil()))]):
        torch.save(w, tmp_path/f'{i}.pth')
        with pytest.raises(BadInput, match='would run code'): arch('glyphnet', tmp_path/f'{i}.pth')(pretrained=True)
    assert not (tmp_path/'ran').exists()

# I14: a Vision Transformer at another size

VIT = 'vit_tiny_patch16_224'

@pytest.mark.parametrize('size', [96, 384])
def test_places_are_resampled_as_timm_does(size, tmp_path):
    sd = timm.create_model(VIT, img_size=size, num_classes=0).state_dict()
    torch.save({**sd, 'mask_token': torch.zeros(1, 192), 'head.weight': torch.zeros(5, 192)}, tmp_path/'w.pth')
    a = arch(VIT, tmp_path/'w.pth')
    m = a(pretrained=True)
    want = checkpoint_filter_fn(dict(sd), timm.create_model(VIT, num_classes=0))
    assert all(v.equal(want[k]) for k,v in m.state_dict().items())
    assert f'{size//16} x {size//16} places in w.pth were resampled' in a.notice
    assert "w.pth are no part of vit_tiny_patch16_224 and were left out ('mask_token')" in a.notice

def test_pictures_of_other_sizes():
    a = arch(VIT, 'random')
    m = a().eval()
    other = timm.create_model(VIT, num_classes=0, img_size=96).eval()
    other.load_state_dict(checkpoint_filter_fn(m.state_dict(), other))
    body = a.cut(m)
    with torch.no_grad():
        for net,size in ((other, 96), (timm.create_model(VIT, num_classes=0).eval(), 224)):
            if size == 224: net.load_state_dict(m.state_dict())
            x = torch.rand(1, 3, size, size)
            torch.testing.assert_close(body(x).flatten(1), net(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput,
                       match=re.escape('multiples of 16 pixels a side, these are 100x100: '
                                       'ask for target(..., size=96), '
                                       'or --size 96 in the command line')): body(torch.rand(1, 3, 100, 100))

def test_torchvisions_vit_at_other_sizes():
    torch.manual_seed(0)
    kw = dict(patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    m, small = VisionTransformer(image_size=64, **kw).eval(), VisionTransformer(image_size=32, **kw).eval()
    sd = m.state_dict()
    from timm.layers import resample_abs_pos_embed
    small.load_state_dict({**sd, 'encoder.pos_embedding': resample_abs_pos_embed(sd['encoder.pos_embedding'], [4,4])})
    body, x, y = _body(m), torch.rand(2, 3, 64, 64), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for net,xb in ((m, x), (small, y)):
            net.heads = torch.nn.Identity()
            torch.testing.assert_close(body(xb).flatten(1), net(xb))
    with pytest.raises(BadInput, match='multiples of 8'): body(torch.rand(1, 3, 36, 36))

def test_own_size_by_default_and_another_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path/'cache'))
    from test_look import pics
    root = pics(tmp_path/'pets')
    assert task(root, VIT, device='cpu').target.size == 224
    assert task(root, 'timm/mobilenetv2_035', device='cpu').target.size == 128
    job = task(root, arch(VIT, 'random'), size=64, device='cpu')
    learn = learner(job.target.dls(bs=4, device='cpu'), job.arch, pretrained=False)
    assert job.target.size == 64 and learn.model(torch.rand(1, 3, 64, 64)).shape == (1, 2)

# --- a version by its name

@pytest.mark.parametrize('name,weights,ask', [
    ('resnet18', 'IMAGENET1K_V2', 'ask for IMAGENET1K_V1'),
    ('resnet50', 'imagenet1k_v2', 'IMAGENET1K_V1 or IMAGENET1K_V2'),
    ('resnet18', 'DEFAULT', 'ask for IMAGENET1K_V1'), ('glyphnet', 'IMAGENET1K_V1', 'leave weights out'),
    ('timm/mobilenetv2_035', 'IMAGENET1K_V1', 'leave weights out')])
def test_a_version_that_is_not_there_is_no_file(name, weights, ask, tmp_path, monkeypatch):
    "What torchvision calls versions is not looked for on the disk, but for a file that has such a name."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=f'has no weights {weights!r}: .*{ask}.*or give a file'): arch(name, weights)
    torch.save(state(name), weights)
    assert arch(name, weights).from_file
