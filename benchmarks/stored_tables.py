"""The stored tables: `tlcourse compare` on each target, its JSON beside this file; `run` makes a record of lesson 1 again.

    python benchmarks/stored_tables.py [NAME ...]     # all: about half an hour on 2 cores

Stopped and started again it goes on from tlcourse-out/tables. The photo sets need the folder that TLCOURSE_ASSETS names;
where it is missing they are left out, and that is said. `-fixed` uses the fixed rates (--tune none), which claims about one
label per class rest on.
"""
import sys
from functools import cache
from pathlib import Path
from tlcourse.base import photo_assets
from tlcourse.cli import main
from tlcourse.compare import run_spec, task

here, photos = Path(__file__).parent, photo_assets()

@cache
def digits(): return task('digits', 'glyphnet', device='cpu')

def run(spec):
    "One of lesson 1's stored runs again"
    return run_spec(digits(), spec)

def photo(name, backbone, weights, *args):
    return [str(photos/'data'/name), '--backbone', backbone, '--weights', str(photos/'weights'/weights), *args] if photos else None

tables = {
    'digits': ['digits'],
    'digits-fixed': ['digits', '--tune', 'none', '--strategies', 'scratch,random-features,feature-extraction,fine-tuning'],
    'letters': ['letters'],
    'letters-fixed': ['letters', '--tune', 'none'],
    # on photos fixed rates and fewer steps: a step of mobilenet_v2 costs a CPU core most of a second
    'flowers17': photo('flowers17', 'mobilenet_v2', 'mobilenet_v2-imagenet-from-tf2ptq.pth', '--tune', 'none', '--steps', '60', '--shots', '1,20'),
    'ants_bees': photo('ants_bees', 'squeezenet1_0', 'squeezenet1_0-imagenet-from-deepcompression.pth', '--tune', 'none', '--steps', '60', '--seeds', '3'),
}

if __name__ == '__main__':
    for name in sys.argv[1:] or tables:
        if tables[name] is None: print(f'{name}: left out, TLCOURSE_ASSETS names no folder'); continue
        out = Path('tlcourse-out/tables')/name.removesuffix('-fixed') # one store for both: runs at the same rate are shared
        code = main(['compare', *tables[name], '--out', str(out), '--json', str(here/f'{name}.json')])
        if code: sys.exit(code)
