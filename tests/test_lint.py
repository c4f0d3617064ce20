"""Every trap is found in a learner that is in it, by its own detector alone; none in a sound one;
and the learner stays as it was."""
import random, warnings
from copy import deepcopy
from functools import lru_cache
import numpy as np
import pytest, torch, torchvision
from fastai.vision.all import *
for _n in [n for n in globals() if n.startswith('test')]: del globals()[_n] # fastcore's, which pytest would collect
from fastai.callback.data import WeightedDL
from PIL import Image
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tlcourse.backbones import glyphnet
from tlcourse.learner import learner
from tlcourse.base import BadInput
from tlcourse.augment import BatchAugment
from tlcourse.data import target, weights_hash
from tlcourse.strategy import STRATEGIES
from tlcourse.audit import depth_split, freeze_audit
from tlcourse.finetune import KeepStats
from tlcourse.keep import L2SP
from tlcourse.layers import true_freeze
from tlcourse.lint import lint, traps

digits = target('digits')
glyph_stats = [.5]*3, [.25]*3
def norm(stats=glyph_stats): return Normalize.from_stats(*stats, cuda=False)
def dls(**kw): return digits.dls(**dict(shots=5, bs=10) | kw)

def fit(learn, lr=None, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr)
    return learn

def ours(data=None, **kw): return true_freeze(learner(dls() if data is None else data, 'glyphnet', **kw))
def scratch(data=None, **kw): return learner(dls() if data is None else data, 'glyphnet', pretrained=False, **kw)

def plain(x, y, train, bs, vocab='0123456789', tfms=True, **kw):
    "Loaders as fastai makes them: the first `train` pictures to train on, the rest to choose with"
    block = DataBlock((ImageBlock, CategoryBlock(vocab=[*vocab])), splitter=IndexSplitter(range(train, len(x))),
                      get_x=lambda i: PILImage.create(x[i].permute(1,2,0).numpy()), get_y=lambda i: vocab[y[i]],
                      batch_tfms=norm() if tfms is True else tfms)
    return block.dataloaders([*range(len(x))], bs=bs, num_workers=0, **kw)

X,Y = digits.train.x[:60],digits.train.y[:60]
def head_only(data): return ours(data, normalize=False)

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder of pictures unlike each other, in train/, valid/ and test/"
    d,rng = tmp_path_factory.mktemp('photos'),np.random.RandomState(0)
    for part,n in dict(train=8, valid=3, test=3).items():
        for c in 'abc':
            (d/part/c).mkdir(parents=True)
            for i in range(n):
                a = rng.randint(0, 255, (6,6,3)).astype(np.uint8)
                Image.fromarray(a).resize((80,70), Image.Resampling.BICUBIC).save(d/part/c/f'{i}.png')
    return d

def from_folder(d, valid='valid', size=64, **kw):
    return ImageDataLoaders.from_folder(d, valid=valid, item_tfms=Resize(size), batch_tfms=[norm(imagenet_stats)],
                                        bs=4, num_workers=0, **kw)

# --- planted traps: name -> (the traps it is, a learner, maybe a target)

PLANTED = {}
def plant(*names):
    def _inner(f): PLANTED[f.__name__] = names,f; return f
    return _inner

@plant('drifting-batchnorm')
def default_freeze(): return vision_learner(dls(), glyphnet)
@plant('drifting-batchnorm')
def train_bn_false(): return vision_learner(dls(), glyphnet, train_bn=False)
@plant('drifting-batchnorm')
def bn_freeze_alone(): return vision_learner(dls(), glyphnet, cbs=BnFreeze)
@plant('drifting-batchnorm')
def after_a_fit(): return fit(vision_learner(dls(), glyphnet))
@plant('drifting-batchnorm')
def partly_frozen():
    learn = learner(dls(), 'glyphnet', train_bn=False)
    learn.freeze_to(-2)
    return learn
