"""Saves State, data position and config together in one orbax checkpoint."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from sdxl_jax.checkpoints import write_errors
from sdxl_jax.weights import unknown_paths

FOLDER = 'checkpoints'
ITEMS = ('state', 'data', 'config')
NOT_READ = ocp.PLACEHOLDER  # in place of a leaf that is not restored
Json = dict[str, Any]


class Checkpoints:
  """The checkpoints of a workdir, saved in the background and atomically.

  A checkpoint that a crash interrupted is ignored and removed. All processes
  save and restore their own parts.

  Args:
    workdir: of the run.
    max_to_keep: latest checkpoints that stay.
    read_only: whether nothing is saved or removed.
    keep_every: steps between checkpoints that stay besides; 0: none do.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    max_to_keep: int = 2,
    read_only: bool = False,
    keep_every: int = 0,
  ):
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    options = ocp.CheckpointManagerOptions(
      max_to_keep=max_to_keep,
      read_only=read_only,
      keep_period=keep_every or None,
    )
    self._manager = ocp.CheckpointManager(
      self.folder, options=options, item_names=ITEMS
    )

  @property
  def latest_step(self) -> int | None:
    """The step of the latest checkpoint; None in a fresh workdir."""
    return self._manager.latest_step()

  def check_space(self, state: Any) -> None:
    """Raises CheckpointError if the disk has no room for one more State.

    Args:
      state: tree of arrays or of their jax.ShapeDtypeStruct.
    """
    need = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    try:
      free = shutil.disk_usage(self.folder).free
    except OSError as error:
      raise self.explain(error) from error
    if free < need:
      raise self.explain(
        OSError(
          f'{self.folder} has {free / 1e9:.3g} GB left, and the next '
          f'checkpoint takes up to {need / 1e9:.3g} GB'
        )
      )

  def save(self, step: int, state: Any, data: Json, config: Json) -> None:
    """Saves a State, the data position and the config.

    Raises:
      CheckpointError: if this checkpoint or the one before it cannot be
        written; complete ones stay.
    """
    # Saving runs in the background: errors of the last one appear here.
    self.wait()
    self.check_space(state)
    self._try(
      self._manager.save,
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(fields_of(state)),
        data=ocp.args.JsonSave(data),
        config=ocp.args.JsonSave(config),
      ),
      force=True,
    )

  def restore(self, state: Any) -> tuple[Any, Json]:
    """Restores (State, data position) of the latest step; see `restore`."""
    return restore(self.folder / str(self.latest_step), state)

  def read_shapes(self) -> Json:
    """Reads the shapes of the latest State; see `read_shapes`."""
    return read_shapes(self.folder / str(self.latest_step))

  def read_data(self) -> Json:
    """Reads what the latest checkpoint says of the data; see `restore`."""
    folder = self.folder / str(self.latest_step)
    return restore_items(folder, {'data': ocp.args.JsonRestore()})['data']

  def read_config(self) -> Json:
    """Reads the config that the latest checkpoint was saved with."""
    return read_config(self.folder / str(self.latest_step))

  def wait(self) -> None:
    """Waits until everything is on disk.

    Raises:
      CheckpointError: if a checkpoint cannot be written.
    """
    self._try(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits as `wait` does, and frees the manager."""
    self._try(self._manager.close)

  def _try(self, action: Callable, *args: Any, **settings: Any) -> None:
    # orbax raises ValueError, or many other types, when the disk is full.
    try:
      action(*args, **settings)
    except Exception as error:
      text = ' '.join(str(error).split())[:500]
      raise self.explain(
        OSError(f'a checkpoint cannot be written to {self.folder}: {text}')
      ) from error

  def explain(self, error: OSError) -> write_errors.CheckpointError:
    """Adds the last good checkpoint, and what to do, to an error's message."""
    return write_errors.explain(error, self.folder)


def find(source: str | pathlib.Path) -> pathlib.Path:
  """Returns the folder of one checkpoint: the source, or a workdir's latest.

  Raises:
    FileNotFoundError: if there is none.
  """
  given, source = source, pathlib.Path(source).absolute()
  # A checkpoint itself, or the latest of a workdir.
  if (source / 'state').is_dir():
    return source
  if not (source / FOLDER).is_dir():
    raise FileNotFoundError(unknown_paths.explain(given))
  checkpoints = Checkpoints(source, read_only=True)
  step = checkpoints.latest_step
  checkpoints.close()
  if step is None:
    raise FileNotFoundError(
      f'{source} has no checkpoint yet: wait for the first, or pass another '
      'folder'
    )
  return source / FOLDER / str(step)


def read_config(folder: pathlib.Path) -> Json:
  """Reads the config of the run that saved a checkpoint."""
  return restore_items(folder, {'config': ocp.args.JsonRestore()})['config']


def restore(folder: pathlib.Path, state: Any) -> tuple[Any, Json]:
  """Restores the State and the data position of a checkpoint.

  Args:
    folder: of one checkpoint.
    state: tree of jax.ShapeDtypeStruct with shardings, possibly of another mesh
      than the one that saved; leaves that are NOT_READ stay so.

  Returns:
    (State, data position).

  Raises:
    ValueError: if the checkpoint does not match; it is left as it is.
  """
  tree = fields_of(state)
  items = {
    'state': ocp.args.PyTreeRestore(tree, restore_args(tree)),
    'data': ocp.args.JsonRestore(),
  }
  restored = restore_items(folder, items)
  found = restored['state']
  if dataclasses.is_dataclass(state):
    found = dataclasses.replace(state, **found)
  return found, restored['data']


def fields_of(state: Any) -> Any:
  """Returns {field: value} of a dataclass, without those that are None.

  orbax would restore a None only where one was saved, and so no checkpoint from
  before there was such a field. Another tree is returned as it is.
  """
  if not dataclasses.is_dataclass(state):
    return state
  values = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {name: x for name, x in values.items() if x is not None}


def read_shapes(folder: pathlib.Path) -> dict[str, Any]:
  """Reads the shapes of a saved State from the metadata of its checkpoint.

  Args:
    folder: of one checkpoint.

  Returns:
    {'step', 'params', 'opt_state', ...} of nested dicts and lists, as orbax
    saves tuples, with a jax.ShapeDtypeStruct for each array.

  Raises:
    ValueError: if the metadata cannot be read.
  """
  try:
    # orbax warns of items without a handler.
    handler = ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(),
      data=ocp.JsonCheckpointHandler(),
      config=ocp.JsonCheckpointHandler(),
    )
    with ocp.Checkpointer(handler) as reader:
      metadata = reader.metadata(folder)
    tree = metadata.item_metadata['state'].tree
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  except Exception as error:  # orbax raises many types for a broken one
    raise ValueError(
      f'checkpoint {folder} has no readable metadata '
      f'({" ".join(str(error).split())[:300]}): re-download it, or use another '
      'checkpoint of the run'
    ) from error


