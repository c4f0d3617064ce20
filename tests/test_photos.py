"The real path: photo folders and ImageNet weights from disk. Skipped, with the reason, where TLCOURSE_ASSETS names none."
import json, shutil, subprocess, sys, time
import pytest
from tlcourse.base import photo_assets

pytestmark = pytest.mark.assets
cmd = [sys.executable, '-c', 'import sys; from tlcourse.cli import main; sys.exit(main())', 'compare']
small = ['--shots', '20', '--seeds', '3', '--steps', '60', '--strategies', 'feature-extraction,scratch']

@pytest.fixture(scope='module')
def assets():
    a = photo_assets()
    if a is None: pytest.skip('no assets')
    return a

def compare(tmp, *args):
    t = time.time()
    p = subprocess.run([*cmd, *map(str, args), '--out', str(tmp/'o'), '--json', str(tmp/'j.json')], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    print(p.stdout)
    return json.loads((tmp/'j.json').read_text()), p.stdout, time.time() - t

def by(j): return {c['strategy']: c for c in j['cells']}

def test_flowers17_mobilenet(assets, tmp_path):
    j, out, secs = compare(tmp_path, assets/'data/flowers17', '--backbone', 'mobilenet_v2', '--weights', assets/'weights/mobilenet_v2-imagenet-from-tf2ptq.pth', *small)
    c = by(j)
    assert c['feature-extraction']['n_test'] == 319 and c['scratch']['seeds'] == 3
    assert c['feature-extraction']['low'] > c['scratch-4x' if 'scratch-4x' in c else 'scratch']['high']
    assert j['settings']['weights'].startswith('sha256:') and str(assets) not in json.dumps(j)
    assert 'valid' in out # where the validation pictures came from is announced
    print(f'{secs:.0f} s')

def test_ants_bees_squeezenet(assets, tmp_path):
    j, out, secs = compare(tmp_path, assets/'data/ants_bees', '--backbone', 'squeezenet1_0', '--weights', assets/'weights/squeezenet1_0-imagenet-from-deepcompression.pth', *small)
    c = by(j)
    assert c['feature-extraction']['n_test'] == 153 and c['feature-extraction']['mean'] > c['scratch']['mean']
    print(f'{secs:.0f} s')

def test_own_folder_with_timm(assets, tmp_path):
    "A plain folder, one folder per class, nothing split, a space and an umlaut in the names; timm's weights without a head"
    own = tmp_path/'my photos'
    for c,n in ('daisy', 'Gänseblümchen'), ('tulip', 'Tulpe'), ('sunflower', 'sun flower'):
        (own/n).mkdir(parents=True)
        for f in sorted((assets/'data/flowers17'/c).iterdir())[:40]: shutil.copy(f, own/n)
    (own/'Tulpe'/'notes.jpg').write_text('not a picture')
    j, out, _ = compare(tmp_path, own, '--backbone', 'mobilenetv2_035', '--weights', assets/'weights/timm_mobilenetv2_035-imagenet-features-from-tm.pth',
                        '--size', '96', '--shots', '5', '--seeds', '3', '--steps', '30', '--tune', 'none', '--strategies', 'feature-extraction,fine-tuning')
    assert 'notes.jpg' in out and 'skipped 1 file' in out
    assert by(j)['feature-extraction']['mean'] > .5