@plant('drifting-batchnorm')
def frozen_by_hand():
    learn = scratch(splitter=trainable_params)
    learn.model[0].requires_grad_(False)
    with torch.no_grad():
        next(m for m in learn.model[0].modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(.1)
    return learn

@plant('stale-gradients')
def frozen_after_training():
    learn = learner(dls(), 'glyphnet', train_bn=False, cbs=BnFreeze)
    learn.unfreeze()
    fit(learn).freeze()
    return learn

@plant('random-body')
def frozen_scratch():
    learn = scratch(train_bn=False, cbs=BnFreeze)
    learn.freeze()
    return learn
@plant('random-body')
def frozen_convnext():
    learn = vision_learner(plain(X, Y, 50, 10), 'convnext_atto', pretrained=False)
    learn.freeze()
    return learn

@plant('few-groups')
def one_group(): return Learner(ours().dls, ours().model.requires_grad_(True), CrossEntropyLossFlat())
@plant('few-groups')
def a_slice_for_one_group(): return scratch(splitter=trainable_params, lr=slice(1e-5, 1e-3))
@plant('few-groups')
def a_range_for_two_groups(): return scratch(splitter=default_split, lr=slice(1e-5, 1e-3))
@plant('few-groups')
def freeze_to_beyond():
    learn = scratch(splitter=default_split)
    learn.freeze_to(-3)
    return learn

def thawed(**kw):
    learn = learner(dls(), 'glyphnet', **kw)
    learn.unfreeze()
    return learn
@plant('rate-too-high')
def one_high_rate(): return fit(thawed(), 1e-1)
@plant('rate-too-high')
def about_to_start(): return thawed(lr=1e-1)
@plant('rate-too-high')
def one_cycle():
    learn = thawed()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-1)
    return learn
@plant('rate-too-high')
def torch_adam(): return fit(thawed(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)), 1e-1)

@plant('not-finite')
def diverged():
    learn = ours()
    with torch.no_grad(): learn.model[1][-1].weight[0] = float('nan')
    return learn

@plant('not-in-optimiser')
def new_head():
    learn = ours()
    learn.model[1][-1] = nn.Linear(192, 10)
    return learn
@plant('not-in-optimiser')
def forgetful_splitter(): return scratch(splitter=lambda m: L(params(m[0][:3]), params(m[1])))

@plant('training-mode')
def put_into_training_mode():
    learn = fit(ours())
    learn.model.train()
    return learn
@plant('training-mode')
def dropout_on():
    learn = fit(ours(head='fastai'))
    next(m for m in learn.model.modules() if isinstance(m, nn.Dropout)).train()
    return learn

def raw_resnet(data): return vision_learner(data, resnet18, pretrained=False, normalize=False)
@plant('no-normalisation')
def plain_scratch(): return raw_resnet(plain(X, Y, 50, 10, tfms=None))
@plant('no-normalisation')
def normalize_false(): return ours(normalize=False)
@plant('no-normalisation')
def named_but_unnormalised():
    learn = vision_learner(plain(X, Y, 50, 10, tfms=None), torchvision.models.convnext_tiny, pretrained=False)
    assert '0.485' in lint(learn)[0].fix
    return learn

def normalised(*stats):
    data = dls()
    data.add_tfms([norm(s) for s in stats], 'after_batch')
    return ours(data, normalize=False)
@plant('wrong-normalisation')
def imagenet_for_glyphs(): return normalised(imagenet_stats)
@plant('wrong-normalisation')
def twice(): return normalised(glyph_stats, glyph_stats)
@plant('wrong-normalisation')
def in_training_only():
    data = dls()
    data.train.after_batch.add(norm())
    return ours(data, normalize=False)
@plant('wrong-normalisation')
def scale_of_255():
    data = dls()
    for dl in data.loaders: next(f for f in dl.after_batch.fs if isinstance(f, IntToFloatTensor)).div = 1
    return ours(data)
@plant('wrong-normalisation')
def scale_of_255_alone():
    data = dls()
    for dl in data.loaders: next(f for f in dl.after_batch.fs if isinstance(f, IntToFloatTensor)).div = 1
    return ours(data, normalize=False)

@plant('no-batch')
def fewer_than_a_batch(): return head_only(plain(X, Y, 50, 64))
@plant('batch-of-one')
def one_left_over(): return scratch(plain(X, Y, 49, 16, drop_last=False), normalize=False)
@plant('batch-of-one')
def batches_of_one(): return scratch(plain(X, Y, 50, 1), normalize=False)