def restore_subtree(
  folder: pathlib.Path,
  saved: dict[str, Any],
  path: tuple[str | int, ...],
  target: dict[str, Any],
) -> dict[str, Any]:
  """Restores the arrays of one node of a saved State, and reads no others.

  Args:
    folder: of one checkpoint.
    saved: its shapes, as `read_shapes` returns them.
    path: keys that lead from `saved` to the node.
    target: {name: tree of jax.ShapeDtypeStruct with shardings}, for some of the
      node's children.

  Returns:
    {name: tree of arrays}.

  Raises:
    ValueError: if the checkpoint cannot be read.
  """
  # orbax takes the whole tree, with placeholders for what it shall not read.
  item = jax.tree.map(lambda x: ocp.PLACEHOLDER, saved)
  node = item
  for key in path:
    node = node[key]
  node.update(target)
  items = {'state': ocp.args.PyTreeRestore(item, restore_args(item))}
  node = restore_items(folder, items)['state']
  for key in path:
    node = node[key]
  return {name: node[name] for name in target}


def restore_items(
  folder: pathlib.Path, items: dict[str, Any]
) -> dict[str, Any]:
  """Restores items of a checkpoint, given as {item: orbax arguments}.

  Raises:
    ValueError: if they cannot be restored.
  """
  try:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(*ITEMS)) as reader:
      restored = reader.restore(folder, args=ocp.args.Composite(**items))
      return {name: restored[name] for name in items}
  except Exception as error:
    raise ValueError(
      f'checkpoint {folder} cannot be restored ({error}). The run stops rather '
      'than start over: restore it with the config it was saved with, or pass '
      'another workdir'
    ) from error


def restore_args(state: Any) -> Any:
  """Returns a tree of the arrays' shardings, which PyTreeRestore requires."""

  def arg(x):
    if x is ocp.PLACEHOLDER:
      return ocp.RestoreArgs()
    return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape)

  return jax.tree.map(arg, state)
