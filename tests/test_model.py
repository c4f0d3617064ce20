"A stored model answers as the Learner did, in a process of its own; what is no model, or no picture, is a sentence."
import json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file
from tlcourse.backbones import arch
from tlcourse.learner import learner
from tlcourse.base import BadInput, photo_assets, sha256
from tlcourse.card import VERSION, _check
from tlcourse.cli import main
from tlcourse.compare import compare
from tlcourse.data import target
from tlcourse.runs import task
from tlcourse.strategy import STRATEGIES
from tlcourse.model import _answers, _joined, _licences, _with_validation, load, save, train
from tlcourse.predictions import NONE
from conftest import python

command = ['-W', 'ignore', '-c', 'import sys; from tlcourse.cli import main; sys.exit(main())']

def run(*args, by=None, **kw):
    r = subprocess.run([*(by or python()), *command, *map(str, args)], capture_output=True, text=True,
                       timeout=600, **kw)
    return r.returncode, r.stdout, r.stderr

def colours(folder, n=20, size=48, seed=0):
    "A folder of two classes that a colour tells apart: red and blue noise"
    rng = np.random.default_rng(seed)
    for c,k in (('red', 0), ('blue', 2)):
        (folder/c).mkdir(parents=True)
        for i in range(n):
            x = rng.integers(0, 120, (size, size + 7, 3), dtype=np.uint8)
            x[..., k] += 120
            Image.fromarray(x).save(folder/c/f'{i:02d}.png')
    return folder

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder of pictures and a model of them"
    d = tmp_path_factory.mktemp('made')
    t = target(colours(d/'pictures'), size=32)
    learn = learner(t.dls(bs=8, augment=False), 'glyphnet')
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(12, 1e-2)
    with torch.no_grad(): # Less sure of itself than it may be, so that probabilities differ
        for p in learn.model[1].parameters(): p.mul_(.1)
    return d, t, learn, save(learn, d/'model')

def probabilities(predictions, classes):
    "(n, classes), in the order of the classes"
    return np.array([[dict(p.top)[c] for c in classes] for p in predictions])

# --- the same answers

@pytest.mark.parametrize('name,size,head,how', [('glyphnet', 32, 'linear', {}), ('glyphnet', 32, 'fastai', {}),
    ('tf_efficientnet_lite0', 64, 'linear', {}), ('mobilenet_v2', 64, 'linear', dict(pretrained=False)),
    ('timm/mobilenetv2_035', 64, 'fastai', dict(pretrained=False))])
def test_same_answers(name, size, head, how, tmp_path):
    t = target(colours(tmp_path/'p', 6), size=size)
    torch.manual_seed(0) # Of the bodies with random weights
    learn = learner(t.dls(bs=4, augment=False), name, head=head, **how)
    with learn.no_bar(), learn.no_logging(): learn.fit(6, 1e-3) # As long as BatchNorm needs to know what it normalises
    learn.model.train() # Which a fit leaves in eval mode
    state = torch.random.get_rng_state(), [m.training for m in learn.model.modules()]
    save(learn, tmp_path/'m')
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert [m.training for m in learn.model.modules()] == state[1]
    m = load(tmp_path/'m', 'cpu')
    files = sorted((tmp_path/'p').rglob('*.png'))
    with learn.no_bar(): theirs = learn.get_preds(dl=learn.dls.test_dl(files))[0]
    assert theirs.std(0).max() > 0, 'pictures that all get the same answer show nothing'
    assert np.abs(probabilities(m.predict(files, top=2), m.classes) - theirs.numpy()).max() < 1e-5
    # Pixels in memory, and the statistics of the backbone
    theirs = _answers(learn, t.valid.x)[1].numpy()
    assert np.abs(probabilities(m.predict(t.valid.x, top=2), m.classes) - theirs).max() < 1e-5
    assert (m.card['statistics']['std'][0]
            == pytest.approx({'glyphnet': .25, 'tf_efficientnet_lite0': .5}.get(name, .229),
                             abs=1e-3) or 'timm' in name)

