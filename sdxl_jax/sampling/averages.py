"""What may be taken of a checkpoint: an EMA, or the last parameters."""

import jax
import orbax.checkpoint as ocp

from sdxl_jax.distributed import mesh as meshes
from sdxl_jax.distributed import sharding
from sdxl_jax.training import checkpoint, optimizer, snapshots

# Any other is the width of an EMA put together from its run's snapshots.
AVERAGES = {
  'ema': lambda state: optimizer.ema_params(state.opt_state),
  'none': lambda state: state.params,
}
HELP = (
  "of a workdir: 'ema', 'none' (the last parameters), or the width of an EMA "
  'to put together from snapshots, such as 0.05'
)


def restore(folder, task, mesh, names, average='ema', offload=False):
  """{name: parameters} of a checkpoint; the rest of it stays on disk.

  Args:
    folder: of one checkpoint.
    task: state.Task of its run.
    mesh: where to.
    names: of the nets.
    average: see AVERAGES.
    offload: to the host instead, since the device may not hold it all.
  """
  state = jax.eval_shape(task.init, jax.random.key(0))
  if mesh is None or offload:
    devices = jax.local_devices(backend='cpu' if offload else None)
    mesh = meshes.make_mesh(devices=devices[:1])
  state = sharding.with_shardings(state, mesh)
  if average not in AVERAGES:
    workdir, step = folder.parent.parent, int(folder.name)
    shapes = state.params
    return snapshots.rebuild(workdir, step, parse_width(average), shapes)
  choose = AVERAGES[average]
  wanted = {id(x) for n in names for x in jax.tree.leaves(choose(state)[n])}
  place = lambda x: x if id(x) in wanted else ocp.PLACEHOLDER
  state, _ = checkpoint.restore(folder, jax.tree.map(place, state))
  return choose(state)


def parse_width(average):
  """The width of an EMA, as it was typed."""
  try:
    return float(average)
  except ValueError:
    raise ValueError(
      f'average is {average!r}; it must be one of {list(AVERAGES)}, or the '
      'width of an EMA, as 0.05'
    ) from None
