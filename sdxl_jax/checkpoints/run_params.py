"""Restores EMA or last parameters from a training checkpoint, and nothing else.

Shapes come from the checkpoint's own metadata, and the wanted arrays are chosen
by their path in the saved State, so neither model nor optimizer is built.
"""

import jax

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.ema import snapshots

# Any other value is the width of an EMA reconstructed from the run's snapshots.
AVERAGES = ('ema', 'none')
HELP = (
  "which parameters of a workdir: 'ema', 'none' (the last ones), or the width "
  'of an EMA reconstructed from snapshots, such as 0.05'
)


def restore(folder, mesh, names, average='ema', offload=False):
  """Restores the parameters of some nets from one checkpoint.

  Args:
    folder: pathlib.Path of the checkpoint.
    mesh: the devices that get the arrays; None: the first local device.
    names: nets to restore; they must be among the run's trained ones.
    average: one of AVERAGES, or the width of a reconstructed EMA as a string.
    offload: whether to restore to the host's CPU, for devices with too little
      memory.

  Returns:
    {net: tree of arrays}.

  Raises:
    ValueError: for an unknown average, a run without EMA or snapshots, or a
      checkpoint that cannot be read.
  """
  if mesh is None or offload:
    devices = jax.local_devices(backend='cpu' if offload else None)
    mesh = device_mesh.make_mesh(devices=devices[:1])
  saved = orbax_checkpoint.read_shapes(folder)
  if average not in AVERAGES:
    shapes = {name: saved['params'][name] for name in saved['params']}
    workdir, step = folder.parent.parent, int(folder.name)
    target = sharding.with_shardings(shapes, mesh)
    return snapshots.rebuild(workdir, step, parse_width(average), target)
  path = ('params',) if average == 'none' else ema_path(saved, folder)
  shapes = {name: subtree(saved, path)[name] for name in names}
  target = sharding.with_shardings(shapes, mesh)
  return orbax_checkpoint.restore_subtree(folder, saved, path, target)


def ema_path(saved, folder):
  """Returns the path of the first average in the saved State of a run.

  orbax saves an ema.transform.EmaState as a dict of its fields, count and
  params, where params is a list with one tree for each average.
  """
  nodes = [('opt_state',)]
  while nodes:
    path = nodes.pop(0)
    node = subtree(saved, path)
    if isinstance(node, dict) and set(node) == {'count', 'params'}:
      return (*path, 'params', 0)
    keys = node if isinstance(node, dict) else range(len(node or ()))
    children = [(*path, key) for key in keys]
    nodes += [p for p in children if isinstance(subtree(saved, p), dict | list)]
  raise ValueError(
    f"checkpoint {folder} holds no EMA: use average 'none' for the run's last "
    'parameters'
  )


def subtree(tree, path):
  """Returns the node of nested dicts and lists at a path."""
  for key in path:
    tree = tree[key]
  return tree


def parse_width(average):
  """Parses the width of a reconstructed EMA."""
  try:
    return float(average)
  except ValueError:
    raise ValueError(
      f'average is {average!r}; it must be one of {list(AVERAGES)}, or the '
      'width of an EMA such as 0.05'
    ) from None
