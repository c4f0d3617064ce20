"A look at a folder: what compare would read, the harm in it first, in one safe page; nothing is trained."
import json, os, re
import numpy as np
import pytest
from PIL import Image
from tlcourse.base import BadInput
from tlcourse.cli import main
from tlcourse.compare import compare
from tlcourse.data import target
from tlcourse.look import look_at, look_html, write_look
from test_folders import picture, plant, several
from test_pictures import folder
from test_report import Page

@pytest.fixture(autouse=True)
def here(tmp_path_factory, monkeypatch):
    "A cache and a working folder of its own"
    d = tmp_path_factory.mktemp('here')
    monkeypatch.setenv('TLCOURSE_CACHE', str(d/'cache'))
    monkeypatch.chdir(d)
    return d

def screen(capsys, *args, code=0):
    "What a command printed, as lines"
    assert main(['look', *map(str, args)]) == code
    out = capsys.readouterr()
    return (out.err if code else out.out).splitlines()

def pics(root, n=8): return plant(root, *several('cat', 'dog', n=n))

def test_a_clean_folder(tmp_path, capsys):
    said = screen(capsys, pics(tmp_path/'pets'))
    assert said[0] == 'Nothing stands out.'
    assert said[1] == 'pets: 2 classes (training/validation/test pictures): cat 4/2/2, dog 4/2/2.'
    assert said[-2] == 'read as 128 x 128 pixels (short side, centre), values 0 to 255, no groups'
    assert re.match(r'wrote tlcourse-out.look-pets-\w{6}.html', said[-1])

def test_a_conflict_comes_first(tmp_path, capsys):
    root = folder(tmp_path/'pets')
    (root/'train/cat/again.png').write_bytes((root/'train/dog/2.png').read_bytes())
    Image.new('L', (40,40), 7).save(root/'train/cat/flat.png')
    (root/'train/cat/cut.png').write_bytes(b'\x89PNG')
    said = screen(capsys, root, '--json', 'look.json', '-o', 'look.html')
    assert said[0] == ('Look first at 1 pair under two labels, 1 file that cannot be used and '
                       '1 picture with nothing to see.')
    assert said[2].startswith('under two labels, 1 pair of one picture')
    assert 'train/cat/again.png (cat) = train/dog/2.png (dog)' in said[3]
    page, data = open('look.html', encoding='utf-8').read(), json.load(open('look.json'))
    ids = re.findall(r'<h2 id="(\w+)"', page)
    assert ids == ['conflicts', 'odd', 'skipped', 'classes', 'read', 'sheets']
    assert page.index('again.png') < page.index('flat.png')
    assert data['findings'][0] == '1 pair under two labels' and data['conflicts'][0]['file'] == 'train/cat/again.png'
    assert data['skipped'] == [dict(file='train/cat/cut.png', reason=data['skipped'][0]['reason'])]
    assert data['parts']['cat'] == [8,6,6]

def test_near_copies_within_a_class_and_across_parts(tmp_path):
    root = folder(tmp_path/'pets')
    Image.open(root/'train/cat/1.png').resize((90,75)).save(root/'train/cat/near.jpg', quality=70)
    found = look_at(root)
    assert found.lines()[0] == 'Look first at 1 copy or near-copy within a class.'
    assert 'groups' not in str(found.target.report)
    assert (found.to_dict()['alike']
            == [dict(count=2, files=[dict(file=f'train/cat/{f}', part='train') for f in ('1.png', 'near.jpg')])])
    Image.open(root/'train/dog/1.png').resize((90,75)).save(root/'test/dog/near.jpg', quality=70)
    found = look_at(root)
    assert found.lines()[0].startswith('Look first at 1 copy of pictures of another part')
    # I11
    assert any('say which pictures belong together with groups (--groups in the command line)' in o
               for o in found.lines())
    assert 'near.jpg (<b><bdi>test</bdi></b>)' in look_html(found).replace('<bdi>test/dog/near.jpg</bdi>', 'near.jpg')

@pytest.mark.parametrize('value,kind',
                         [(7, 'almost black'), (250, 'almost white'), (120, 'almost no contrast'),
                          ((200,0,0), 'almost no contrast')])
