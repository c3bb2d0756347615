"""State, data position and config in one orbax checkpoint, saved together."""

import pathlib

import jax
import orbax.checkpoint as ocp

FOLDER = 'checkpoints'


def restore_args(state):
  """Where each array goes; PyTreeRestore does not read it from the shapes."""
  place = lambda x: (
    ocp.RestoreArgs()
    if x is ocp.PLACEHOLDER
    else ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape)
  )
  return jax.tree.map(place, state)


class Checkpoints:
  """The checkpoints of a workdir; saving goes on in the background.

  A checkpoint appears whole or not at all: one that a crash cut short is
  ignored and removed.
  """

  def __init__(self, workdir, max_to_keep=2):
    folder = pathlib.Path(workdir).absolute() / FOLDER
    options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep)
    self._manager = ocp.CheckpointManager(
      folder, options=options, item_names=('state', 'data', 'config')
    )

  @property
  def latest_step(self):
    """int, or None in a fresh workdir."""
    return self._manager.latest_step()

  def save(self, step, state, data, config):
    """Saves a State, the data position and the config, both as JSON dicts."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        data=ocp.args.JsonSave(data),
        config=ocp.args.JsonSave(config),
      ),
      force=True,
    )

  def restore(self, state, step=None):
    """(State, data position) of a step, the latest by default.

    Args:
      state: tree of jax.ShapeDtypeStruct with shardings; where it has
        `ocp.PLACEHOLDER` nothing is read.
      step: int.

    Raises:
      ValueError: where the checkpoint does not fit; it is left as it is.
    """
    step = self.latest_step if step is None else step
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(state, restore_args(state)),
          data=ocp.args.JsonRestore(),
        ),
      )
    except Exception as error:
      raise ValueError(
        f'checkpoint {step} in {self._manager.directory} cannot be restored '
        f'({error}). The run stops rather than start over: restore it with the '
        'config it was saved with, or give another workdir'
      ) from error
    return restored['state'], restored['data']

  def wait(self):
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self):
    self._manager.close()
