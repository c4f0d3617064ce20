"Folders as people have them: read as they are meant, with every guess said, or refused in one sentence."
import os, unicodedata
from collections import Counter
import numpy as np
import pytest
from PIL import Image
from tlcourse.base import BadInput
from tlcourse.cli import main
from tlcourse.data import target
from tlcourse.folders import _part_of, list_folder

@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch): monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path_factory.mktemp('cache')))

def picture(seed): return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (5,6,3)).astype(np.uint8)).resize((40,40), Image.Resampling.BICUBIC)

def plant(root, *files):
    "Each file a picture like no other; what has no picture's ending holds a word"
    for i,f in enumerate(files):
        p = root/f
        p.parent.mkdir(parents=True, exist_ok=True)
        if p.suffix in ('.png', '.jpg'): picture(i).save(p)
        else: p.write_text('a word')
    return root

def several(*dirs, n=3): return [f'{d}/{i}.png' for d in dirs for i in range(n)]

def read(root, **kw):
    rows, notes = list_folder(root, **kw)
    return dict(Counter((r.part, r.label) for r in rows)), ' | '.join(notes)

def both(parts, classes=('cats','dogs'), n=3): return {(p, c): n for p in parts for c in classes}

def refused(root, *words, **kw):
    with pytest.raises(BadInput) as e: list_folder(root, **kw)
    s = str(e.value)
    assert '\n' not in s and all(w in s for w in words), s

# I1: parts are no classes

@pytest.mark.parametrize('train,test', [('training_set','test_set'), ('Training Set','Test Set'), ('train-images','test-images'), ('TRAIN','TEST'), ('trainset','testset'),
                                        ('train_data','val_data'), ('Train (2)','Validation'), ('data train','data test'), ('seg_train','seg_test'), ('pets_training','pets_testing')])
def test_a_split_is_no_pair_of_classes(tmp_path, train, test):
    got, said = read(plant(tmp_path, *several(f'{train}/cats', f'{train}/dogs', f'{test}/cats', f'{test}/dogs')))
    part = 'valid' if 'val' in test.lower() else 'test'
    assert got == both(('train', part)) and f'{train}/ is read as train/' in said and f'{test}/ is read as {part}/' in said

def test_the_command_says_the_classes(tmp_path, capsys):
    root = plant(tmp_path/'split', *several('training_set/cats', 'training_set/dogs', 'test_set/cats', 'test_set/dogs', n=8))
    t = target(root, size=32)
    assert t.classes == ['cats', 'dogs'] and t.counts == {'cats': [6,2,8], 'dogs': [6,2,8]}
    assert t.lines()[0] == 'split: 2 classes (training/validation/test pictures): cats 6/2/8, dogs 6/2/8.'

@pytest.mark.parametrize('tops', [('a','b'), ('fold1','fold2'), ('2019','2020','2021'), ('train_test','other')])
def test_two_ways_to_read_a_folder_are_refused(tmp_path, tops):
    refused(plant(tmp_path, *several(*(f'{t}/{c}' for t in tops for c in ('cats','dogs')))), 'two ways', 'cats, dogs', f'{tops[0]!r}')

def test_classes_with_folders_of_their_own_are_classes(tmp_path):
    assert read(plant(tmp_path/'a', *several('cats/siamese', 'cats/manx', 'dogs/boxer', 'dogs/pug')))[0] == both((None,), n=6)
    assert read(plant(tmp_path/'b', *several('cats/siamese', 'cats/other', 'dogs/boxer', 'dogs/other')))[0] == both((None,), n=6)
    assert read(plant(tmp_path/'c', *several('cats', 'cats/more', 'dogs/more', 'dogs')))[0] == both((None,), n=6)

def test_parts_below_the_classes(tmp_path):
    got, said = read(plant(tmp_path, *several('cats/train', 'cats/Test Set', 'dogs/train', 'dogs/Test Set')))
    assert got == both(('train','test')) and 'each class has its parts in it' in said

def test_a_wrapper_is_entered_and_said(tmp_path):
    got, said = read(plant(tmp_path/'a', *several('PetImages/cats', 'PetImages/dogs'), '__MACOSX/x.txt', 'readme.md'))
    assert got == both((None,)) and 'PetImages/ is all that a/ holds' in said
    assert read(plant(tmp_path/'b', *several('x/y/train/cats', 'x/y/train/dogs', 'x/y/val/cats', 'x/y/val/dogs')))[0] == both(('train','valid'))
    got, said = read(plant(tmp_path/'c', *several(*(f'seg_{p}/seg_{p}/{c}' for p in ('train','test') for c in ('cats','dogs')))))
    assert got == both(('train','test')) and 'seg_train/seg_train/ is all' in said