def test_the_range_and_the_fit_of_training_go_with_the_model(tmp_path):
    "12 bits in containers of 16, long pictures squished: a model reads new ones as the old ones were read"
    for c,k in (('dark', 1), ('light', 3)):
        (tmp_path/'p'/c).mkdir(parents=True)
        for i in range(8):
            a = np.random.default_rng(10*i + k).integers(0, 1300, (30, 70), dtype=np.uint16)*k
            Image.fromarray(a).save(tmp_path/'p'/c/f'{i}.png')
    t = target(tmp_path/'p', size=32, fit='squish')
    learn = learner(t.dls(bs=4, augment=False), 'glyphnet')
    m = save(learn, tmp_path/'m', notes=t.report.lines())
    assert (m.card['range'], m.card['fit']) == ([0, 4095], 'squish') and any('0 to 4,095' in o for o in m.card['notes'])
    p = load(tmp_path/'m', 'cpu').predict(t.valid.paths, top=2)
    assert np.abs(probabilities(p, t.classes) - _answers(learn, t.valid.x)[1].numpy()).max() < 1e-5

def test_pictures_beyond_the_range_of_the_training_are_named(tmp_path, made): # I2
    for c,k in (('dark', 1), ('light', 3)):
        (tmp_path/'p'/c).mkdir(parents=True)
        for i in range(8):
            a = np.random.default_rng(10*i + k).integers(0, 1300, (32, 32), dtype=np.uint16)*k
            Image.fromarray(a).save(tmp_path/'p'/c/f'{i}.png')
    m = save(learner(target(tmp_path/'p', size=32).dls(bs=4, augment=False), 'glyphnet'), tmp_path/'m')
    hot = a.copy(); hot[3,3] = 65535
    for f,x in (('fits.png', a), ('hot.png', hot), ('beyond.png', a*16)): Image.fromarray(x).save(tmp_path/f)
    files = [tmp_path/f for f in ('fits.png', 'hot.png', 'beyond.png')]
    assert m.predict(files[:2]).notes == []
    said = m.predict(files).notes
    assert said[0].startswith('1 picture has values above 4,095, where the range ends')
    assert said[1].endswith(str(files[2])) and len(said) == 2
    assert main(['predict', str(tmp_path/'m'), str(files[2]), '--json', str(tmp_path/'p.json')]) == 0
    assert json.loads((tmp_path/'p.json').read_text())['notes'] == said
    # A model of pictures with 8 bits
    assert made[3].predict(files[0]).notes[0].startswith('1 picture uses a part of 16 bits, '
                                                         'and those of the training had 8')
    Image.fromarray(a*16).save(tmp_path/'whole.png')
    assert made[3].predict(tmp_path/'whole.png').notes == []