@plant('random-validation')
def awake_in_validation():
    data = dls()
    next(f for f in data.valid.after_batch.fs if isinstance(f, BatchAugment)).split_idx = None
    return ours(data)

@plant('sorted-batches')
def unshuffled():
    i = Y[:50].argsort(stable=True)
    i = torch.cat([i, torch.arange(50, 60)])
    return head_only(plain(X[i], Y[i], 50, 10, shuffle=False))
@plant('missing-class')
def no_three():
    x,y = digits.train.x[:90],digits.train.y[:90]
    i = torch.cat([(y[:70] != 3).nonzero()[:,0], torch.arange(70, 90)])
    return head_only(plain(x[i], y[i], len(i)-20, 10))
@plant('other-classes')
def other_names(): return head_only(plain(X, Y, 50, 10, vocab='abcdefghij')), digits

def augmented(t, *tfms, **kw):
    data = t.dls(shots=5, bs=10, **kw)
    for f in tfms: data.train.after_batch.add(f)
    return ours(data), t
@plant('label-changing')
def mirrored_digits(): return augmented(digits, *aug_transforms())
@plant('label-changing')
def mirrored_by_name(): return augmented(digits, augment='flip')
@plant('label-changing')
def mirrored_items():
    data = dls()
    data.train.after_item.add(FlipItem(.5))
    return ours(data), digits
@plant('label-changing')
def turned_letters(): return augmented(target('letters'), Dihedral())
@plant('label-changing')
def turned_textures(): return augmented(target('textures'), Rotate())
@plant('label-changing')
def other_hues(): return augmented(target('hues'), Hue())
@plant('label-changing')
def paler_hues(): return augmented(target('hues'), Saturation())

@plant('test-as-validation')
def the_test_pixels():
    x,y = digits._test_arrays[0][:50],torch.arange(50) % 10
    return head_only(plain(torch.cat([X[:50], x]), torch.cat([Y[:50], y]), 50, 10)), digits
@plant('train-as-validation')
def train_twice():
    data = dls()
    return ours(DataLoaders(data.train, data.train))
@plant('train-as-validation')
def train_pixels_twice():
    return head_only(plain(torch.cat([X[:20], X[:10]]), torch.cat([Y[:20], Y[:10]]), 20, 10, vocab='0123456789'))
@plant('duplicates')
def one_picture_twice():
    i = torch.cat([torch.arange(60), torch.tensor([3])])
    return head_only(plain(X[i], Y[i], 50, 10))
@plant('duplicates')
def trained_on_test_pictures():
    x = digits._test_arrays[0][:5]
    return head_only(plain(torch.cat([x, X]), torch.cat([Y[:5], Y]), 55, 10)), digits

@plant('head-misfit')
def too_many_outputs(): return scratch(n_out=12)
@plant('head-misfit')
def too_few_outputs(): return scratch(n_out=9)
@plant('head-misfit')
def logits_into_nll(): return scratch(loss_func=nn.NLLLoss())
@plant('softmax-twice')
def softmax_in_the_model():
    learn = scratch()
    learn.model[1].append(nn.Softmax(1))
    return learn

# --- what is watched, averaged and counted

def from_glyphs(**kw): return learner(dls(), 'glyphnet', **kw)
@plant('stops-on-training')
def stops_on_training(): return true_freeze(from_glyphs(cbs=SaveModelCallback('train_loss')))

@plant('mixed-metrics')
def cut_and_mixed():
    learn = true_freeze(from_glyphs(cbs=CutMix()))
    learn.recorder.train_metrics = True
    return learn

class Averages(Callback):
    order = 1
    def __init__(self, avg): self.avg = avg
    def after_step(self): self.avg.update_parameters(self.model)

@lru_cache
def large_steps():
    "A learner after a few, and their average in a callback"
    set_seed(0, reproducible=True)
    learn = thawed()
    learn.add_cb(Averages(AveragedModel(learn.model, multi_avg_fn=get_ema_multi_avg_fn(.95))))
    return fit(learn, 2e-2, 4)