def test_a_class_may_be_called_train(tmp_path):
    got, said = read(plant(tmp_path, *several('bus', 'car', 'train')))
    assert got == both((None,), ('bus','car','train')) and 'train/ holds pictures itself' in said
    refused(plant(tmp_path/'b', *several('cats', 'dogs', 'test')), 'test beside cats, dogs')

def test_what_lies_beside_the_parts_is_named_with_its_pictures(tmp_path):
    said = read(plant(tmp_path, *several('train/cats', 'train/dogs', 'single_prediction')))[1]
    assert 'single_prediction/ lies beside train/ and was left alone with its 3 pictures' in said

def test_names_of_parts():
    assert [_part_of(o) for o in ('Validation', 'validation-set', 'testing images', 'training', 'best', 'constraint', 'values', 'latest')] == ['valid','valid','test','train'] + [None]*4

# I5: nothing is dropped without a word

def test_links_are_followed_and_circles_end(tmp_path):
    root = plant(tmp_path/'pets', *several('cats', 'dogs'))
    plant(tmp_path/'elsewhere', *several('more'))
    try:
        (root/'cats'/'more').symlink_to(tmp_path/'elsewhere'/'more', target_is_directory=True)
        (root/'dogs'/'again').symlink_to(root/'dogs', target_is_directory=True)
    except OSError: pytest.skip('no links on this system')
    got, said = read(root)
    assert got == {(None,'cats'): 6, (None,'dogs'): 3} and '1 linked again' in said

def test_hidden_folders_with_pictures_are_named(tmp_path):
    got, said = read(plant(tmp_path, *several('cats', 'dogs', '.birds', 'cats/.more', 'dogs/__old', n=2), '.git/config'))
    assert got == both((None,), n=2)
    for o in ('.birds/', '.more/', '__old/'): assert f'2 pictures in {o}' in said, said
    assert '.git' not in said

# I8: a test without labels

@pytest.mark.parametrize('files', [several('test'), several('test/unknown'), several('test/test')])
def test_an_unlabelled_test_is_left_alone(tmp_path, files):
    got, said = read(plant(tmp_path, *several('train/ok', 'train/nok'), *files))
    assert got == both(('train',), ('ok','nok')) and 'test/ holds 3 pictures in no class folders and was left alone' in said and 'predict' in said

# I9: tables of labels

def table(root, name, text, files=several('img', n=6)):
    plant(root, *files)
    (root/name).write_bytes(text if isinstance(text, bytes) else text.encode('utf-8-sig'))
    return root

def lines(form, n=6): return ''.join(form.format(i=i, c='cats' if i%2 else 'dogs', p='train' if i < 4 else 'test') + '\n' for i in range(n))

@pytest.mark.parametrize('name,text,said', [
    ('train.csv', 'id,breed\n' + lines('{i},{c}'), "pictures by 'id', classes by 'breed'"),
    ('labels.csv', 'image,width,label\n' + lines('{i}.png,40{i},{c}'), "classes by 'label'"),
    ('list.tsv', 'file\tkind\tset\n' + lines('img/{i}.png\t{c}\t{p}'), "classes by 'kind', parts by 'set'"),
    ('split.csv', 'Path;Label;Split\n' + lines('img\\{i}.png; {c} ;{p}') + ';;\n\n', "pictures by 'Path'"),
    ('split.csv', 'path, label\n' + lines('img/{i}.png, {c}') + '\n', "pictures by 'path', classes by 'label'"),
    ('split.csv', 'label,split,path\n' + ''.join(f'{"cats" if i%2 else "dogs"},{"Train" if i < 4 else "TEST"},./img/{i}.png\n' for i in range(6)), ''),
    ('split.csv', 'path,label,is_valid\n' + ''.join(f'img/{i}.png,{"cats" if i%2 else "dogs"},{i > 3}\n' for i in range(6)), "parts by 'is_valid'"),
    ('truth.csv', 'image,cats,dogs\n' + ''.join(f'{i},{i%2}.0,{(i+1)%2}.0\n' for i in range(6)), 'classes by the columns cats, dogs'),
    ('a b.csv', 'id,breed,\n' + lines('{i},{c},'), "classes by 'breed'")])
def test_a_table_of_labels(tmp_path, name, text, said):
    root = table(tmp_path, name, text)
    rows, notes = list_folder(root)
    assert [(r.path.relative_to(root).as_posix(), r.label) for r in rows] == [(f'img/{i}.png', 'cats' if i%2 else 'dogs') for i in range(6)]
    assert said in ' | '.join(notes)
    if 'parts by' in said or 'TEST' in text: assert [r.part for r in rows] == ['train']*4 + ['valid' if 'is_valid' in said else 'test']*2

