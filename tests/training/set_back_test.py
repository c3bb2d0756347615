"""Tests that a workdir goes back to an earlier step, and loses nothing."""

import pytest

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.training import set_back


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  """A workdir with checkpoints of three steps, without their arrays."""
  for step in (20, 40, 60):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
    (tmp_path / 'snapshots' / f'{step:08d}' / '0.1').mkdir(parents=True)
  (tmp_path / 'checkpoints' / '80.orbax-checkpoint-tmp').mkdir()
  (tmp_path / 'metrics.jsonl').write_text('lines')
  monkeypatch.setattr(orbax_checkpoint, 'read_config', lambda folder: {})
  return tmp_path


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_what_is_later_is_moved(workdir):
  lines = []
  set_back.set_back(workdir, 20, lines.append)
  aside = workdir / 'set_aside' / 'from_step_20'
  assert names(aside) == [
    '40',
    '60',
    'metrics.jsonl',
    'snapshots-00000040',
    'snapshots-00000060',
  ]
  assert '20' in names(workdir / 'checkpoints')
  assert '40' not in names(workdir / 'checkpoints')
  assert names(workdir / 'snapshots') == ['00000020']
  assert 'those of [40, 60] and the metrics' in lines[0]
  assert str(aside) in lines[0]
  # A scheduler that starts the command again does not lose the new steps.
  (workdir / 'checkpoints' / '30').mkdir()
  set_back.set_back(workdir, 20, lines.append)
  assert '30' in names(workdir / 'checkpoints')
  assert 'goes on from step 30' in lines[1]


def test_one_that_was_interrupted_is_completed(workdir):
  partial = workdir / 'set_aside' / 'from_step_20.partial'
  partial.mkdir(parents=True)
  (workdir / 'checkpoints' / '60').rename(partial / '60')
  (partial / 'metrics.jsonl').write_text('all lines')
  set_back.set_back(workdir, 20, lambda line: None)
  aside = workdir / 'set_aside' / 'from_step_20'
  assert {'40', '60'} <= set(names(aside)) and not partial.exists()
  assert (aside / 'metrics.jsonl').read_text() == 'all lines'


def test_a_step_that_was_not_kept(workdir):
  with pytest.raises(ValueError, match=r'from_step=30.*\[20, 40, 60\]'):
    set_back.set_back(workdir, 30, print)
  assert not (workdir / 'set_aside').exists()


def test_a_damaged_checkpoint(workdir, monkeypatch):
  def fail(folder):
    raise ValueError('cannot be restored')

  monkeypatch.setattr(orbax_checkpoint, 'read_config', fail)
  with pytest.raises(ValueError, match='cannot be restored'):
    set_back.set_back(workdir, 20, print)
  assert len(names(workdir / 'checkpoints')) == 4
