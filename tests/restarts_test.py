"""Restarts of a run whose data, batch or workdir changed, and its ends."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from sdxl_jax import train
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.data import transforms
from sdxl_jax.distributed import stop_notice
from sdxl_jax.models import from_config
from sdxl_jax.training import folder_lock, loop, metrics
from tests.support import processes, tiny_config

CONFIG = 'tests/support/tiny_config.py'


def write_image(folder, name):
  """Writes an image of noise with its caption."""
  pixels = np.random.default_rng(list(name.encode())).integers(
    0, 256, (20, 20, 3), np.uint8
  )
  folder.mkdir(exist_ok=True)
  Image.fromarray(pixels).save(folder / f'{name}.png')
  (folder / f'{name}.txt').write_text(name)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A folder with twelve images, and the workdir of a run of four steps."""
  folder = tmp_path_factory.mktemp('finished')
  for i in range(12):
    write_image(folder / 'images', f'{i:02}')
  with contextlib.chdir(folder):
    assert train.train(get_config(4), folder / 'run') == 4
  return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
  """A copy of both, to change; the paths in the config are relative to it."""
  copy = shutil.copytree(finished, tmp_path / 'copy')
  monkeypatch.chdir(copy)
  return copy


def get_config(total_steps, **changes):
  config = tiny_config.get_config()
  config.data.update(source='folder', buckets=((16, 16),), index_workers=0)
  config.data.folder.path = 'images'
  config.optimizer.cosine = False
  config.update(total_steps=total_steps, **changes)
  return config


def lines_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def steps_of(workdir):
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


@pytest.mark.slow
def test_a_changed_dataset_is_told(folder, capsys):
  workdir, images = folder / 'run', folder / 'images'
  (images / '00.png').unlink()
  (images / '00.txt').unlink()
  (images / '05.txt').write_text('edited')
  for i in range(3):
    write_image(images, f'new{i}')
  config, before = get_config(5), lines_of(workdir)
  with pytest.raises(ValueError, match='since step 4') as error:
    train.train(config, workdir)
  rows = [line.split() for line in str(error.value).splitlines()]
  counts = {
    row[0]: int(row[1]) for row in rows if row[1:2] and row[1].isdigit()
  }
  assert counts == {
    'before': 12,
    'added': 3,
    'removed': 1,
    'changed': 1,
    'now': 14,
  }
  assert 'new0.png' in str(error.value) and '00.png' in str(error.value)
  assert lines_of(workdir) == before and steps_of(workdir) == [2, 4]
  # Accepted: it is told, and later starts have nothing to tell.
  assert train.train(config, workdir, accept_changes=True) == 5
  said = capsys.readouterr().out
  assert 'a new pass over it begins' in said
  data = orbax_checkpoint.Checkpoints(workdir).read_data()
  assert data['origin'] == {'step': 4, 'records': [28]}
  assert data['records'] == [32] and data['dataset']['records'] == 14
  assert train.train(config, workdir) == 5
  assert 'dataset' not in capsys.readouterr().out


@pytest.mark.slow
def test_an_earlier_step(finished, folder):
  """The run goes on from it as it did before, and keeps what came later."""
  workdir, config = folder / 'run', get_config(4)
  with pytest.raises(ValueError, match=r'from_step=3.* \[2, 4\] only'):
    train.train(config, workdir, from_step=3)
  # Another config is refused before anything is moved.
  other = get_config(4)
  other.schedule.prediction = 'v'
  with pytest.raises(ValueError, match='schedule.prediction: x0 > v'):
    train.train(other, workdir, from_step=2)
  assert steps_of(workdir) == [2, 4]
  expected = lines_of(workdir)
  assert train.train(config, workdir, from_step=2) == 4
  assert [line['loss'] for line in lines_of(workdir)] == [
    line['loss'] for line in expected
  ]
  assert (workdir / 'set_aside' / 'from_step_2' / '4').is_dir()
  nets = from_config.make_model(config)
  params = [
    loading.load_params(f / 'run', nets, nets.configs)
    for f in (finished, folder)
  ]
  assert jax.tree.all(jax.tree.map(np.array_equal, *params))
  # The same command again does not go back again.
  assert train.train(config, workdir, from_step=2) == 4
  assert steps_of(workdir) == [2, 4]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_files(folder, monkeypatch):
  spoil(monkeypatch, '07.png')
  with pytest.raises(metrics.NonFiniteLoss, match=r'images/07\.png\n'):
    train.train(get_config(8), folder / 'run')
  assert steps_of(folder / 'run')[-1] >= 4


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped(folder, monkeypatch, capsys):
  """Once in each pass: the update of that step is left out."""
  spoil(monkeypatch, '07.png')
  config = get_config(10, skip_non_finite=1)
  assert train.train(config, folder / 'run') == 10
  assert lines_of(folder / 'run')[-1]['skipped'] == 2
  assert 'images/07.png' in capsys.readouterr().out
  nets = from_config.make_model(config)
  params = loading.load_params(folder / 'run', nets, nets.configs)
  assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), params))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_before_anything_has_moved(
  folder, monkeypatch
):
  """Is named first, also where no line of the log was due yet."""
  spoil(monkeypatch, '.png')
  with pytest.raises(metrics.NonFiniteLoss, match=r'images/\d+\.png\n'):
    train.train(get_config(8, log_every=100), folder / 'new')