def test_pictures_with_nothing_to_see(tmp_path, value, kind):
    root = pics(tmp_path/'pets')
    a = np.full((40,40,3), value, np.uint8)
    a[3,:7] = 140 # Some dust changes nothing
    Image.fromarray(a).save(root/'cat/odd.png')
    r = look_at(root).target.report
    assert [(o[0], o[2]) for o in r.odd] == [('cat/odd.png', kind)]
    assert any(kind in o and 'odd.png' in o for o in r.notes)

def test_dark_pictures_that_show_something_are_no_finding(tmp_path):
    root = pics(tmp_path/'pets')
    Image.fromarray(np.asarray(picture(99))//4).save(root/'cat/night.png')
    assert look_at(root).target.report.odd == []

def test_a_split_is_read_as_one_and_two_ways_are_refused(tmp_path, capsys):
    tops = several('training_set/cats', 'training_set/dogs', 'test_set/cats', 'test_set/dogs', n=5)
    assert 'cats 4/1/5, dogs 4/1/5' in screen(capsys, plant(tmp_path/'a', *tops))[1]
    said = screen(capsys, plant(tmp_path/'b', *several('x/cats', 'x/dogs', 'y/cats', 'y/dogs')), code=2)
    assert len(said) == 1 and 'two ways' in said[0]

def test_what_the_crop_takes_away(tmp_path):
    for c in ('cat', 'dog'):
        for i in range(6):
            (tmp_path/'long'/c).mkdir(parents=True, exist_ok=True)
            picture(i + 50*(c == 'dog')).resize((160, 40)).save(tmp_path/'long'/c/f'{i}.png')
    found = look_at(tmp_path/'long')
    assert found.to_dict()['cut'] == dict(mean=.75, most=.75, over_a_third=12)
    assert found.lines()[0] == 'Look first at 12 long pictures that the crop cuts by more than a third.'
    assert 'leaves 75% of a picture away' in found.lines()[-1]
    assert look_at(tmp_path/'long', fit='pad').lines()[0] == 'Nothing stands out.'

def test_groups_and_small_classes(tmp_path):
    files = [f'{c}/p{i}_{j}.png' for c in ('cat', 'dog') for i in range(6) for j in range(2)]
    root = plant(tmp_path/'pets', *files, 'emu/1.png')
    found = look_at(root, groups=r'^(p\d)', min_class=3)
    assert found.to_dict()['groups'] == 6 and found.lines()[-1].endswith('6 groups')
    assert any("'emu' (1 picture)" in o for o in found.lines())

HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', 'esc\x1b[31m\rname', 'line\nbreak',
           '\u202etxt.elif', '{title}%s']

def test_hostile_names(tmp_path, capsys):
    root = tmp_path/'<b>my pets'
    for j,c in enumerate(HOSTILE):
        (root/c.replace('/', ' ')).mkdir(parents=True)
        for i in range(4): picture(10*j + i).save(root/c.replace('/', ' ')/f"{i} {c.replace('/', ' ')}.png")
    first = root/HOSTILE[1]
    Image.new('L', (40,40)).save(first/f'{HOSTILE[2]}.png')
    (first/'empty <i>.png').touch()
    picture(98).save(first/'x.png')
    os.rename(first/'x.png', os.fsencode(first) + b'/no utf-8 \xff.png')
    (root/HOSTILE[5]/'again <u>.png').write_bytes((first/f'0 {HOSTILE[1]}.png').read_bytes())
    assert main(['look', str(root), '-o', 'look.html', '--json', 'look.json']) == 0
    said = capsys.readouterr().out
    assert all(o.isprintable() for o in said.split('\n')) and 'under two labels' in said
    text = open('look.html', encoding='utf-8').read()
    p = Page(text)
    assert not {t for t,_ in p.tags} & {'script', 'b-', 'u', 'i', 'iframe', 'object', 'embed', 'base', 'link'}
    assert not [a for _,a in p.tags if any(k.startswith('on') for k in a)]
    assert all(r.startswith(('#', 'data:image/')) for r in p.refs)
    assert '\x1b' not in text and '&lt;script&gt;' in text and all(a['alt'] for t,a in p.tags if t == 'img')
    csp = next(a['content'] for t,a in p.tags if t == 'meta' and a.get('http-equiv') == 'Content-Security-Policy')
    assert csp.startswith("default-src 'none'; img-src data:;") and 'script' not in csp
    assert set(json.load(open('look.json'))['parts']) == {c.replace('/', ' ') for c in HOSTILE}

def test_two_thousand_pictures(tmp_path):
    rng = np.random.RandomState(0)
    for c in ('a', 'b', 'c', 'd'):
        (tmp_path/'many'/c).mkdir(parents=True)
        for i in range(500):
            x = rng.randint(0, 255, (3,4,3)).astype(np.uint8)
            Image.fromarray(x).resize((32,24), Image.Resampling.BICUBIC).save(tmp_path/'many'/c/f'{i}.png')
    found = look_at(tmp_path/'many')
    assert [sum(n) for n in found.target.counts.values()] == [500]*4 and found.target.openings == 0
    text = look_html(found)
    assert text.count('<img') == 4*12 and len(text) < 2e6

def test_it_says_what_compare_reads(tmp_path):
    root = folder(tmp_path/'pets', n=7)
    (root/'train/cat/again.png').write_bytes((root/'train/dog/2.png').read_bytes())
    (root/'valid/cat/none.png').touch()
    mine = json.loads(json.dumps(look_at(root, size=32).to_dict()))
    c = compare(target(root, size=32), 'glyphnet', 'feature-extraction', 1, budget=None, workers=1, device='cpu',
                out=tmp_path/'out', say=None)
    theirs = json.loads(json.dumps(c.to_dict()))
    same = set(mine) & set(theirs) - {'notes', 'versions'}
    assert same >= {'classes', 'parts', 'range', 'fit', 'cut', 'groups', 'skipped', 'conflicts', 'copies', 'alike',
                    'odd'}
    assert {k: mine[k] for k in same} == {k: theirs[k] for k in same} and set(mine['notes']) <= set(theirs['notes'])

def test_nothing_of_others_is_replaced(tmp_path, capsys):
    a, b = pics(tmp_path/'a'), pics(tmp_path/'b')
    page = write_look(look_at(a), 'look.html')
    before = page.read_bytes()
    assert ([o for o in screen(capsys, b, '-o', 'look.html', code=2)]
            == ['tlcourse: look.html is there and no page of look on this '
                'folder: name another file'] and page.read_bytes() == before)
    open('mine.html', 'w').write('<!-- mine -->')
    assert len(screen(capsys, a, '-o', 'mine.html', code=2)) == 1 and open('mine.html').read() == '<!-- mine -->'
    picture(77).save(a/'cat/new.png')
    screen(capsys, a, '-o', 'look.html') # Its own is
    assert b'new.png' in page.read_bytes() and page.read_bytes() != before
    screen(capsys, a); screen(capsys, a); screen(capsys, b)
    assert len(os.listdir('tlcourse-out')) == 2

@pytest.mark.parametrize('args,words', [
    (['nowhere'], 'there is no folder'), (['pets'], 'two ways'), (['digits'], 'give look a folder'),
    (['mine', '--groups', '('], 'neither a column'),
    (['mine', '--min-class', '99'], 'smaller min_class'), (['mine', '-o', 'mine'], 'is a folder'),
    (['mine', '-o', 'no/look.html'], 'make it first'),
    (['mine', '--json', 'a.html', '-o', 'a.html'], 'name two'), (['mine/cat/0.png'], 'is a file'),
    (['mine/cat'], 'no class folders')])
def test_bad_input_is_one_sentence(here, capsys, args, words):
    pics(here/'mine'); pics(here/'pets')
    said = screen(capsys, *args, code=2)
    assert len(said) == 1 and words in said[0] and not os.path.exists('tlcourse-out')

def test_a_class_that_cannot_be_split_is_named(tmp_path):
    with pytest.raises(BadInput, match="class 'emu' has 2 pictures"):
        look_at(plant(tmp_path/'pets', *several('cat', 'dog', n=6), *several('emu', n=2)))
