"Reads settings.ini (requirements, extras, scripts, package data, classifiers); all else is in pyproject.toml."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
version = re.search(r'__version__ = "(.+?)"', (here/'tlcourse/__init__.py').read_text(encoding='utf-8'))[1]
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}

setup(version=version,
      packages=['tlcourse', 'tlcourse.assets'],
      install_requires=cfg['requirements'].split(),
      extras_require=extras,
      package_data={'tlcourse': cfg['package_data'].split()},
      classifiers=[c.strip() for c in cfg['classifiers'].splitlines()],
      entry_points={'console_scripts': cfg['console_scripts'].splitlines(),
                    'nbdev': ['tlcourse = tlcourse._modidx:d']})