def averaged(use=lambda a: a.module, recount=False):
    "The average in place of the network"
    learn = deepcopy(large_steps())
    learn.model = use(next(c.avg for c in learn.cbs if isinstance(c, Averages)))
    if recount: update_bn((b[0].as_subclass(torch.Tensor) for b in learn.dls.train), learn.model)
    learn.model.eval()
    return learn
@plant('average-statistics')
def average_inside(): return averaged()
@plant('average-statistics')
def average_itself(): return averaged(lambda a: a)

MANY = [40, 20, 10, 5, 4, 4, 4, 4, 4, 4]
def uneven(many=MANY, weight=None, metrics=accuracy):
    "Digits with so many training pictures of each class; the head alone trains"
    at = lambda part, ns: torch.cat([(part.y == c).nonzero()[:n,0] for c,n in enumerate(ns)])
    i,j = at(digits.train, many),at(digits.valid, [max(1, n//4) for n in many])
    x,y = (torch.cat([getattr(digits.train, o)[i], getattr(digits.valid, o)[j]]) for o in 'xy')
    loss = CrossEntropyLossFlat(weight=None if weight is None else torch.tensor(weight, dtype=torch.float))
    return ours(plain(x, y, len(i), 10), normalize=False, metrics=metrics, loss_func=loss)
@plant('accuracy-alone')
def accuracy_of_rare_classes(): return uneven()

BOTH = [accuracy, BalancedAccuracy()]
@plant('class-weights')
def counts_as_weights(): return uneven(weight=MANY, metrics=BOTH)
@plant('class-weights')
def weights_in_another_order(): return uneven(weight=[1/n for n in MANY[::-1]], metrics=BOTH)

def listed(items, splitter, **kw):
    get_x = kw.pop('get_x', lambda i: PILImage.create(X[i].permute(1,2,0).numpy()))
    block = DataBlock((ImageBlock, CategoryBlock(vocab=[*'0123456789'])), splitter=splitter, get_x=get_x,
                      get_y=kw.pop('get_y', lambda i: str(int(Y[i]))), batch_tfms=norm())
    return head_only(block.dataloaders(items, bs=10, num_workers=0))
@plant('copied-before-split')
def rows_multiplied_then_split():
    df = pd.DataFrame(dict(i=[*range(30)]*3, y=[str(int(o)) for o in Y[:30]]*3))
    return listed(df, RandomSplitter(seed=0), get_x=lambda r: PILImage.create(X[r.i].permute(1,2,0).numpy()),
                  get_y=lambda r: r.y)

def drawn():
    learn = head_only(plain(X, Y, 40, 10))
    learn.dls.valid = learn.dls.valid.new(cls=WeightedDL, wgts=np.arange(20)+1., shuffle=True)
    return learn
@plant('drawn-validation')
def weighted_validation(): return drawn()

def made(f):
    res = f()
    return res if isinstance(res, tuple) else (res, None)

@pytest.mark.parametrize('name', PLANTED)
def test_planted(name):
    want,f = PLANTED[name]
    learn,t = made(f)
    found = lint(learn, t)
    assert found.names == list(want), found
    assert found and all(o.where and o.cost and o.fix and '\n' not in o.fix and 1 <= o.lesson <= 15 for o in found)
    assert not [w for w in found.unchecked.values() if 'check failed' in w], found

def test_every_detector_has_a_plant(): assert {n for ns,_ in PLANTED.values() for n in ns} == set(traps().index)

@pytest.mark.parametrize('name',
                         ['default_freeze', 'train_bn_false', 'bn_freeze_alone', 'partly_frozen',
                          'frozen_after_training', 'frozen_scratch', 'one_group',
                                  'new_head', 'put_into_training_mode', 'plain_scratch', 'fewer_than_a_batch',
                                  'one_left_over', 'unshuffled', 'softmax_in_the_model',])
def test_the_fix_mends(name):
    learn,t = made(PLANTED[name][1])
    exec(lint(learn, t)[0].fix, dict(globals(), learn=learn))
    if name == 'new_head': true_freeze(learn)
    assert lint(learn, t).names == []

# --- no false alarm

@pytest.mark.parametrize('name', STRATEGIES)
def test_strategies_are_sound(name):
    learn = STRATEGIES[name](dls(shots=2, bs=8), 'glyphnet', steps=4, progress=False)
    found = lint(learn, digits)
    assert found.names == [] and set(found.unchecked) <= {'training-mode'}, found

SOUND = {'resnet18': lambda d: vision_learner(d, resnet18, pretrained=False),
         'timm resnet18': lambda d: vision_learner(d, 'resnet18', pretrained=False),
         'timm ViT': lambda d: vision_learner(d, 'vit_tiny_patch16_224', pretrained=False, img_size=64),
         'timm convnext': lambda d: vision_learner(d, 'convnext_atto', pretrained=False),
         'convnext': lambda d: vision_learner(d, torchvision.models.convnext_tiny, pretrained=False),
         'squeezenet': lambda d: vision_learner(d, squeezenet1_1, pretrained=False),
         'xresnet': lambda d: vision_learner(d, models.xresnet.xresnet18, pretrained=False),
         'our mobilenet': lambda d: learner(d, 'mobilenet_v2', pretrained=False),
         'augmented': lambda d: vision_learner(d.add_tfms(aug_transforms(), 'after_batch') or d, resnet18,
                                               pretrained=False),
         'SGD': lambda d: vision_learner(d, resnet18, pretrained=False, opt_func=SGD),
         'label smoothing': lambda d: vision_learner(d, resnet18, pretrained=False,
                                                     loss_func=LabelSmoothingCrossEntropyFlat())}

@pytest.mark.parametrize('name', SOUND)
def test_sound(name, photos):
    learn = SOUND[name](from_folder(photos))
    assert lint(learn).names == []
    found = lint(fit(learn))
    assert found.names == [], found
    assert set(found.unchecked) <= {'other-classes', 'label-changing', 'test-as-validation', 'few-groups'}, found

def frozen_layernorm(): return head_only_of('convnext_atto')
def head_only_of(name):
    "A frozen LayerNorm body that is not as it was made"
    learn = vision_learner(plain(X, Y, 50, 10), name, pretrained=False)
    with torch.no_grad(): [p.add_(torch.rand_like(p)*.01) for p in learn.model[0].parameters()]
    learn.freeze()
    return learn

def found_then_trained():
    learn = thawed()
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=25, show_plot=False)
    return learn
def trained_then_found():
    learn = fit(thawed())
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=25, show_plot=False)
    return learn
def fine_tuned():
    learn = vision_learner(dls(), glyphnet)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    return learn
def head_at_a_high_rate(): return fit(ours(), 1e-1)
def head_first_then_thawed():
    learn = fit(ours(), 1e-1)
    learn.unfreeze()
    return learn
def probe_in_one_group():
    learn = learner(dls(), 'glyphnet', splitter=lambda m: L(params(m[0]), params(m[1])))
    m = true_freeze(learn).model
    return Learner(learn.dls, m, CrossEntropyLossFlat(), cbs=learn.true_freeze)
def deep_groups(): return learner(dls(), 'glyphnet', pretrained=False, splitter=depth_split(5), lr=slice(1e-5, 1e-3))
def two_groups_two_rates(): return scratch(splitter=default_split, lr=slice(1e-3))
def kept_last_batch(): return scratch(plain(X, Y, 48, 16, drop_last=False), normalize=False)
def unsorted(): return head_only(plain(X, Y, 50, 10, shuffle=False))
def one_batch_of_all(): return head_only(plain(X, Y, 50, 50))
def batchnorm_first():
    data = dls()
    return Learner(data, nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                       nn.Linear(8, 10)), CrossEntropyLossFlat())