def test_a_process_without_the_script(made):
    d, t, learn, m = made
    code = f"""import json, sys
from tlcourse.model import load
print(json.dumps([p.to_dict() for p in load({str(d/'model')!r}).predict({str(d/'pictures')!r}, top=2)]))"""
    r = subprocess.run([*python(), '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=d)
    assert not r.returncode, r.stderr
    there, here = json.loads(r.stdout), m.predict(d/'pictures', top=2)
    assert [p['file'] for p in there] == [p.file for p in here] and len(there) == 40
    assert np.allclose([p['probability'] for p in there], [p.probability for p in here], atol=1e-5)
    assert sum(p['class'] == Path(p['file']).parent.name for p in there) == 40

# --- the folder

def test_the_card(made):
    d, t, learn, m = made
    card = json.loads((d/'model'/'card.json').read_text())
    assert sorted(p.name for p in (d/'model').iterdir()) == ['card.json', 'model.safetensors']
    assert ((card['version'], card['classes'], card['fit'], card['range'], card['size'], card['backbone'])
            == (VERSION, ['blue', 'red'], 'crop', [0, 255], 32, 'glyphnet'))
    assert card['weights']['sha256'] == sha256(d/'model'/'model.safetensors') and card['accuracy'] is None
    assert any('not known' in o for o in card['notes']) and card['versions']['torch'] and 'not known' in repr(m)
    tensors = load_file(d/'model'/'model.safetensors')
    assert all(torch.equal(v, tensors[k]) for k,v in learn.model.state_dict().items())

def spoiled(made, to):
    "A copy of the model to be damaged, its card, and a way to write that card"
    shutil.copytree(made[0]/'model', to)
    def write(card): (to/'card.json').write_text(json.dumps(card))
    return to, json.loads((to/'card.json').read_text()), write

def no_card(d, card, write): (d/'card.json').unlink()
def no_weights(d, card, write): (d/'model.safetensors').unlink()
def cut_card(d, card, write): (d/'card.json').write_text((d/'card.json').read_text()[:200])
def not_text(d, card, write): (d/'card.json').write_bytes(b'\xff\xfe\0\x80')
def a_list(d, card, write): write([card])
def of_others(d, card, write): write(dict(name='resnet', version=1))
def newer(d, card, write): write({**card, 'version': VERSION + 1})
def no_version(d, card, write): write({k: v for k,v in card.items() if k != 'version'})
def reordered(d, card, write): write({**card, 'classes': card['classes'][::-1]})
def less(d, card, write): write({k: v for k,v in card.items() if k != 'statistics'})
def cut_weights(d, card, write): (d/'model.safetensors').write_bytes((d/'model.safetensors').read_bytes()[:-100])
def one_bit(d, card, write):
    b = bytearray((d/'model.safetensors').read_bytes())
    b[-1000] ^= 1
    (d/'model.safetensors').write_bytes(b)
def pickled(d, card, write):
    torch.save({'x': torch.zeros(1)}, d/'model.safetensors')
    card['weights']['sha256'] = sha256(d/'model.safetensors')
    write({**card, 'check': _check(card)})
def other_net(d, card, write):
    card['backbone'] = 'mobilenet_v2'
    write({**card, 'check': _check(card)})
def no_such_net(d, card, write):
    card['backbone'] = 'glyphnett'
    write({**card, 'check': _check(card)})
def a_file(d, card, write):
    shutil.rmtree(d)
    d.write_text('x')
def gone(d, card, write): shutil.rmtree(d)

DAMAGE = {no_card: 'no card.json', no_weights: 'no model.safetensors', cut_card: 'damaged', not_text: 'damaged',
          a_list: 'damaged', of_others: 'no card of',
          newer: f'version {VERSION + 1}', no_version: 'version None', reordered: 'changed by hand',
          less: 'changed by hand', cut_weights: 'cut short',
          one_bit: 'damaged', pickled: 'cannot be read as weights', other_net: 'do not fit mobilenet_v2',
          no_such_net: "'glyphnet'", a_file: 'is a file', gone: 'no model folder'}

@pytest.mark.parametrize('damage', DAMAGE, ids=lambda f: f.__name__)
def test_damage_is_a_sentence(damage, made, tmp_path):
    d, card, write = spoiled(made, tmp_path/'m')
    assert load(d).classes == ['blue', 'red']
    damage(d, card, write)
    with pytest.raises(BadInput) as e: load(d)
    assert DAMAGE[damage] in str(e.value) and '\n' not in str(e.value)

def test_nothing_is_unpickled(made, tmp_path):
    "A card's weights in the form that runs code"
    d, card, write = spoiled(made, tmp_path/'m')
    class Run:
        def __reduce__(self): return (Path.touch, (tmp_path/'ran',))
    torch.save(Run(), d/'model.safetensors')
    card['weights']['sha256'] = sha256(d/'model.safetensors')
    write({**card, 'check': _check(card)})
    with pytest.raises(BadInput): load(d)
    assert not (tmp_path/'ran').exists()

def test_only_a_model_is_replaced(made, tmp_path):
    d, t, learn, m = made
    old, card, write = spoiled(made, tmp_path/'m')
    card['notes'] = ['the old one']
    write({**card, 'check': _check(card)})
    save(learn, old)
    assert 'the old one' not in load(old).card['notes'] and [p.name for p in tmp_path.iterdir()] == ['m']
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'letter.txt').write_text('dear')
    with pytest.raises(BadInput, match='letter.txt'): save(learn, tmp_path/'mine')
    (old/'letter.txt').write_text('dear')
    with pytest.raises(BadInput, match='letter.txt'): save(learn, old)
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'card.json').write_text('{"version": 1}')
    with pytest.raises(BadInput, match='no model'): save(learn, tmp_path/'other')
    assert (old/'letter.txt').read_text() == (tmp_path/'mine'/'letter.txt').read_text() == 'dear'
    with pytest.raises(BadInput, match='is a file'): save(learn, old/'letter.txt')
    (tmp_path/'empty').mkdir()
    assert save(learn, tmp_path/'empty').classes == m.classes

