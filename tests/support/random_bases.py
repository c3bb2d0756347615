"""Workdirs with a base model that was never trained."""

import jax

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.models import from_config
from sdxl_jax.training import tasks


def raised(x):
  """Returns an array of parameters without zeros, scalars as they are.

  Layers that begin with zeros would hide what is before them.
  """
  return x + 0.05 if x.ndim else x


def save(folder, config, change=raised):
  """Saves a workdir with random parameters of a config's nets.

  Args:
    folder: of the run.
    config: of the run.
    change: array of the state -> the one that is saved.

  Returns:
    the folder.
  """
  task = tasks.make_task(config, from_config.make_model(config))
  state = jax.jit(task.init)(jax.random.key(0))
  state = jax.tree.map(change, state)
  checkpoints = orbax_checkpoint.Checkpoints(folder)
  checkpoints.save(1, state, {'batches': 0}, config.to_dict())
  checkpoints.close()
  return folder