def log_softmax_into_nll():
    learn = scratch(loss_func=nn.NLLLoss())
    learn.model[1].append(nn.LogSoftmax(1))
    return learn
def unflipped(): return augmented(digits, *aug_transforms(do_flip=False))
def coloured_letters(): return augmented(target('letters'), Hue(), Brightness())
def watched_and_mixed(): # The three do what they are for
    return true_freeze(from_glyphs(cbs=[EarlyStoppingCallback(), SaveModelCallback('accuracy'), MixUp()]))
def average_counted_again(): return averaged(recount=True)
def hardly_uneven():
    many = [20, 10, 8, 5, 4, 4, 4, 4, 4, 4]
    return uneven(many, weight=[1/n for n in many])
def multiplied_after_the_split(): return listed([*range(30)] + [*range(20)]*2, IndexSplitter(range(20, 30)))
def weighted_training(): # And the validation pictures shuffled
    learn = head_only(plain(X, Y, 40, 10))
    learn.dls.valid = learn.dls.valid.new(shuffle=True)
    learn.dls.train = learn.dls.train.new(cls=WeightedDL, wgts=np.arange(40)+1., shuffle=True)
    return learn
def held_and_averaged():
    learn = thawed()
    learn.add_cbs([L2SP(learn, 10), KeepStats(), Averages(AveragedModel(learn.model))])
    return fit(learn)
