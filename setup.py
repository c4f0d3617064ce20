"""Reads settings.ini (requirements, extras, scripts, package data, classifiers); all else is in pyproject.toml. The wheel gets the lessons
and not the builder's tools."""
import json, re, shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
version = re.search(r'__version__ = "(.+?)"', (here/'tlcourse/__init__.py').read_text(encoding='utf-8'))[1]
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}

builders = 'dev', 'docs' # They work on a clone, and need its notebooks

class BuildPy(build_py):
    """Adds nbs/lessons to the package, without outputs but for the stamps, which `tlcourse lessons` reads; leaves
    the builder's tools out, but for an editable install, which is the clone itself."""
    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [m for m in found if self.editable_mode or package != 'tlcourse' or m[1] not in builders]
    def run(self):
        super().run()
        if self.editable_mode: return
        to = Path(self.build_lib)/'tlcourse/lessons'
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        lessons = sorted((here/'nbs/lessons').glob('[0-9]*.ipynb'))
        if not lessons: raise SystemExit('no lessons in nbs/lessons: build from a whole clone or sdist')
        for p in lessons:
            nb = json.loads(p.read_text(encoding='utf-8'))
            for c in nb['cells']:
                if ''.join(c['source']).strip() != 'stamp' and c['cell_type'] == 'code': c['outputs'] = []
            (to/p.name).write_text(json.dumps(nb, ensure_ascii=False, indent=1) + '\n', encoding='utf-8')

setup(version=version,
      cmdclass={'build_py': BuildPy},
      packages=['tlcourse', 'tlcourse.assets', 'tlcourse.checks'],
      install_requires=cfg['requirements'].split(),
      extras_require=extras,
      package_data={'tlcourse': cfg['package_data'].split()},
      classifiers=[c.strip() for c in cfg['classifiers'].splitlines()],
      entry_points={'console_scripts': cfg['console_scripts'].splitlines(),
                    'nbdev': ['tlcourse = tlcourse._modidx:d']})
