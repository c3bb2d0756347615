"""W&B and MLflow beside TensorBoard, by modules that record what they get."""

import builtins
import json
import sys
import types

import numpy as np
import pytest

from sdxl_jax.training import metrics_writer, trackers

METRICS = {'loss': 0.5, 'images_per_s': 2.0}
IMAGE = np.zeros((4, 4, 3), np.uint8)


class FakeRun:
  """A run of W&B."""

  def __init__(self, settings):
    self.id = settings['id'] or 'new1'
    self.settings, self.logged, self.finished = settings, [], 0

  def define_metric(self, name, step_metric):
    self.metric = name, step_metric

  def log(self, values):
    self.logged.append(values)

  def finish(self):
    self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
  """A module in the place of wandb, with its runs."""
  module = types.ModuleType('wandb')
  module.runs = []

  def init(**settings):
    module.runs.append(FakeRun(settings))
    return module.runs[-1]

  module.init, module.Image = init, lambda image: ('image', image.shape)
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return module


class FakeClient:
  """MLflow's client."""

  calls = []

  def __getattr__(self, name):
    def call(*args, **settings):
      self.calls.append((name, *args, *settings.values()))
      if name == 'get_experiment_by_name':
        return None
      if name == 'create_run':
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id='m1'))
      return 'e1'

    return call


@pytest.fixture
def mlflow(monkeypatch):
  """A module in the place of mlflow, whose clients record their calls."""
  module = types.ModuleType('mlflow')
  module.MlflowClient = FakeClient
  module.entities = types.SimpleNamespace(Metric=lambda *fields: fields)
  monkeypatch.setattr(FakeClient, 'calls', [])
  monkeypatch.setitem(sys.modules, 'mlflow', module)
  return FakeClient.calls


def write(workdir, log_with, start=0):
  """Writes a line and an image of one start."""
  workdir.mkdir(exist_ok=True)
  writer = metrics_writer.Writer(
    workdir, start, 4, True, log_with, ('cats', {'seed': 0})
  )
  writer.write(start + 1, METRICS)
  writer.image('samples', IMAGE, start + 1)
  writer.close()


def test_wandb(wandb, tmp_path):
  write(tmp_path / 'run', ('wandb',))
  write(tmp_path / 'run', ('wandb',), start=1)
  first, second = wandb.runs
  workdir = str(tmp_path / 'run')
  assert first.settings == {
    'project': 'cats',
    'name': 'run',
    'id': None,
    'resume': 'allow',
    'config': {'seed': 0},
    'dir': workdir,
  }
  assert first.metric == ('*', 'optimizer_step')
  assert first.logged == [
    METRICS | {'optimizer_step': 1},
    {'samples': ('image', (4, 4, 3)), 'optimizer_step': 1},
  ]
  assert second.settings['id'] == 'new1'  # it goes on in the same run
  assert (first.finished, second.finished) == (1, 1)
  assert not (tmp_path / 'run' / 'tensorboard').exists()
  assert (tmp_path / 'run' / 'metrics.jsonl').read_text().count('\n') == 2


def test_mlflow(mlflow, tmp_path):
  write(tmp_path, ('tensorboard', 'mlflow'))
  names = [call[0] for call in mlflow]
  assert names == [
    'get_experiment_by_name',
    'create_experiment',
    'create_run',
    'log_dict',
    'log_batch',
    'log_image',
    'set_terminated',
  ]
  assert mlflow[2] == ('create_run', 'e1', tmp_path.name)
  (_, run_id, rows) = mlflow[4]
  assert run_id == 'm1'
  assert [(n, v, s) for n, v, _, s in rows] == [
    ('loss', 0.5, 1),
    ('images_per_s', 2.0, 1),
  ]
  assert mlflow[5][-1] == 'samples/0000001.png'
  assert (tmp_path / 'tensorboard').is_dir()
  del mlflow[:]
  write(tmp_path, ('mlflow',), start=1)
  assert mlflow[0] == ('update_run', 'm1', 'RUNNING')
  saved = json.loads((tmp_path / trackers.FILE).read_text())
  assert saved == {'mlflow': 'm1'}


def test_nothing_is_imported_that_is_not_named(monkeypatch, tmp_path):
  found = builtins.__import__

  def refuse(name, *args, **settings):
    assert name.split('.')[0] not in trackers.KINDS
    return found(name, *args, **settings)

  monkeypatch.setattr(builtins, '__import__', refuse)
  for name in trackers.KINDS:
    monkeypatch.setitem(sys.modules, name, None)
  write(tmp_path, ('tensorboard',))


@pytest.mark.parametrize('name', trackers.KINDS)
def test_a_package_that_is_not_installed(name, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(ValueError, match=f'{name}.*pip install {name}, or remov'):
    write(tmp_path, (name,))


def test_a_tracker_that_cannot_be_opened(wandb, tmp_path):
  def init(**settings):
    raise RuntimeError('no API key\nconfigured')

  wandb.init = init
  with pytest.raises(ValueError, match='RuntimeError: no API key configured'):
    write(tmp_path, ('wandb',))


def test_a_failure_is_said_once_and_ends_nothing(wandb, tmp_path, capsys):
  def log(self, values):
    raise ConnectionError('server gone')

  wandb.init = lambda **settings: type('Run', (FakeRun,), {'log': log})(
    settings
  )
  write(tmp_path, ('wandb',))
  text = ''.join(capsys.readouterr())
  assert text.count('wandb did not take some') == 1 and 'server gone' in text
  assert json.loads((tmp_path / 'metrics.jsonl').read_text())['loss'] == 0.5