def enlarged_digits():
    t = target('digits', size=64)
    return learner(t.dls(shots=20), 'resnet18', pretrained=False), t

@pytest.mark.parametrize('f', [frozen_layernorm, found_then_trained, trained_then_found, fine_tuned,
                               head_at_a_high_rate, head_first_then_thawed,
                               probe_in_one_group, deep_groups, two_groups_two_rates, kept_last_batch,
                               unsorted, one_batch_of_all, batchnorm_first,
                               log_softmax_into_nll, unflipped, coloured_letters, enlarged_digits,
                               watched_and_mixed, average_counted_again, hardly_uneven,
                               multiplied_after_the_split, weighted_training, held_and_averaged],
                               ids=lambda f: f.__name__)
def test_near_a_trap_and_not_in_it(f):
    found = lint(*made(f))
    assert found.names == [] and not [w for w in found.unchecked.values() if 'check failed' in w], found

def test_an_exported_learner(photos, tmp_path):
    "Its loaders are empty: nothing is found, and what could not be looked at is said"
    learn = fit(SOUND['resnet18'](from_folder(photos)))
    learn.export(tmp_path/'x.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = lint(load_learner(tmp_path/'x.pkl'))
    assert found.names == [] and 'no training pictures' in found.unchecked['no-batch']

def test_other_tasks(photos):
    "Several labels a picture, a number, a mask: no alarm and no failure"
    kw = dict(get_items=get_image_files, splitter=GrandparentSplitter(), item_tfms=Resize(32),
              batch_tfms=norm(imagenet_stats))
    def get(block, get_y):
        return DataBlock((ImageBlock, block), get_y=get_y, **kw).dataloaders(photos, bs=4, num_workers=0)
    some = [vision_learner(get(MultiCategoryBlock, lambda o: [o.parent.name]), resnet18, pretrained=False),
            vision_learner(get(RegressionBlock, lambda o: float(ord(o.parent.name))), resnet18, pretrained=False,
                           n_out=1),
            unet_learner(get(MaskBlock(codes=['x', 'y']), lambda o: PILMask.create(np.zeros((70,80), np.uint8))),
                         resnet18, pretrained=False)]
    for learn in some:
        found = lint(learn)
        assert found.names == [] and not [w for w in found.unchecked.values() if 'check failed' in w], found

# --- folders

def test_test_folder_as_validation(photos):
    assert (lint(vision_learner(from_folder(photos, valid='test'), resnet18, pretrained=False)).names
            == ['test-as-validation'])

def test_against_a_folders_target(photos):
    t = target(photos, size=64)
    assert lint(learner(t.dls(bs=4), 'resnet18', pretrained=False), t).names == []
    assert lint(vision_learner(from_folder(photos), resnet18, pretrained=False), t).names == []
    assert (lint(vision_learner(from_folder(photos, valid='test'), resnet18, pretrained=False), t).names
            == ['test-as-validation'])
    assert t.openings == 0

def test_copied_files(photos, tmp_path):
    "The same file, and the same picture as a JPEG of another size"
    d = shutil.copytree(photos, tmp_path/'d')
    shutil.copy(d/'train/a/0.png', d/'valid/a/again.png')
    found = lint(vision_learner(from_folder(d), resnet18, pretrained=False), pictures=2)
    assert found.names == ['duplicates'] and '1 of 10' in found[0].where
    (d/'valid/a/again.png').unlink()
    Image.open(d/'train/b/0.png').resize((160,140)).save(d/'valid/b/again.jpg', quality=80)
    found = lint(vision_learner(from_folder(d), resnet18, pretrained=False))
    assert found.names == ['duplicates'] and '1 of 10' in found[0].where
    assert 'were compared' in lint(vision_learner(from_folder(photos), resnet18, pretrained=False),
                                   pictures=2).unchecked['duplicates']

# --- it leaves no trace

def state(learn):
    opt = [(id(p), {k: str(v) for k,v in learn.opt.state[p].items()}, str(h))
           for p,_,_,h in learn.opt.all_params()] if learn.opt else None
    mods = [(m.training, len(m._forward_hooks)) for m in learn.model.modules()]
    grads = [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in learn.model.parameters()]
    rngs = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(),
            [dl.rng.getstate() for dl in learn.dls.loaders])
    tfms = [(str(p.fs), p.split_idx) for dl in learn.dls.loaders
            for p in (dl.after_item, dl.before_batch, dl.after_batch)]
    return (weights_hash(learn.model), opt, mods, grads, rngs, tfms, [*map(id, learn.cbs)], sorted(vars(learn)),
            [*map(id, learn.dls.loaders)], [sorted(vars(dl)) for dl in learn.dls.loaders])

