"""Goes on from a checkpoint, with the data as they are now."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.data import fingerprint, pipeline
from sdxl_jax.distributed import multihost
from sdxl_jax.ema import partial_trees
from sdxl_jax.training import train_state

# Fields of the State that only some runs have.
OPTIONAL = ('loss_scale', 'loss_history')


class Dataset(NamedTuple):
  """A dataset, and what a checkpoint keeps of it."""

  source: Any  # of images, as data/ makes it
  fingerprint: fingerprint.Json
  streams: str  # hash of its order, see position.py


def check_dataset(
  checkpoints: orbax_checkpoint.Checkpoints,
  workdir: pathlib.Path,
  dataset: Dataset,
  accepted: bool,
  say: Callable[[str], Any],
) -> bool:
  """Compares the dataset with that of the latest checkpoint, and keeps it.

  Args:
    checkpoints: of the workdir.
    workdir: keeps what the next start compares with.
    dataset: of this start.
    accepted: whether another dataset is allowed.
    say: prints a line for the user.

  Returns:
    Whether records came, went or are in other buckets, so that a new pass over
    the data begins.

  Raises:
    ValueError: if the dataset changed, unless that is accepted.
  """
  new_pass = False
  if checkpoints.latest_step:
    new_pass = compare_dataset(checkpoints, workdir, dataset, accepted, say)
  # Kept once all processes have compared.
  multihost.barrier('every process has compared the dataset')
  if multihost.is_primary():
    fingerprint.save(workdir, dataset.fingerprint, dataset.source)
  return new_pass


def compare_dataset(
  checkpoints: orbax_checkpoint.Checkpoints,
  workdir: pathlib.Path,
  dataset: Dataset,
  accepted: bool,
  say: Callable[[str], Any],
) -> bool:
  """Compares with the latest checkpoint, and prints what changed.

  Arguments, result and errors are those of `check_dataset`.
  """
  step, data = checkpoints.latest_step, checkpoints.read_data()
  source, new, streams = dataset
  old = data.get('dataset')
  # Records of another height and width, or another table of buckets.
  other_streams = data.get('streams', streams) != streams
  if old is None:
    say(
      f'the checkpoint of step {step} is of a version that kept no '
      'fingerprint of the dataset: whether that changed is not known'
    )
    return False
  if old == new:
    if other_streams:
      say(
        f'the order of the data changed since step {step}; a new pass over it '
        'begins'
      )
    return other_streams

  # The dataset changed.
  changes = fingerprint.compare(workdir, old, new, source)
  if not accepted:
    raise ValueError(
      f'the dataset changed since step {step}:\n{changes}\nThe order of the '
      'data would no longer be the same. Restore the dataset to resume the '
      'run, use another workdir to start a new one, or pass --accept_changes '
      'to go on nevertheless'
    )
  new_pass = changes.other_records or other_streams
  follows = 'a new pass over it begins' if new_pass else 'the pass goes on'
  say(f'the dataset changed since step {step}; {follows}:\n{changes}')
  return new_pass


def saved_field(
  checkpoints: orbax_checkpoint.Checkpoints,
  shapes: train_state.State,
  name: str,
) -> Any:
  """Returns what to restore of an optional field, None where it was not saved.

  Args:
    checkpoints: of the workdir.
    shapes: the State as jax.ShapeDtypeStruct with shardings.
    name: of OPTIONAL.
  """
  saved, wanted = checkpoints.read_shapes().get(name), getattr(shapes, name)
  if saved is None:
    return None
  # What was saved must be named, also where the run has no such field now, or
  # a history of other timesteps.
  same = jax.tree.map(lambda x: x.shape, wanted) == jax.tree.map(
    lambda x: x.shape, saved
  )
  if wanted is None or (name == 'loss_history' and not same):
    return jax.tree.map(lambda x: orbax_checkpoint.NOT_READ, saved)
  return wanted


def with_history(
  state: train_state.State, shapes: train_state.State
) -> train_state.State:
  """Adds an empty loss history to a State without one, if it needs one."""
  wanted = shapes.loss_history
  if wanted is None or state.loss_history is not None:
    return state
  empty = jnp.zeros(wanted.shape, wanted.dtype)
  return state.replace(loss_history=jax.device_put(empty, wanted.sharding))


def check_optimizer(
  checkpoints: orbax_checkpoint.Checkpoints, shapes: train_state.State
) -> None:
  """Raises ValueError if the latest checkpoint is of another optimizer.

  Args:
    checkpoints: of the workdir.
    shapes: the State as jax.ShapeDtypeStruct.
  """
  saved = partial_trees.flat(checkpoints.read_shapes()['opt_state'])
  wanted = partial_trees.flat(shapes.opt_state)
  others = sorted(set(saved) ^ set(wanted)) or sorted(
    path for path, x in wanted.items() if x.shape != saved[path].shape
  )
  if not others:
    return
  path = others[0]
  where = 'only in this config' if path in wanted else 'only in the checkpoint'
  if path in saved and path in wanted:
    where = f'of shape {saved[path].shape} there and {wanted[path].shape} here'
  raise ValueError(
    f'the checkpoint of step {checkpoints.latest_step} has the state of '
    f'another optimizer: {len(others):,} of its arrays differ, as {path}, '
    f'{where}. Restore name, rates, moments_dtype and ema_widths of '
    'config.optimizer, or start a new run from the parameters with '
    '--config.init_from=WORKDIR'
  )


def restore(
  checkpoints: orbax_checkpoint.Checkpoints,
  shapes: train_state.State,
  batches: pipeline.Batches,
  buckets_per_step: int,
  new_pass: bool,
  say: Callable[[str], Any],
) -> train_state.State:
  """Restores the State of the latest checkpoint, and the position in the data.

  Args:
    checkpoints: of the workdir.
    shapes: the State as jax.ShapeDtypeStruct with shardings.
    batches: go on from the position.
    buckets_per_step: batches of the schedule in an optimizer step.
    new_pass: of `check_dataset`.
    say: prints a line for the user.

  Returns:
    The State; its loss_scale is None where the checkpoint has none.
  """
  check_optimizer(checkpoints, shapes)
  optional = {n: saved_field(checkpoints, shapes, n) for n in OPTIONAL}
  state, position = checkpoints.restore(shapes.replace(**optional))
  for name, target in optional.items():
    if orbax_checkpoint.NOT_READ in jax.tree.leaves(target):
      state = state.replace(**{name: None})
      if getattr(shapes, name) is not None:
        say(f'the {name} is of other timesteps: it begins anew')
  state = with_history(state, shapes)
  # Earlier versions did not save the size of the batches.
  if 'batch_size' not in position:
    saved = checkpoints.read_config()
    position['batch_size'] = saved['global_batch_size'] // saved.get(
      'buckets_per_step', 1
    )
  batches.set_state(
    position, checkpoints.latest_step * buckets_per_step, new_pass
  )
  size = batches.schedule.global_batch_size
  if size != position['batch_size'] and not new_pass:
    say(
      f'batches of the schedule have {size} records instead of '
      f'{position["batch_size"]}: the run goes on from the records seen'
    )
  return state
