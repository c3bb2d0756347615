"""Checkpoints of runs that never took a step: random numbers in every array."""

import json

import jax
import numpy as np

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.ema import snapshots
from sdxl_jax.models import from_config
from sdxl_jax.training import tasks


def save(config, workdir, step=1):
  """Saves a random State, and its EMA snapshots; returns the State."""
  task = tasks.make_task(config, from_config.make_model(config))
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  rng = np.random.default_rng(0)

  def sample(x):
    return jax.numpy.asarray(rng.normal(size=x.shape), x.dtype)

  state = jax.tree.map(sample, shapes)
  save_state(state, config, workdir, step)
  widths = config.optimizer.ema_widths
  snapshots.save(workdir, step, state.opt_state, widths)()
  return state


def save_state(state, config, workdir, step=1):
  """Saves a State as a checkpoint."""
  workdir.mkdir(exist_ok=True)
  checkpoints = orbax_checkpoint.Checkpoints(workdir)
  checkpoints.save(step, state, {}, json.loads(config.to_json()))
  checkpoints.close()
