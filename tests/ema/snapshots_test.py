"""A run leaves copies of its averages; another one is put together of them."""

import jax
import numpy as np
import pytest

from sdxl_jax import train
from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.ema import snapshots, transform
from sdxl_jax.models import from_config
from sdxl_jax.training import config_validation, tasks
from tests.support import tiny_config

WIDTHS = (0.05, 0.1, 0.2)  # the last one only to compare with


def test_rebuilt_from_a_run(tmp_path):
  config = tiny_config.get_config()
  config.total_steps = 24
  config.checkpoint.every = 24
  config.optimizer.ema_widths = WIDTHS
  config.optimizer.ema_snapshots = 2
  train.train(config, tmp_path)
  assert snapshots.find(tmp_path) == [
    (step, width) for step in range(2, 25, 2) for width in WIDTHS
  ]
  nets = from_config.make_model(config)
  state = jax.eval_shape(tasks.make_task(config, nets).init, jax.random.key(0))
  one = device_mesh.make_mesh(
    devices=jax.devices()[:4]
  )  # not the one that saved
  state = sharding.with_shardings(state, one)
  saved, _ = orbax_checkpoint.restore(orbax_checkpoint.find(tmp_path), state)
  tracked = transform.ema_params(saved.opt_state, 2)
  for step in snapshots.find(tmp_path):
    if step[1] == 0.2:
      (snapshots.path(tmp_path, *step) / '_CHECKPOINT_METADATA').unlink()
  rebuilt = snapshots.rebuild(tmp_path, 24, 0.2, state.params)
  first = transform.ema_params(saved.opt_state, 0)

  def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

  def off(tree):
    return np.linalg.norm(flat(tree) - flat(tracked))

  assert off(rebuilt) < 0.1 * off(first)
  assert off(rebuilt) < 0.01 * np.linalg.norm(flat(tracked))
  with pytest.raises(ValueError, match='no snapshots'):
    snapshots.rebuild(tmp_path / 'nowhere', 24, 0.2, state.params)


def test_snapshots_need_widths():
  config = tiny_config.get_config()
  config.optimizer.ema_snapshots = 10
  with pytest.raises(ValueError, match='set config.optimizer.ema_widths'):
    config_validation.check(config)
