"""The stored tables: `tlcourse compare` on each target, its JSON beside this file; `run` makes a record of lesson 1
again.

    python grids/stored_tables.py [NAME ...]     # all: about an hour on 2 cores

Stopped and started again it goes on from tlcourse-out/tables. The photo sets need the folder that TLCOURSE_ASSETS
names; where it is missing they are left out, and that is said. All with the defaults, photos within their ten
minutes.
"""
import sys
from functools import cache
from pathlib import Path
from tlcourse.base import photo_assets
from tlcourse.cli import main
from tlcourse.runs import run_spec, task

here, photos = Path(__file__).parent, photo_assets()

@cache
def digits(): return task('digits', 'glyphnet', device='cpu')

def run(spec):
    "One of lesson 1's stored runs again"
    return run_spec(digits(), spec)

def photo(name): return [str(photos/'data'/name)] if photos else None

tables = {'digits': ['digits'], 'emoji': ['emoji', '--budget', 'none'], 'flowers17': photo('flowers17'),
          'ants_bees': photo('ants_bees')}

if __name__ == '__main__':
    for name in sys.argv[1:] or tables:
        if tables[name] is None: print(f'{name}: left out, TLCOURSE_ASSETS names no folder'); continue
        out = Path('tlcourse-out/tables')/name
        code = main(['compare', *tables[name], '--out', str(out), '--json', str(here/f'{name}.json')])
        if code: sys.exit(code)
