"""The real path, small: photo folders and ImageNet weights from disk. Skipped, with the reason, where TLCOURSE_ASSETS names none.

Four classes or two, pictures of 64 px, three seeds, few steps, fixed rates: each way through is taken, none is taken twice."""
import csv, json, shutil, subprocess, sys
import pytest
from tlcourse.base import photo_assets

pytestmark = pytest.mark.assets
cmd = [sys.executable, '-c', 'import sys; from tlcourse.cli import main; sys.exit(main())', 'compare']
small = ['--size', '64', '--seeds', '3', '--tune', 'none']

@pytest.fixture(scope='module')
def assets():
    a = photo_assets()
    if a is None: pytest.skip('no assets')
    return a

def part_of(src, to, classes, n=40):
    "A folder of n photos of each of some classes with their lines of split.csv; -> number of test photos"
    rows = [r for c in classes for r in [o for o in csv.DictReader((src/'split.csv').open()) if o['label'] == c][-n:]]
    for r in rows:
        (to/r['path']).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(src/r['path'], to/r['path'])
    with (to/'split.csv').open('w', newline='') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader()
        w.writerows(rows)
    return sum(r['split'] == 'test' for r in rows)

def compare(tmp, *args):
    p = subprocess.run([*cmd, *map(str, args), *small, '--out', str(tmp/'o'), '--json', str(tmp/'j.json')], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    print(p.stdout)
    return json.loads((tmp/'j.json').read_text()), p.stdout

def by(j): return {c['strategy']: c for c in j['cells']}

def test_flowers17_mobilenet(assets, tmp_path):
    "Parts by split.csv, torchvision's network with weights from a file"
    n = part_of(assets/'data/flowers17', tmp_path/'flowers', ['daisy', 'pansy', 'snowdrop', 'tigerlily'])
    j, out = compare(tmp_path, tmp_path/'flowers', '--backbone', 'mobilenet_v2', '--weights', assets/'weights/mobilenet_v2-imagenet-from-tf2ptq.pth',
                     '--shots', '10', '--steps', '15', '--strategies', 'feature-extraction,scratch')
    c = by(j)
    assert c['feature-extraction']['n_test'] == n > 30 and c['scratch']['seeds'] == 3
    assert c['feature-extraction']['low'] > c['scratch-4x' if 'scratch-4x' in c else 'scratch']['high']
    assert j['settings']['weights'].startswith('sha256:') and str(assets) not in json.dumps(j)
    assert 'valid' in out # where the validation pictures came from is announced

def test_ants_bees_squeezenet(assets, tmp_path):
    "A network without BatchNorm"
    n = part_of(assets/'data/ants_bees', tmp_path/'insects', ['ants', 'bees'], 200)
    j, out = compare(tmp_path, tmp_path/'insects', '--backbone', 'squeezenet1_0', '--weights', assets/'weights/squeezenet1_0-imagenet-from-deepcompression.pth',
                     '--shots', '20', '--steps', '20', '--strategies', 'feature-extraction,scratch')
    c = by(j)
    assert c['feature-extraction']['n_test'] == n > 100 and c['feature-extraction']['mean'] > c['scratch']['mean']

def test_own_folder_with_timm(assets, tmp_path):
    "A plain folder, one folder per class, nothing split, a space and an umlaut in the names; timm's weights without a head"
    own = tmp_path/'my photos'
    for c,n in ('daisy', 'Gänseblümchen'), ('tulip', 'Tulpe'), ('sunflower', 'sun flower'):
        (own/n).mkdir(parents=True)
        for f in sorted((assets/'data/flowers17'/c).iterdir())[:30]: shutil.copy(f, own/n)
    (own/'Tulpe'/'notes.jpg').write_text('not a picture')
    j, out = compare(tmp_path, own, '--backbone', 'mobilenetv2_035', '--weights', assets/'weights/timm_mobilenetv2_035-imagenet-features-from-tm.pth',
                     '--shots', '5', '--steps', '15', '--strategies', 'feature-extraction,fine-tuning')
    assert 'notes.jpg' in out and 'skipped 1 file' in out
    assert by(j)['feature-extraction']['mean'] > .5
