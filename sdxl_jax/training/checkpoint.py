"""State, data position and config in one orbax checkpoint, saved together."""

import pathlib
import shutil

import jax
import orbax.checkpoint as ocp

FOLDER = 'checkpoints'
ITEMS = ('state', 'data', 'config')


class Checkpoints:
  """The checkpoints of a workdir; saving goes on in the background.

  A checkpoint appears whole or not at all: one that a crash cut short is
  ignored and removed. All processes save and restore their own parts.
  """

  def __init__(self, workdir, max_to_keep=2, read_only=False):
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    options = ocp.CheckpointManagerOptions(
      max_to_keep=max_to_keep, read_only=read_only
    )
    self._manager = ocp.CheckpointManager(
      self.folder, options=options, item_names=ITEMS
    )

  @property
  def latest_step(self):
    """int, or None in a fresh workdir."""
    return self._manager.latest_step()

  def check_space(self, state):
    """Raises OSError unless the disk has room for one more State.

    Args:
      state: tree of arrays or of their jax.ShapeDtypeStruct.
    """
    need = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self.folder).free
    if free < need:
      raise OSError(
        f'{self.folder} has {free / 1e9:.3g} GB left, and the next checkpoint '
        f'takes up to {need / 1e9:.3g} GB. {self._remedy()}'
      )

  def save(self, step, state, data, config):
    """Saves a State, the data position and the config, both as JSON dicts.

    Raises:
      OSError: where this one or the one before it cannot be written; those
        that are complete stay.
    """
    self.wait()
    self.check_space(state)
    self._try(
      self._manager.save,
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        data=ocp.args.JsonSave(data),
        config=ocp.args.JsonSave(config),
      ),
      force=True,
    )

  def restore(self, state):
    """(State, data position) of the latest step; see `restore`."""
    return restore(self.folder / str(self.latest_step), state)

  def wait(self):
    """Returns when everything is on disk, or raises OSError."""
    self._try(self._manager.wait_until_finished)

  def close(self):
    self._try(self._manager.close)

  def _try(self, action, *args, **settings):
    # Orbax tells of a full disk with a ValueError, or one of many others.
    try:
      action(*args, **settings)
    except Exception as error:
      raise OSError(
        f'a checkpoint cannot be written to {self.folder}: '
        f'{str(error)[:500]}. {self._remedy()}'
      ) from error

  def _remedy(self):
    step = self._manager.latest_step()
    good = 'no step' if step is None else f'step {step}'
    return (
      f'The last good one is that of {good}: make room and run the same '
      'command again'
    )


def find(source):
  """The folder of one checkpoint: the source itself, or a workdir's latest."""
  source = pathlib.Path(source).absolute()
  if (source / 'state').is_dir():
    return source
  if not (source / FOLDER).is_dir():
    raise FileNotFoundError(
      f'{source} is no diffusers folder, no single file, no workdir of a '
      f'training run and none of its {FOLDER}/STEP: check the path'
    )
  checkpoints = Checkpoints(source, read_only=True)
  step = checkpoints.latest_step
  checkpoints.close()
  if step is None:
    raise FileNotFoundError(
      f'{source} has no checkpoint yet: wait for the first, or give another '
      'folder'
    )
  return source / FOLDER / str(step)


def read_config(folder):
  """The config, as a dict, that a checkpoint's run had."""
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler(*ITEMS)) as reader:
    args = ocp.args.Composite(config=ocp.args.JsonRestore())
    return reader.restore(folder, args=args)['config']


def restore(folder, state):
  """(State, data position) of the checkpoint in a folder.

  Args:
    folder: of one checkpoint.
    state: tree of jax.ShapeDtypeStruct with shardings, which may be of another
      mesh than the one that saved; where it has `ocp.PLACEHOLDER` nothing is
      read.

  Raises:
    ValueError: where the checkpoint does not fit; it is left as it is.
  """
  args = ocp.args.Composite(
    state=ocp.args.PyTreeRestore(state, restore_args(state)),
    data=ocp.args.JsonRestore(),
  )
  try:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(*ITEMS)) as reader:
      restored = reader.restore(folder, args=args)
  except Exception as error:
    raise ValueError(
      f'checkpoint {folder} cannot be restored ({error}). The run stops rather '
      'than start over: restore it with the config it was saved with, or give '
      'another workdir'
    ) from error
  return restored['state'], restored['data']


def restore_args(state):
  """Where each array goes; PyTreeRestore does not read it from the shapes."""
  place = lambda x: (
    ocp.RestoreArgs()
    if x is ocp.PLACEHOLDER
    else ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape)
  )
  return jax.tree.map(place, state)