def spoil(monkeypatch, name):
  """Makes the pixels of one image NaN."""
  transform = transforms.transform

  def spoilt(example, *args, **settings):
    row = transform(example, *args, **settings)
    if example['name'].endswith(name):
      row['image'] = np.full_like(row['image'], np.nan)
    return row

  monkeypatch.setattr(transforms, 'transform', spoilt)


def test_a_second_start(tmp_path):
  """Is refused before it writes anything."""
  (tmp_path / 'checkpoints' / '4.orbax-checkpoint-tmp').mkdir(parents=True)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  lock = folder_lock.FolderLock(tmp_path, '--workdir')
  lock.acquire(print)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  message = f'is in use by process {os.getpid()} on '
  with pytest.raises(ValueError, match=message):
    train.train(get_config(8), tmp_path)
  after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  lock.release()
  assert after == before


@pytest.mark.parametrize('place', ['prepare', 'loop'])
def test_errors_that_ctrl_c_caused(tmp_path, monkeypatch, place):
  """Before the first step they end the run as Ctrl-C, not as themselves."""
  notices = []
  make = stop_notice.PreemptionNotice

  def noted():
    notices.append(make())
    return notices[-1]

  def interrupted(*args):
    notices[0].number = signal.SIGINT
    raise ValueError('checkpoint cannot be restored')

  monkeypatch.setattr(stop_notice, 'PreemptionNotice', noted)
  if place == 'prepare':
    monkeypatch.setattr(train, 'prepare', interrupted)
  else:
    monkeypatch.setattr(train, 'prepare', lambda start: (None, None))
    monkeypatch.setattr(loop, 'loop', interrupted)
  with pytest.raises(KeyboardInterrupt):
    train.train(get_config(8), tmp_path)


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_start_is_told(finished, tmp_path):
  workdir = tmp_path / 'run'
  run = processes.Run(
    1,
    CONFIG,
    workdir,
    '--config.data.source=folder',
    f'--config.data.folder.path={finished / "images"}',
    '--config.data.buckets=((16,16),)',
    '--config.data.index_workers=0',
    '--config.total_steps=100000',
    '--config.optimizer.cosine=False',
    '--config.checkpoint.every=10000',
  )
  run.wait_for_step(3)
  command = [sys.executable, '-m', 'sdxl_jax.train', f'--config={CONFIG}']
  second = subprocess.run(
    [*command, f'--workdir={workdir}'], capture_output=True, text=True
  )
  assert second.returncode == 1
  (line,) = [x for x in second.stderr.splitlines() if x.startswith('error')]
  assert f'in use by process {run.processes[0].pid} on' in line
  run.signal(0, signal.SIGINT)
  assert run.wait(60) == [130], run.tails()
  assert f'stopped by Ctrl-C after step {len(run.metrics())}' in run.tails()[0]
  assert steps_of(workdir) == [len(run.metrics())]


@pytest.mark.slow
def test_a_dataset_that_moved(folder, monkeypatch):
  """The same images in another folder are the same data."""
  (folder / 'images').rename(folder / 'moved')
  config = get_config(5)
  config.data.folder.path = str(folder / 'moved')
  assert train.train(config, folder / 'run') == 5
