"""Restores EMA or last parameters from a training checkpoint, and nothing else.

Shapes come from the checkpoint's own metadata, and the wanted arrays are chosen
by their path in the saved State, so neither model nor optimizer is built.
"""

import pathlib
from collections.abc import Collection
from typing import Any

import jax

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.ema import partial_trees, post_hoc, snapshots

# Any other value is the width of an EMA reconstructed from the run's snapshots.
AVERAGES = ('ema', 'none')
HELP = (
  "which parameters of a workdir: 'ema', 'none' (the last ones), or the width "
  'of an EMA reconstructed from snapshots, such as 0.05'
)
Path = tuple[str | int, ...]  # of a node in nested dicts and lists


def restore(
  folder: pathlib.Path,
  mesh: jax.sharding.Mesh | None,
  names: Collection[str],
  average: str = 'ema',
  offload: bool = False,
) -> dict[str, Any]:
  """Restores the parameters of some nets from one checkpoint.

  Args:
    folder: of the checkpoint.
    mesh: the devices that get the arrays; None: the first local device.
    names: nets to restore, which the run trained; 'lora' for low-rank factors.
    average: one of AVERAGES, or the width of a reconstructed EMA as a string.
    offload: whether to restore to the host's CPU, for devices with too little
      memory.

  Returns:
    {net: tree of arrays}.

  Raises:
    ValueError: for an unknown average, a run without EMA, snapshots or one of
      the nets, or a checkpoint that cannot be read.
  """
  if mesh is None or offload:
    devices = jax.local_devices(backend='cpu' if offload else None)
    mesh = device_mesh.make_mesh(devices=devices[:1])
  width = None if average in AVERAGES else parse_width(average)
  saved = orbax_checkpoint.read_shapes(folder)
  missing = sorted(set(names) - set(saved['params']))
  if missing:
    raise ValueError(
      f'checkpoint {folder} has parameters of {", ".join(saved["params"])}, '
      f'and none of {", ".join(missing)}: use another checkpoint'
    )
  if average == 'none':
    target = {name: saved['params'][name] for name in names}
    target = sharding.with_shardings(target, mesh)
    return orbax_checkpoint.restore_subtree(folder, saved, ('params',), target)
  # Of what is frozen there is no average.
  workdir, step = folder.parent.parent, int(folder.name)
  if width is not None and not snapshots.find(workdir):
    post_hoc.solve([], step, width)  # raises
  path = find_ema(saved, folder)
  averaged = subtree(saved, path)
  if width is None:
    averaged = {name: averaged[name] for name in names if name in averaged}
  target = sharding.with_shardings(averaged, mesh)
  # Snapshots hold all trained nets in one tree.
  if width is not None:
    params = snapshots.rebuild(workdir, step, width, target)
  else:
    params = orbax_checkpoint.restore_subtree(folder, saved, path, target)
  params = {name: params[name] for name in names if name in params}
  frozen = restore_frozen(folder, saved, mesh, names, params)
  return partial_trees.merge(frozen, params)


def restore_frozen(
  folder: pathlib.Path,
  saved: dict[str, Any],
  mesh: jax.sharding.Mesh,
  names: Collection[str],
  averaged: dict[str, Any],
) -> dict[str, Any]:
  """Restores the parameters of some nets that a run kept no average of.

  Args:
    folder: of the checkpoint.
    saved: its shapes, as orbax_checkpoint.read_shapes returns them.
    mesh: the devices that get the arrays.
    names: of the nets.
    averaged: {net: tree}, what there is an average of.

  Returns:
    {net: tree of arrays}, without the leaves that are averaged.
  """
  known = partial_trees.flat(averaged)
  whole = {name: saved['params'][name] for name in names}
  missing = partial_trees.select(whole, lambda path: path not in known)
  if not missing:
    return {}
  target = jax.tree.map(
    lambda x: orbax_checkpoint.NOT_READ, {name: whole[name] for name in missing}
  )
  target = partial_trees.merge(target, sharding.with_shardings(missing, mesh))
  restored = orbax_checkpoint.restore_subtree(
    folder, saved, ('params',), target
  )
  return partial_trees.like(restored, missing)


def find_ema(saved: dict[str, Any], folder: pathlib.Path) -> Path:
  """Returns the path of the first average in the saved State of a run.

  orbax saves an ema.transform.EmaState as a dict of its fields, count and
  params, where params is a list with one tree for each average.

  Args:
    saved: shapes, as orbax_checkpoint.read_shapes returns them.
    folder: of the checkpoint, for errors.

  Raises:
    ValueError: if the run kept no EMA.
  """
  paths = [('opt_state',)]
  while paths:
    path = paths.pop()
    node = subtree(saved, path)
    if isinstance(node, dict) and set(node) == {'count', 'params'}:
      return (*path, 'params', 0)
    # Depth first, in order: as ema.transform.ema_params searches.
    if isinstance(node, dict | list):
      keys = node if isinstance(node, dict) else range(len(node))
      paths += reversed([(*path, key) for key in keys])
  raise ValueError(
    f"checkpoint {folder} holds no EMA: use average 'none' for the run's last "
    'parameters'
  )


def subtree(tree: Any, path: Path) -> Any:
  """Returns the node of nested dicts and lists at a path."""
  for key in path:
    tree = tree[key]
  return tree


def parse_width(average: str) -> float:
  """Parses the width of a reconstructed EMA."""
  try:
    return float(average)
  except ValueError:
    raise ValueError(
      f'average is {average!r}; it must be one of {list(AVERAGES)}, or the '
      'width of an EMA such as 0.05'
    ) from None
