"""Notebooks run from top to bottom."""

import json
import pathlib
import re
import subprocess
import sys
import types

import pytest

from launch.notebooks import install

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'launch' / 'notebooks').glob('*.ipynb'))


def code_cells(path):
  """Returns the texts of a notebook's code cells."""
  cells = json.loads(path.read_text())['cells']
  return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
  """With the pictures that it displays noted, not shown; without pip."""
  shown = []
  display = types.ModuleType('IPython.display')
  display.Image = lambda name: pathlib.Path(name)
  display.display = shown.append
  monkeypatch.setitem(sys.modules, 'IPython.display', display)
  monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.chdir(tmp_path)
  # As after an earlier start in Colab.
  (tmp_path / 'sdxl_jax_repository').symlink_to(ROOT)
  commands = []

  def run(command):
    commands.append(command)
    return subprocess.CompletedProcess(command, 0, 'cpu cpu\n', '')

  monkeypatch.setattr(install, 'run', run)
  names = {}
  for source in code_cells(path):
    exec(source.replace('TINY = False', 'TINY = True'), names)
  assert [command[1:4] for command in commands] == [
    ['-m', 'pip', 'install'],
    ['-c', install.LIST_DEVICES],
  ]
  assert shown and all(picture.stat().st_size > 1000 for picture in shown)


def test_all_notebooks_install_alike():
  """The first cells differ in whether a CPU will do, and in nothing else."""
  cells = set()
  for path in NOTEBOOKS:
    first = code_cells(path)[0].splitlines()
    assert re.fullmatch(r'install\.prepare\(cpu=(TINY|True)\)', first[-1]), path
    kept = [line for line in first[:-1] if not line.startswith('TINY = ')]
    cells.add('\n'.join(kept).replace('\n\n\n', '\n\n'))
  assert len(cells) == 1


def test_the_first_cell_clones(tmp_path, monkeypatch):
  """On a machine without the repository."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setattr(install, 'prepare', lambda cpu: None)
  commands = []

  def clone(command, check):
    commands.append(command)
    (tmp_path / 'sdxl_jax_repository').symlink_to(ROOT)

  monkeypatch.setattr(subprocess, 'run', clone)
  exec(code_cells(NOTEBOOKS[0])[0], {})
  assert [command[:2] for command in commands] == [['git', 'clone']]
  assert sys.path[0] == str(tmp_path / 'sdxl_jax_repository')
