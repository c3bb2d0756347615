"""Copies of the power-function averages, from which others are put together.

WORKDIR/snapshots/STEP/WIDTH is an orbax checkpoint of one average in float16.
"""

import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sdxl_jax.ema import post_hoc, transform

FOLDER = 'snapshots'
half = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(jnp.float16), tree))


def save(workdir, step, opt_state, widths):
  """Writes the averages of a step; all processes write their parts.

  Args:
    workdir: of the run.
    step: optimizer steps done.
    opt_state: of a chain with optimizer.power_ema(*widths).
    widths: sigma_rel of each.
  """
  for i, width in enumerate(widths):
    average = half(transform.ema_params(opt_state, i))
    with ocp.StandardCheckpointer() as writer:
      writer.save(path(workdir, step, width), average, force=True)


def path(workdir, step, width):
  folder = pathlib.Path(workdir).absolute() / FOLDER
  return folder / f'{step:08d}' / f'{width:g}'


def find(workdir):
  """[(step, width)] of the snapshots that are complete, in their order."""
  folders = (pathlib.Path(workdir) / FOLDER).glob('*/*')
  whole = (f for f in folders if (f / '_CHECKPOINT_METADATA').exists())
  return sorted((int(f.parent.name), float(f.name)) for f in whole)


def rebuild(workdir, step, width, shapes):
  """The average of any width that ends at a step.

  Args:
    workdir: of a run with config.optimizer.ema_snapshots.
    step: the last one that counts; snapshots of later ones are not used.
    width: sigma_rel, a share of the steps.
    shapes: tree of jax.ShapeDtypeStruct with shardings: of the parameters.

  Returns:
    tree of float32 arrays.

  Raises:
    ValueError: where there are no snapshots, or for a width out of range.
  """
  there = [s for s in find(workdir) if s[0] <= step]
  like = lambda x: jax.ShapeDtypeStruct(
    x.shape, jnp.float16, sharding=x.sharding
  )
  target = jax.tree.map(like, shapes)

  def read(step, width):
    with ocp.StandardCheckpointer() as reader:
      return reader.restore(path(workdir, step, width), target)

  return post_hoc.rebuild(there, read, step, width)
