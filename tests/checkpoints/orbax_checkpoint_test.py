"""Which checkpoints stay, and what happens when the disk is full."""

import collections
import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.checkpoints import orbax_checkpoint

Usage = collections.namedtuple('Usage', 'free')
STATE = {'a': jnp.arange(1000.0), 'b': jnp.ones([10, 10], jnp.bfloat16)}
BYTES = 4 * 1000 + 2 * 100


@pytest.fixture
def checkpoints(tmp_path):
  saved = orbax_checkpoint.Checkpoints(tmp_path)
  saved.save(2, STATE, {'position': 2}, {})
  saved.wait()
  return saved


def is_good(checkpoints, step):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), STATE
  )
  state, position = orbax_checkpoint.restore(
    checkpoints.folder / str(step), shapes
  )
  same = jax.tree.map(np.array_equal, state, STATE)
  return jax.tree.all(same) and position == {'position': step}


@pytest.mark.parametrize('free, fits', [(BYTES, True), (BYTES - 1, False)])
def test_room_for_one_more(checkpoints, monkeypatch, free, fits):
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: Usage(free))
  if fits:
    checkpoints.save(4, STATE, {'position': 4}, {})
    checkpoints.wait()
  else:
    with pytest.raises(OSError, match='4.2e-06 GB.* good one .* step 2'):
      checkpoints.save(4, STATE, {'position': 4}, {})
  assert checkpoints.latest_step == (4 if fits else 2)
  assert is_good(checkpoints, checkpoints.latest_step)


@pytest.mark.parametrize(
  'keep_every, kept', [(0, [7, 8]), (3, [3, 6, 7, 8]), (1, list(range(1, 9)))]
)
def test_checkpoints_that_stay(tmp_path, keep_every, kept):
  saved = orbax_checkpoint.Checkpoints(
    tmp_path, max_to_keep=2, keep_every=keep_every
  )
  for step in range(1, 9):
    saved.save(step, STATE, {'position': step}, {})
  saved.close()
  steps = (tmp_path / 'checkpoints').iterdir()
  assert sorted(int(folder.name) for folder in steps) == kept
  assert all(is_good(saved, step) for step in kept)


def test_checkpoints_stay_after_a_restart(tmp_path):
  """Those of earlier starts count too, whatever these kept."""
  for start in 1, 4:
    saved = orbax_checkpoint.Checkpoints(tmp_path, max_to_keep=1, keep_every=2)
    for step in range(start, start + 3):
      saved.save(step, STATE, {'position': step}, {})
    saved.close()
  steps = (tmp_path / 'checkpoints').iterdir()
  assert sorted(int(folder.name) for folder in steps) == [2, 4, 6]


def test_a_write_that_fails(checkpoints, monkeypatch):
  """In spite of free space: because of a quota, or of other writers."""

  def fail(*args, **settings):
    raise ValueError('RESOURCE_EXHAUSTED: Error writing local file')

  monkeypatch.setattr(checkpoints._manager, 'save', fail)
  with pytest.raises(OSError, match='RESOURCE_EXHAUSTED.*\\. The last good'):
    checkpoints.save(4, STATE, {'position': 4}, {})
  checkpoints.close()
  assert is_good(checkpoints, 2)


@pytest.mark.parametrize(
  'error, remedy',
  [
    (errno.ENOSPC, 'make room'),
    (errno.EDQUOT, 'make room'),
    (errno.EFBIG, 'make room'),
    (errno.EROFS, 'make the folder writable'),
    (errno.EACCES, 'make the folder writable'),
    (errno.ESTALE, 'mount or restore the folder'),
    (errno.EIO, 'mount or restore the folder'),
    (errno.EINTR, 'mend that'),
  ],
)
def test_errors_have_a_remedy(checkpoints, error, remedy):
  explained = checkpoints.explain(OSError(error, os.strerror(error)))
  assert str(explained).endswith(
    f'. The last good one is that of step 2: {remedy} and run the same command '
    'again'
  )
  assert checkpoints.explain(explained) is explained


def test_a_workdir_that_vanished(checkpoints, tmp_path):
  """Unmounted, or removed: nothing is written where it was."""
  (tmp_path / 'checkpoints').rename(tmp_path / 'elsewhere')
  with pytest.raises(OSError, match='out of reach: mount or restore'):
    checkpoints.save(4, STATE, {'position': 4}, {})
  assert not (tmp_path / 'checkpoints').exists()
