"""Snapshots of the power-function averages, for post-hoc EMA.

WORKDIR/snapshots/STEP/WIDTH is an orbax checkpoint of one average in float16.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sdxl_jax.ema import post_hoc, transform

FOLDER = 'snapshots'


@jax.jit
def to_float16(tree: Any) -> Any:
  """Converts all arrays of a tree."""
  return jax.tree.map(lambda x: x.astype(jnp.float16), tree)


def save(
  workdir: str | pathlib.Path,
  step: int,
  opt_state: Any,
  widths: Sequence[float],
) -> Callable[[], None]:
  """Copies the averages of a step, and writes them in the background.

  All processes write their parts.

  Args:
    workdir: of the run.
    step: optimizer steps done.
    opt_state: of a chain with transform.power_ema(*widths); it may be donated
      afterwards.
    widths: sigma_rel of each average.

  Returns:
    A function that waits until they are written, and raises what went wrong.
  """
  writers = []
  for i, width in enumerate(widths):
    average = to_float16(transform.ema_params(opt_state, i))
    writers.append(ocp.StandardCheckpointer())
    writers[-1].save(path(workdir, step, width), average, force=True)

  def finish():
    for writer in writers:
      writer.close()

  return finish


def path(workdir: str | pathlib.Path, step: int, width: float) -> pathlib.Path:
  """Returns the folder of a snapshot."""
  folder = pathlib.Path(workdir).absolute() / FOLDER
  return folder / f'{step:08d}' / f'{width:g}'


def find(workdir: str | pathlib.Path) -> list[post_hoc.Snapshot]:
  """Returns (step, width) of the complete snapshots, in order."""
  folders = (pathlib.Path(workdir) / FOLDER).glob('*/*')
  complete = (f for f in folders if (f / '_CHECKPOINT_METADATA').exists())
  return sorted((int(f.parent.name), float(f.name)) for f in complete)


def rebuild(
  workdir: str | pathlib.Path, step: int, width: float, shapes: Any
) -> Any:
  """Reconstructs the average of any width that ends at a step.

  Args:
    workdir: of a run with config.optimizer.ema_snapshots.
    step: last step of the average; later snapshots are not used.
    width: sigma_rel, a share of the steps.
    shapes: tree of jax.ShapeDtypeStruct with shardings: of the parameters.

  Returns:
    tree of float32 arrays.

  Raises:
    ValueError: if there are no snapshots, or for a width out of range.
  """
  # Snapshots are float16, with the shardings of the parameters.
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float16, sharding=x.sharding),
    shapes,
  )

  def read(step, width):
    with ocp.StandardCheckpointer() as reader:
      return reader.restore(path(workdir, step, width), target)

  earlier = [snapshot for snapshot in find(workdir) if snapshot[0] <= step]
  return post_hoc.rebuild(earlier, read, step, width)