@pytest.mark.parametrize('when', ['_put', '_agree', 'replace'])
def test_whole_or_not_at_all(when, made, tmp_path, monkeypatch):
    "An error at any moment leaves the older model where it was, and nothing beside it"
    import tlcourse.model as m
    learn, (old, card, write) = made[2], spoiled(made, tmp_path/'m')
    card['notes'] = ['the old one']
    write({**card, 'check': _check(card)})
    def fail(*args): raise OSError(28, 'No space left on device')
    real = os.replace
    if when == 'replace': monkeypatch.setattr(m.os, 'replace', lambda a, b: fail() if '.new-' in str(a) else real(a, b))
    else: monkeypatch.setattr(m, when, fail)
    with pytest.raises(BadInput, match='No space left'): save(learn, old)
    monkeypatch.undo()
    assert load(old).card['notes'] == ['the old one'] and [p.name for p in tmp_path.iterdir()] == ['m']

# --- what no card can say

def test_learners_that_are_refused(made, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Resize, resnet18, vision_learner
    from torch import nn
    d, t, learn, m = made
    dls = ImageDataLoaders.from_folder(d/'pictures', valid_pct=.2, item_tfms=Resize(32), bs=4, num_workers=0)
    with pytest.raises(BadInput, match='brings pictures to size'): save(learner(dls, 'glyphnet'), tmp_path/'m')
    for o,why in ((dict(head='fastai', lin_ftrs=[7]), 'heads'), (dict(head='fastai', y_range=(0, 1)), 'cannot say')):
        with pytest.raises(BadInput, match=why): save(learner(t.dls(bs=8), 'glyphnet', **o), tmp_path/'m')
    odd = learner(t.dls(bs=8), 'glyphnet')
    with torch.no_grad(): odd.model[1][-1].weight.normal_() # A head of zeros hides what comes before it
    odd.model[0].append(nn.Sigmoid())
    with pytest.raises(BadInput, match='cannot say'): save(odd, tmp_path/'m')
    with torch.no_grad(): odd.model[1][-1].weight.fill_(float('nan'))
    with pytest.raises(BadInput, match='not numbers'): save(odd, tmp_path/'m')
    assert not list(tmp_path.iterdir())

# --- pictures

def odd_pictures(d):
    "Files that are read right, and files that are not: {name: reason or None}"
    d.mkdir()
    rng = np.random.default_rng(1)
    im = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    im.convert('CMYK').save(d/'cmyk.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6
    im.save(d/'turned.jpg', exif=exif)
    Image.fromarray(rng.integers(0, 65535, (40, 40), dtype=np.uint16)).save(d/'sixteen.png')
    im.convert('P').save(d/'palette.gif')
    Image.new('RGB', (1, 1)).save(d/'één pixel.png')
    good = [p.name for p in d.iterdir()]
    (d/'cut.png').write_bytes((d/'sixteen.png').read_bytes()[:300])
    (d/'empty.jpg').touch()
    (d/'text.jpg').write_text('hello')
    (d/'phone.heic').write_bytes(b'ftypheic')
    return {p.name: None if p.name in good
            else {'cut.png': 'truncated', 'empty.jpg': 'empty', 'text.jpg': 'not a picture',
                  'phone.heic': 'HEIC'}[p.name]
            for p in d.iterdir()}

def test_odd_pictures_one_by_one(made, tmp_path):
    want = odd_pictures(tmp_path/'odd')
    (tmp_path/'odd'/'list.csv').write_text('a,b')
    seen = []
    ps = made[3].predict([tmp_path/'odd', tmp_path/'gone.png'], top=2, on_done=seen.append)
    assert seen == ps and ps.notes == ['left alone: 1 .csv file'] and len(ps) == len(want) + 1
    for p in ps[:-1]:
        why = want[Path(p.file).name]
        assert (p.error is None) == (why is None)
        assert (why is None or why in p.error and p.label is None and p.top == [])
    assert 'No such file' in ps[-1].error and len(ps.unreadable) == 5
    assert len(ps.table) == len(ps) and 'turned.jpg' in repr(ps) and 'turned.jpg' in ps._repr_html_()

def test_a_turned_picture_is_turned(made, tmp_path):
    x = np.zeros((40, 60, 3), np.uint8)
    x[:20, :, 0] = 255
    im = Image.fromarray(x)
    exif = Image.Exif()
    exif[0x0112] = 6
    im.save(tmp_path/'a.png', exif=exif)
    im.transpose(Image.Transpose.ROTATE_270).save(tmp_path/'b.png')
    im.save(tmp_path/'c.png')
    a, b, c = (p.probability for p in made[3].predict([tmp_path/f'{o}.png' for o in 'abc']))
    assert a == pytest.approx(b, abs=1e-6) and a != pytest.approx(c, abs=1e-4)

def test_more_than_two_batches_in_order(made):
    "Pixels of many batches, with bad ones between; each answer stands at its picture's place"
    _, t, _, m = made
    x = torch.cat([t.train.x, t.valid.x])[torch.randint(0, len(t.train) + len(t.valid), (900,),
                                                        generator=torch.Generator().manual_seed(0))]
    items = [b'no picture' if i % 97 == 5 else x[i] for i in range(900)]
    ps = m.predict(items, workers=3)
    want = m.logits(x).softmax(1).max(1)
    for i,p in enumerate(ps):
        if i % 97 == 5: assert p.error and p.label is None
        else:
            assert p.label == m.classes[want.indices[i]]
            assert p.probability == pytest.approx(want.values[i].item(), abs=1e-5)

def test_at_least(made):
    d, _, _, m = made
    limit = float(np.median([p.probability for p in m.predict(d/'pictures')]))
    ps = m.predict(d/'pictures', at_least=limit, top=2)
    assert all((p.label == NONE) == (p.probability < limit) and len(p.top) == 2 for p in ps)
    assert 15 < sum(p.label == NONE for p in ps) < 25
    assert [p.label for p in m.predict(d/'pictures', at_least=ps[0].probability)][0] != NONE, (
        'at least that much is enough')
    for o in (-.1, 1.1, float('nan')):
        with pytest.raises(BadInput, match='0 to 1'): made[3].predict(made[0]/'pictures', at_least=o)
    with pytest.raises(BadInput, match='top'): made[3].predict(made[0]/'pictures', top=0)

# --- train

def test_all_but_the_test(made):
    "Training and validation pictures, each once, and no test picture"
    t = made[1]
    both = _with_validation(t)
    assert torch.equal(both.train.x, torch.cat([t.train.x, t.valid.x]))
    assert torch.equal(both.train.y, torch.cat([t.train.y, t.valid.y]))
    assert len(both.train.paths) == len(both.train) and both.openings == 0
    assert isinstance(_joined(t.train, t.valid), np.memmap), 'no copy of what lies side by side in one file'
    again = target('digits')
    assert len(_with_validation(again).train) == len(again.train) + len(again.valid)

@pytest.fixture(scope='module')
def studied(tmp_path_factory):
    "A folder with a study in its default place"
    d = tmp_path_factory.mktemp('studied')
    args = ('--shots', '2,4', '--seeds', '3', '--steps', '8', '--strategies', 'feature-extraction,fine-tuning',
            '--size', '32', '--backbone', 'glyphnet', '--json', 'c.json')
    colours(d/'pictures')
    code, out, err = run('compare', 'pictures', *args, cwd=d)
    assert code == 0, err
    return d, json.loads((d/'c.json').read_text())

def test_auto_takes_what_the_study_recommends(studied):
    d, c = studied
    code, out, err = run('train', 'pictures', '-o', 'model', '--size', 32, cwd=d)
    assert code == 0, err
    m = load(d/'model')
    pick = c['recommendation']['strategy']
    cell = next(o for o in c['cells'] if (o['strategy'], o['shots']) == (pick, 4))
    a = m.card['accuracy']
    assert (m.card['strategy'], m.card['backbone'], m.size) == (pick, 'glyphnet', 32)
    assert (a['value'], a['n'], a['interval']) == (cell['mean'], cell['n_test'], [cell['low'], cell['high']])
    assert a['of'] == 'models trained the same way on the training part alone; the arm was chosen among 2 on this test'
    r = next(o for o in c['rates'] if (o['strategy'], o['shots']) == (pick, 4))
    rates = m.card['rates']
    assert rates[r['knob']] == r['rate'] and 'chosen on validation pictures' in rates['chosen']
    assert m.card['weights']['pretrained'].startswith('sha256:')
    assert rates.get('steps') == (None if r['knob'] == 'wd' else 80), 'a head that is fitted to its end has no steps'
    assert sum(m.card['trained_on']['counts'].values()) == 32 and pick in out and 'wrote model' in out
    assert m.card['licences']['pretrained weights'] == 'Apache-2.0'

def test_the_test_stays_sealed(studied, tmp_path):
    t = target(studied[0]/'pictures', size=32)
    m = train(t, tmp_path/'m', study=next((studied[0]/'tlcourse-out').iterdir()), say=None)
    assert t.openings == 0 and m.card['accuracy']['n'] == len(t.test)

def test_moved_pictures_find_their_study(studied, tmp_path):
    "By the pixels, not by the name: from another working directory with --study, and under another name"
    d, c = studied
    shutil.copytree(d/'pictures', tmp_path/'elsewhere')
    study = next((d/'tlcourse-out').iterdir())
    train(tmp_path/'elsewhere', tmp_path/'model', size=32, study=study, say=None)
    assert load(tmp_path/'model').card['accuracy']['n'] == c['cells'][0]['n_test']
    Image.new('RGB', (40, 40), 'red').save(tmp_path/'elsewhere'/'red'/'new.png')
    with pytest.raises(BadInput, match='no finished study of these pictures'):
        train(tmp_path/'elsewhere', tmp_path/'model', size=32, study=study)
    assert load(tmp_path/'model').card['accuracy']['n'] == c['cells'][0]['n_test']

def test_a_named_strategy(studied, tmp_path):
    d, c = studied
    other = next(s for s in ('feature-extraction', 'fine-tuning') if s != c['recommendation']['strategy'])
    m = train(target(d/'pictures', size=32), tmp_path/'m', strategy=other, study=next((d/'tlcourse-out').iterdir()),
              say=None)
    assert m.card['strategy'] == other
    assert m.card['accuracy']['of'].endswith('the arm was named, not chosen on this test')
    r = next(o for o in c['rates'] if (o['strategy'], o['shots']) == (other, 4))
    assert m.card['rates'][r['knob']] == r['rate']
    assert m.card['rates'].get('steps') == (None if r['knob'] == 'wd' else 80)
    m = train(target(d/'pictures', size=32), tmp_path/'m', strategy='single-rate', backbone='glyphnet', say=None)
    assert m.card['accuracy'] is None and m.card['rates']['lr'] == STRATEGIES['single-rate'].rate
    assert 'not chosen' in m.card['rates']['chosen']

def test_without_a_study_compare_runs_first(tmp_path, monkeypatch):
    "Said, with its defaults, into the folder where the command would look for it"
    import tlcourse.model as m
    monkeypatch.chdir(tmp_path)
    colours(tmp_path/'p')
    seen, lines = {}, []
    def small(t, a, out, **kw):
        seen.update(out=out, kw=kw)
        return compare(t, a, strategies='feature-extraction,fine-tuning', shots=2, seeds=3, steps=4, tune='none',
                       workers=1, out=out, **kw)
    monkeypatch.setattr(m, 'compare', small)
    first = train('p', tmp_path/'m', size=32, backbone='glyphnet', say=lines.append)
    assert set(seen['kw']) == {'device', 'say'} and seen['out'] == m.default_out(task('p', 'glyphnet', 32), 'p')
    assert any('compare runs first' in o for o in lines) and first.card['accuracy']['labels'] == 2
    assert (seen['out']/'report.html').is_file()
    seen.clear()
    again = train('p', tmp_path/'m', size=32, backbone='glyphnet', say=None)
    assert not seen and again.card['accuracy'] == first.card['accuracy']

def test_what_train_refuses(made, tmp_path):
    d = made[0]
    for kw,why in ((dict(strategy='fine-tunning'), 'did you mean'), (dict(out=d/'pictures'/'model'), 'lies inside'),
                   (dict(device='cuda:77'), 'CUDA'), (dict(study=tmp_path), 'no records.db'),
                   (dict(backbone='glyphnett'), 'did you mean')):
        with pytest.raises(BadInput, match=why):
            train(d/'pictures', **dict(dict(out=tmp_path/'m', size=32, say=None), **kw))
    assert not (tmp_path/'m').exists() and not (d/'pictures'/'model').exists()

def test_licences_go_with_the_model(made, tmp_path):
    t, a = made[1], arch('tf_efficientnet_lite0')
    assert _licences(t, a, True) == {'pictures': 'not stated', 'pretrained weights': 'Apache-2.0'}
    assert 'pretrained weights' not in _licences(t, a, False)
    assert 'CC BY-SA 4.0' in _licences(target('emoji'), a, True)['pictures']
    colours(tmp_path/'p', 4)
    (tmp_path/'p'/'ATTRIBUTION.txt').write_text('drawn by\nsomebody')
    assert _licences(target(tmp_path/'p', size=32), a, True)['pictures'] == 'drawn by somebody'

def test_a_readers_own_strategy(made, tmp_path):
    from tlcourse.strategy import strategy
    def mine(dls, backbone, epochs, steps, lr, seed):
        learn = learner(dls, backbone)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, lr)
        return learn
    try:
        strategy(rate=1e-2, name='mine')(mine)
        assert train(made[1], tmp_path/'m', strategy='mine', backbone='glyphnet', say=None).card['strategy'] == 'mine'
    finally: STRATEGIES.pop('mine')

# --- the command

def test_predict_command(made, tmp_path):
    d = made[0]
    odd_pictures(tmp_path/'odd')
    name = tmp_path/'odd'/'a\n\x1b[31m\u202eb.png'
    shutil.copy(d/'pictures'/'red'/'00.png', name)
    code, out, err = run('predict', d/'model', tmp_path/'odd', d/'pictures'/'red'/'01.png', '--top', 2, '--json',
                         tmp_path/'p.json', by=[sys.executable]) # a real start
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 8 and all(len(o.split('\t')) == 4 for o in lines[:-1]) and '\x1b' not in out + err
    assert '\u202e' not in out
    assert r'a\n\x1b[31m\u202eb.png' in out and [l for l in lines if '01.png' in l and l.split('\t')[1] == 'red']
    assert '4 of 11 could not be read' in err and len(err.splitlines()) == 5
    got = json.loads((tmp_path/'p.json').read_text())['predictions']
    assert len(got) == 11 and sum(p['error'] is not None for p in got) == 4 and {p['file'] for p in got} >= {str(name)}
    assert all({'file', 'class', 'probability', 'top', 'error'} == set(p) for p in got)

def test_predict_exit_codes(made, tmp_path, capsys):
    d = made[0]
    def predict(*args):
        code = main(['predict', *map(str, args)])
        return code, *capsys.readouterr()
    (tmp_path/'bad.png').write_text('x')
    code, out, err = predict(d/'model', tmp_path/'bad.png', tmp_path/'gone.png', '--csv', tmp_path/'p.csv')
    assert code == 1 and 'not a picture' in err and 'No such file' in err
    assert (tmp_path/'p.csv').read_text().splitlines()[0] == 'file,class,probability,error'
    code, out, err = predict(d/'model', tmp_path/'bad.png', d/'pictures'/'red'/'00.png', '--csv', tmp_path/'p.csv',
                             '--at-least', '.9999', '--top', '2')
    assert code == 0 and f'\t{NONE}\t' in out
    head, bad, good = (tmp_path/'p.csv').read_text().splitlines()
    assert head == 'file,class,probability,class 2,probability 2,error'
    assert bad.endswith('not a picture that can be read') and f',{NONE},' in good
    (tmp_path/'no').mkdir()
    assert predict(d/'model', tmp_path/'no')[0] == 1
    for args,why in (((tmp_path/'no', tmp_path/'bad.png'), 'no card.json'),
                     ((d/'model', tmp_path/'bad.png', '--at-least', '7'), '0 to 1'),
                     ((d/'model', tmp_path/'bad.png', '--json', tmp_path/'a'/'b.json'), 'make it first'),
                     ((d/'model', tmp_path/'bad.png', '--csv', tmp_path), 'is a folder'),
                     ((d/'model', tmp_path/'bad.png', '--device', 'cuda:77'), 'CUDA')):
        code, out, err = predict(*args)
        assert code == 2 and why in err and err.count('\n') == 1 and not out, err

def test_a_reader_who_left(made):
    "As in `tlcourse predict ... | head`: no traceback"
    r, w = os.pipe()
    os.close(r)
    p = subprocess.run([sys.executable, *command, 'predict', str(made[0]/'model'), str(made[0]/'pictures')], stdout=w,
                       stderr=subprocess.PIPE, text=True)
    os.close(w)
    assert (p.returncode, p.stderr) == (141, '')

@pytest.mark.assets
def test_real_photos(tmp_path):
    "Ants and bees with ImageNet weights: far better than chance on pictures that were not trained on"
    p = photo_assets()/'data'/'ants_bees'
    m = train(p, tmp_path/'m', strategy='feature-extraction', size=64, say=None)
    t = target(p, size=64)
    ps = m.predict(t._test_arrays[0])
    assert np.mean([p.label == m.classes[y] for p,y in zip(ps, t._test_arrays[1])]) > .7
