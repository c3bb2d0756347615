"""Notebooks run from top to bottom."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types

import pytest
import safetensors

from launch.notebooks import commands, install
from tests.support import commands as parsed

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'launch' / 'notebooks').glob('*.ipynb'))


def code_cells(path):
  """Returns the texts of a notebook's code cells."""
  cells = json.loads(path.read_text())['cells']
  return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


def run_here(verb, *arguments, hours=None, watch=None):
  """As launch.notebooks.commands.run, in this process."""
  del hours
  with parsed.parsed(f'sdxl_jax.{verb}', [str(a) for a in arguments]) as start:
    start()
  if watch:
    watch()


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
  """run_notebook(name, **settings): runs the cells on tiny weights.

  Pictures that it displays are noted, not shown; pip and commands of the
  machine are not run. It returns the pictures and the names that were defined.
  """
  shown, pip = [], []
  display = types.ModuleType('IPython.display')
  display.Image = lambda name: pathlib.Path(name)
  display.display = shown.append
  monkeypatch.setitem(sys.modules, 'IPython.display', display)
  monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setattr(tempfile, 'tempdir', None)
  monkeypatch.chdir(tmp_path)
  # As after an earlier start in Colab.
  (tmp_path / 'sdxl_jax_repository').symlink_to(ROOT)

  def run(command):
    pip.append(command)
    return subprocess.CompletedProcess(command, 0, 'cpu cpu\n', '')

  monkeypatch.setattr(install, 'run', run)

  def run_cells(name, **settings):
    names = {}
    for source in code_cells(ROOT / 'launch' / 'notebooks' / f'{name}.ipynb'):
      for setting, value in settings.items():
        line = rf'^{setting} = [^#\n]*'
        source = re.sub(line, f'{setting} = {value!r}  ', source, flags=re.M)
      exec(source, names)
    assert [command[1:4] for command in pip[-2:]] == [
      ['-m', 'pip', 'install'],
      ['-c', install.LIST_DEVICES],
    ]
    assert shown and all(picture.stat().st_size > 1000 for picture in shown)
    assert all(names[setting] == value for setting, value in settings.items())
    return [picture.name for picture in shown], names

  return run_cells


@pytest.fixture
def commands_here(monkeypatch):
  monkeypatch.setattr(commands, 'run', run_here)


def test_look_at_data(run_notebook):
  run_notebook('look_at_data')


def test_sample(run_notebook):
  run_notebook('sample', TINY=True, USE_REFINER=True)


@pytest.mark.slow
def test_lora(run_notebook, commands_here, tmp_path):
  """Twenty images, their look, training with samples, the file, sampling."""
  shown, _ = run_notebook('lora', TINY=True)
  assert shown == ['batches.png', '0000001.png', '0000002.png', 'samples.png']
  with safetensors.safe_open(tmp_path / 'mine.safetensors', 'np') as file:
    names = list(file.keys())
    assert len(names) > 10 and any('lora_up' in name for name in names)
    # The factor that begins as zeros has been trained.
    [up, *_] = [name for name in names if 'lora_up' in name]
    assert file.get_tensor(up).any()


@pytest.mark.slow
def test_train_kaggle_tpu(run_notebook, commands_here, tmp_path, monkeypatch):
  """Two sessions, between which only the dataset is kept."""
  kept = tmp_path / 'kept'
  kagglehub = types.ModuleType('kagglehub')
  kagglehub.dataset_download = lambda handle: kept / handle

  def upload(handle, folder, version_notes):
    assert re.fullmatch(r'after \d+\.\d h', version_notes)
    shutil.rmtree(kept / handle, ignore_errors=True)
    shutil.copytree(folder, kept / handle)

  kagglehub.dataset_upload = upload
  monkeypatch.setitem(sys.modules, 'kagglehub', kagglehub)
  shown, _ = run_notebook('train_kaggle_tpu', TINY=True, DATASET='me/mine')
  assert shown == ['batches.png', '0000002.png', 'samples.png']
  shutil.rmtree(tmp_path / 'run')

  run_notebook('train_kaggle_tpu', TINY=True, DATASET='me/mine', RESUME=True)
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [2, 3]
  assert (kept / 'me' / 'mine' / 'checkpoints' / '3').is_dir()


def test_nothing_that_was_run_is_stored():
  for path in NOTEBOOKS:
    for cell in json.loads(path.read_text())['cells']:
      if cell['cell_type'] == 'code':
        assert not cell['outputs'] and cell['execution_count'] is None, path


def test_the_guide_has_all_notebooks():
  guide = (ROOT / 'launch' / 'README.md').read_text()
  for path in NOTEBOOKS:
    assert f'](notebooks/{path.name})' in guide


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