@pytest.mark.parametrize('kind', ['fresh', 'fitted', 'in training mode', 'no optimiser', 'plain'])
def test_leaves_no_trace(kind, photos):
    learn = {'no optimiser': scratch,
             'plain': lambda: vision_learner(from_folder(photos), resnet18, pretrained=False)}.get(kind, thawed)()
    if kind == 'fitted': fit(learn)
    learn.model.train(kind != 'fitted')
    set_seed(7)
    before,opened = state(learn),digits.openings
    lint(learn, digits)
    assert state(learn) == before and digits.openings == opened

def test_the_next_fit_is_the_same():
    def run(look):
        set_seed(3, reproducible=True)
        learn = thawed()
        if look: lint(learn, digits)
        fit(learn)
        if look: lint(learn, digits)
        return weights_hash(fit(learn).model)
    assert run(True) == run(False)

def test_the_seal_holds():
    t = target('digits')
    learn = ours()
    lint(learn, t)
    assert t.openings == 0 and t.score(learn).n == 500

# --- what it says

def test_what_it_says():
    found = lint(vision_learner(dls(), glyphnet))
    text,html = repr(found),found._repr_html_()
    for s in ('drifting-batchnorm', 'true_freeze(learn)', 'lesson 5', 'could not be checked', 'without target='):
        assert s in text
    for s in ('<table', '<code>true_freeze(learn)</code>', 'Could not be checked'): assert s in html
    assert found.names == [o.name for o in found] and len(found) == 1 and found[0].lesson == 5 and found
    none = lint(ours(), digits)
    assert not none and 'no findings' in repr(none) and 'duplicates' in none.checked
    assert '<table' not in none._repr_html_()
    assert set(none.checked) | set(none.unchecked) == set(traps().index)

def test_html_is_escaped():
    learn = head_only(plain(X, Y, 50, 10, vocab='<bcdefghij'))
    assert '<b' not in lint(learn, digits)._repr_html_().replace('<br', '')

def test_agrees_with_the_audit():
    for learn in (vision_learner(dls(), glyphnet), vision_learner(dls(), glyphnet, train_bn=False, cbs=BnFreeze),
                  ours(), thawed()):
        assert ('drifting-batchnorm' in lint(learn).names) == bool(freeze_audit(learn).moving)

@pytest.mark.parametrize('args,why', [((glyphnet(),), 'takes a fastai Learner'), ((None,), 'takes a fastai Learner')])
def test_bad_learner(args, why):
    with pytest.raises(BadInput, match=why): lint(*args)

def test_bad_options():
    with pytest.raises(BadInput, match='give what target'): lint(ours(), 'digits')
    for n in (0, -1, 1.5, True, None):
        with pytest.raises(BadInput, match='whole number'): lint(ours(), pictures=n)
