"Each number in the prose of a lesson, and of the index, is one that an output of the page shows."
import json
import pytest
from tlcourse.dev import prose_pages, prose_numbers, unshown
from conftest import ROOT, name

@pytest.mark.parametrize('page', prose_pages(ROOT), ids=name)
def test_saved(page): assert not unshown(page)

@pytest.mark.parametrize('page', prose_pages(ROOT), ids=name)
def test_executed(page, executed):
    "What the prose says comes out again; a number that differs from machine to machine does not belong there."
    assert not unshown(executed[page].path)

@pytest.mark.parametrize('wrong', ['98.76 %', '0.98765', '387.6 points', '398.7x', '12 s', '`98.76%`',
                                   'from 98.76 to 99.87 %'])
def test_planted(wrong, tmp_path):
    page = next(p for p in prose_pages(ROOT) if p.parent.name == 'lessons')
    nb = json.loads(page.read_text(encoding='utf-8'))
    planted = f'It was {wrong}, as we saw.'
    nb['cells'].append({'cell_type': 'markdown', 'id': 'planted', 'metadata': {}, 'source': planted})
    (tmp_path/'planted.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    found = set(unshown(tmp_path/'planted.ipynb')) - set(unshown(page))
    assert len(found) == len(prose_numbers(wrong)) >= 1
