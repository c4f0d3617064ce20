"""The real path, small: photo folders and ImageNet weights from disk. Skipped, with the reason, where TLCOURSE_ASSETS
names none.

Two to four classes, pictures of 64 px, three seeds, few steps, fixed rates: each way through is taken, none is taken
twice."""
import csv, json, re, shutil, subprocess
import pytest
from tlcourse.base import photo_assets
from conftest import python

pytestmark = pytest.mark.assets
cmd = ['-c', 'import sys; from tlcourse.cli import main; sys.exit(main())', 'compare']
small = ['--size', '64', '--seeds', '3', '--tune', 'none']

@pytest.fixture(scope='module')
def assets():
    a = photo_assets()
    if a is None: pytest.skip('no assets')
    return a

def part_of(src, to, classes, n=40):
    """A folder of n photos of each of some classes with their lines of split.csv;
    -> photos of training, validation and test"""
    rows = [r for c in classes for r in [o for o in csv.DictReader((src/'split.csv').open()) if o['label'] == c][-n:]]
    for r in rows:
        (to/r['path']).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(src/r['path'], to/r['path'])
    with (to/'split.csv').open('w', newline='') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader()
        w.writerows(rows)
    return [sum(r['split'] == s for r in rows) for s in ('train', 'valid', 'test')]

def compare(tmp, *args):
    p = subprocess.run([*python(), *cmd, *map(str, args), *small, '--out', str(tmp/'o'), '--json', str(tmp/'j.json')],
                       capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    print(p.stdout)
    return json.loads((tmp/'j.json').read_text()), p.stdout

def by(j): return {(c['strategy'], c['shots']): c for c in j['cells']}

@pytest.fixture(scope='module')
def flowers(assets, tmp_path_factory):
    "Four kinds of flowers, and how many photos of them are in each part by split.csv, which has no validation part"
    d = tmp_path_factory.mktemp('photos')
    return d/'flowers', part_of(assets/'data/flowers17', d/'flowers', ['daisy', 'pansy', 'snowdrop', 'tigerlily'])

@pytest.mark.slow
def test_default_arms_in_three_stages(flowers, tmp_path):
    """The network that the course ships, the arms of photos, all labels; parts by split.csv;
    nothing is augmented but the arm that says so"""
    folder, (n_train, n_valid, n_test) = flowers
    j, out = compare(tmp_path, folder, '--shots', '1,all', '--steps', '4', '--budget', 'none')
    assert ((j['target'], j['backbone'], j['stage'], j['stages'], j['missing'])
            == ('flowers', 'tf_efficientnet_lite0', 3, 3, []))
    assert j['settings']['augment'] == [] and j['settings']['size'] == 64
    trained = {(a, 'all') for a in ('last-layers', 'fine-tuning', 'fine-tuning+aug')} | {('fine-tuning', 1)}
    heads = {(a, k) for a in ('feature-extraction', 'k-nn', 'random-features') for k in (1, 'all')}
    c = by(j)
    assert {*c} == trained | heads and all(x['n_test'] == n_test > 30 for x in j['cells'])
    assert {k: x['seeds'] for k,x in c.items()} == {k: 3 if k in trained else 20 if k[1] == 1 else 1 for k in c}
    # Those to choose with are taken from those to train on, and that is announced
    left, chosen, _ = map(sum, zip(*j['parts'].values()))
    assert n_valid == 0 < chosen and left + chosen == n_train and f'all {left} labels' in j['recommendation']['text']
    assert c['feature-extraction', 'all']['low'] > c['random-features', 'all']['high'], 'the weights are ImageNet\'s'
    assert re.findall(r'So far \(.*?stage (\d) of 3\)', out) == ['1', '2']
    assert 'valid' in out.split('Stage 1, frozen features')[0]
    assert 'So far' not in j['recommendation']['text']
    report = (tmp_path/'o'/'report.html').read_text()
    assert j['recommendation']['text'].split(':')[0] in report and 'fine-tuning+aug' in report

@pytest.mark.slow
def test_a_budget_leaves_cells_out_and_more_minutes_go_on(flowers, tmp_path):
    """Stage 1 is whole whatever the minutes; what is left out is named with its minutes;
    the second call takes up the same runs"""
    folder, _ = flowers
    args = [folder, '--workers', '1', '--shots', '5,all', '--steps', '4', '--strategies',
            'feature-extraction,last-layers,scratch']
    j, out = compare(tmp_path, *args, '--budget', '.01')
    assert {*by(j)} == {('feature-extraction', 5), ('feature-extraction', 'all')}
    left = [(m['strategy'], m['shots']) for m in j['missing']]
    assert left == [('last-layers', 'all'), ('last-layers', 5), ('scratch', 'all'), ('scratch', 5)]
    assert all(m['minutes'] > 0 for m in j['missing'])
    assert 'So far' in j['recommendation']['text'] and out.count('raise --budget') >= 4
    more, out = compare(tmp_path, *args, '--budget', '9')
    c = by(more)
    assert more['missing'] == [] and {('last-layers', 'all'), ('scratch', 5)} <= {*c}
    assert 'So far' not in more['recommendation']['text']
    assert c['feature-extraction', 'all'] == by(j)['feature-extraction', 'all'], 'not run again, its seconds say'

@pytest.mark.slow
def test_ants_bees_squeezenet(assets, tmp_path):
    "A network without BatchNorm, with torchvision's weights from a file"
    *_, n = part_of(assets/'data/ants_bees', tmp_path/'insects', ['ants', 'bees'], 200)
    j, _ = compare(tmp_path, tmp_path/'insects', '--backbone', 'squeezenet1_0', '--weights',
                   assets/'weights/squeezenet1_0-imagenet-from-deepcompression.pth',
                   '--shots', '20', '--steps', '15', '--strategies', 'feature-extraction,random-features,scratch')
    c = {k[0]: x for k,x in by(j).items()}
    assert c['feature-extraction']['n_test'] == n > 100
    assert c['feature-extraction']['mean'] > max(c[s]['mean'] for s in ('random-features', 'scratch'))
    assert j['settings']['weights'].startswith('sha256:') and str(assets) not in json.dumps(j)

def test_own_folder_with_timm(assets, tmp_path):
    """A plain folder, one folder per class, nothing split, a space and an umlaut in the names;
    timm's weights without a head"""
    own = tmp_path/'my photos'
    for c,n in ('daisy', 'Gänseblümchen'), ('tulip', 'Tulpe'), ('sunflower', 'sun flower'):
        (own/n).mkdir(parents=True)
        for f in sorted((assets/'data/flowers17'/c).iterdir())[:30]: shutil.copy(f, own/n)
    (own/'Tulpe'/'notes.jpg').write_text('not a picture')
    j, out = compare(tmp_path, own, '--backbone', 'mobilenetv2_035', '--weights',
                     assets/'weights/timm_mobilenetv2_035-imagenet-features-from-tm.pth',
                     '--shots', '5', '--steps', '15', '--strategies', 'feature-extraction,fine-tuning,fine-tuning+aug')
    assert 'notes.jpg' in out and 'skipped 1 file' in out
    c = by(j)
    assert c['feature-extraction', 5]['mean'] > .5 and ('fine-tuning+aug', 5) in c
    assert {k: sum(n) for k,n in j['parts'].items()} == {'Gänseblümchen': 30, 'Tulpe': 30, 'sun flower': 30}