def test_kaggle(tmp_path):
    plant(tmp_path, *several('train', n=6), 'test/6.png', 'test/7.png')
    (tmp_path/'train.csv').write_text('id,label\n' + lines('{i},{c}'))
    (tmp_path/'sample_submission.csv').write_text('id,label\n6,cats\n7,cats\n')
    got, said = read(tmp_path)
    assert got == both((None,)) and 'left alone: 2 pictures that train.csv does not name' in said

def test_a_table_for_each_part(tmp_path):
    plant(tmp_path, *several('img', n=6))
    (tmp_path/'train.csv').write_text('id,label\n' + lines('{i},{c}', 4))
    (tmp_path/'test.csv').write_text('id,label\n4,dogs\n5,cats\n')
    assert read(tmp_path)[0] == {('train','cats'): 2, ('train','dogs'): 2, ('test','cats'): 1, ('test','dogs'): 1}
    (tmp_path/'more.csv').write_text('id,label\n' + lines('{i},{c}', 4))
    refused(tmp_path, 'several tables of labels', 'split.csv')

def test_tables_that_cannot_be_read(tmp_path):
    refused(table(tmp_path/'a', 'train.csv', 'id,kind,colour\n' + lines('{i},{c},{p}x')), "no column 'label'", "'kind' or 'colour' could be it")
    refused(table(tmp_path/'b', 'train.csv', 'id,breed\n' + lines('{i}0,{c}')), 'none that names the pictures')
    refused(table(tmp_path/'c', 'train.csv', 'id,breed\n' + lines('{i},{c}') + '99,cats\n'), '1 file that is not there', "'99'")
    refused(table(tmp_path/'d', 'train.csv', b'id,breed\n\xff\xfe\n'), 'UTF-8')
    refused(table(tmp_path/'e', 'train.csv', 'id,breed\n1,cats,9,9\n2,dogs\n1,2,3,4,5,6\n'), 'train.csv')
    refused(table(tmp_path/'f', 'split.csv', b''), 'split.csv')

def test_folders_win_over_a_table(tmp_path):
    root = table(tmp_path, 'extra.csv', 'id,age\n1,2\n', several('cats', 'dogs'))
    got, said = read(root)
    assert got == both((None,)) and 'extra.csv was not read' in said

# I10: true sentences

def test_what_a_folder_holds_is_said(tmp_path):
    refused(plant(tmp_path/'dcm', 'a/1.dcm', 'a/2.dcm', 'b/1.dcm'), 'holds 2 .dcm files', 'JPEG or PNG')
    refused(plant(tmp_path/'npy', '1.npy', '2.npy'), 'holds 2 .npy files')
    refused(plant(tmp_path/'bare', 'a/1', 'b/2'), 'holds 1 file without an ending')
    refused(tmp_path/'npy', 'class folders')

def test_one_name_in_two_unicode_forms(tmp_path):
    one, two = (unicodedata.normalize(k, 'Café') for k in ('NFC', 'NFD'))
    got, _ = read(plant(tmp_path/'a', *several(f'train/{one}', 'train/Tee', f'test/{two}', 'test/Tee')))
    assert got == both(('train','test'), (one, 'Tee'))
    root = table(tmp_path/'b', 'split.csv', f'path,label\n{two}/1.png,a\n{two}/0.png,b\n', several(one, n=2))
    assert read(root)[0] == {(None,'a'): 1, (None,'b'): 1}

# I11: groups

def patients(root, pattern='{c}/p{p:02}_slice{i}.png'):
    return plant(root, *(pattern.format(c='ill' if p < 6 else 'well', p=p, i=i) for p in range(12) for i in range(5)))

def spread(t, of): # group -> parts
    res = {}
    for name,part in (('train',t.train), ('valid',t.valid)):
        for p in part.paths: res.setdefault(of(p), set()).add(name)
    return res

def test_a_group_stays_in_one_part(tmp_path):
    root = patients(tmp_path)
    for seed in range(5):
        t = target(root, size=32, groups=r'^(p\d+)_', seed=seed)
        where = spread(t, lambda p: p.name[:3])
        assert all(len(v) == 1 for v in where.values()) and len(where) <= 10, where # Two patients at least are in the test, whole
        assert t.counts == {'ill': [20,5,5], 'well': [20,5,5]}, t.counts
        assert any('12 groups' in o and 'stay in one part' in o for o in t.report.notes)
    t = target(root, size=32)
    assert any(len(v) > 1 for v in spread(t, lambda p: p.name[:3]).values())
    advice = [o for o in t.report.notes if 'groups' in o]
    assert len(advice) == 1 and r"'^([^_ .-]*\d[^_ .-]*)[_ -]'" in advice[0] and '--groups' in advice[0]
    again = target(root, size=32, groups=r'^([^_ .-]*\d[^_ .-]*)[_ -]') # The advice, taken
    assert not [o for o in again.report.notes if 'begin alike' in o] and again.counts == {'ill': [20,5,5], 'well': [20,5,5]}

