"""Notebooks run from top to bottom."""

import json
import pathlib
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'launch' / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
  """With the pictures that it displays noted, not shown."""
  shown = []
  display = types.ModuleType('IPython.display')
  display.Image = lambda name: pathlib.Path(name)
  display.display = shown.append
  monkeypatch.setitem(sys.modules, 'IPython.display', display)
  monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
  monkeypatch.syspath_prepend(ROOT)
  monkeypatch.chdir(tmp_path)
  cells = json.loads(path.read_text())['cells']
  names = {}
  for cell in cells:
    if cell['cell_type'] == 'code':
      source = ''.join(cell['source'])
      exec(source.replace('TINY = False', 'TINY = True'), names)
  assert shown and all(picture.stat().st_size > 1000 for picture in shown)