def test_groups_across_classes_and_of_unlike_sizes(tmp_path):
    root = plant(tmp_path, *(f'{c}/p{p}_{i}.png' for p in range(8) for c in ('ill','well') for i in range(1 + p)))
    for seed in range(5):
        t = target(root, size=32, groups=r'^p\d', seed=seed)
        assert all(len(v) == 1 for v in spread(t, lambda p: p.name[:2]).values())
        assert all(min(n) > 0 for n in t.counts.values())

def test_groups_by_a_column_and_by_the_path(tmp_path):
    root = table(tmp_path/'a', 'split.csv', 'path,label,Patient\n' + ''.join(f'img/{i}.png,{"ab"[i%2]},{i//4}\n' for i in range(24)), several('img', n=24))
    t = target(root, size=32, groups='patient')
    assert all(len(v) == 1 for v in spread(t, lambda p: int(p.stem)//4).values()) and any('6 groups' in o for o in t.report.notes)
    root = plant(tmp_path/'b', *several(*(f'{c}/s{j}' for c in ('cats','dogs') for j in range(4)), n=2))
    (root/'cats'/'0.png').write_bytes((root/'cats'/'s0'/'0.png').read_bytes())
    assert {r.group for r in list_folder(root, groups=r'/(s\d|0)')[0]} >= {'s0','s1','s2','s3'}

def test_groups_that_cannot_be(tmp_path):
    root = patients(tmp_path)
    refused(root, 'matches 50 of 60', groups='p0')
    refused(root, 'neither a column', groups='(')
    refused(root, '1 group', groups='slice')
    for f in [*(root/'ill').iterdir()]: f.rename(root/'ill'/f'q_{f.name}') # All that are ill are one group
    with pytest.raises(BadInput, match="class 'ill' has pictures of 1 group, too few to be in 3 parts"): target(root, size=32, groups='^q|^p..')
    with pytest.raises(BadInput, match='comes with its classes'): target('digits', groups='x')

def test_a_split_that_tears_groups_is_reported(tmp_path):
    root = plant(tmp_path, *(f'{"test" if i > 2 else "train"}/{c}/{c}{p}_{i}.png' for c in 'ab' for p in range(4) for i in range(4)))
    said = str(target(root, size=32, groups=r'^[ab]\d').report)
    assert "8 groups lie in more than one part as the folder was split before, the first is 'a0'" in said
    assert 'begin alike and lie in several parts' in str(target(root, size=32).report)

def test_plain_names_call_for_no_groups(tmp_path):
    for form in ('{c}_{i:03}.png', 'IMG_{i}.png', '{i}.png', '{i}-{c}-x.png'):
        assert 'begin alike' not in str(target(plant(tmp_path/form[:3].strip('{'), *(f'{c}/{form}'.format(c=c, i=i + 20*(c == 'b')) for c in 'ab' for i in range(20))), size=32).report)

# I15: small classes

def test_small_classes_are_left_out_by_name(tmp_path):
    root = plant(tmp_path, *several('a', 'b', n=8), *several('c', n=3))
    assert target(root, size=32).classes == ['a','b','c']
    t = target(root, size=32, min_class=5)
    assert t.classes == ['a','b'] and any("left out" in o and "'c' (3 pictures)" in o for o in t.report.notes)
    refused(root, 'no class', min_class=9)
    for bad in (0, -1, 2.5, '5'):
        with pytest.raises(BadInput, match='min_class'): target(root, min_class=bad)

# I7: a name and a path

def test_a_folder_of_results_is_no_rival_of_a_name(tmp_path, monkeypatch):
    "Whoever keeps the report in a folder called like the target asks the same question again"
    monkeypatch.chdir(tmp_path)
    ask = ['compare', 'digits', '--strategies', 'feature-extraction', '--shots', '1', '--tune', 'none', '--out', 'digits']
    assert main(ask) == 0 and (tmp_path/'digits/records.db').is_file() and (tmp_path/'digits/curve.png').is_file()
    assert main(ask) == 0

def test_a_name_that_is_also_a_folder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('digits', 'emoji', 'pets'):
        plant(tmp_path/name, *several('cats', 'dogs', n=8))
        with pytest.raises(BadInput, match='two ways.*Path'): target(name)
        for o in (f'.{os.sep}{name}', tmp_path/name, type(tmp_path)(name)): assert target(o, size=32).classes == ['cats','dogs']
        assert main(['compare', name]) == 2 and 'two ways' in capsys.readouterr().err
