"""Searches for the settings of a run with the least time."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

from sdxl_jax.distributed import device_mesh
from sdxl_jax.planning import training_plan
from sdxl_jax.training import tasks

GIB = 2**30


class Candidate(NamedTuple):
  """A setting that fits."""

  fields: dict[str, Any]  # of the config
  cost: training_plan.BucketCost

  @property
  def seconds_per_image(self) -> float:
    """Time per image of a device."""
    return self.cost.seconds / self.cost.batch


def search(
  config: ml_collections.ConfigDict,
  name: str,
  bucket: tuple[int, int],
  say: Callable[[str], None],
) -> Candidate | None:
  """Searches for the batch size and rematerialisation with the least time.

  Doubles the batch under each rematerialisation until it no longer fits.
  Compiles with little optimisation, so that the times can be compared with one
  another only.

  Args:
    config: of the run.
    name: of the topology.
    bucket: (height, width) in px.
    say: takes a line for the user.

  Returns:
    the fastest Candidate, or None if nothing fits.

  Raises:
    ValueError: for a machine whose memory and speed are not known.
  """
  planner = training_plan.Planner(config, name)
  if planner.machine.chip.memory is None:
    raise ValueError(
      f'--search needs the memory of the devices, and that of {name!r} is not '
      'known: name a machine'
    )
  # One row per device and micro-batch.
  smallest = device_mesh.row_devices(planner.mesh) * tasks.micro_batches_of(
    config
  )
  candidates = []
  for remat in ('none', 'dots', 'full'):
    size = smallest
    while True:
      fields = {
        training_plan.REMAT[config.task]: remat,
        'global_batch_size': size,
      }
      planner = training_plan.Planner(
        training_plan.changed(config, fields), name
      )
      cost = planner.gradients(bucket, training_plan.QUICK)
      say(f'  {as_flags(fields)}: {cost.memory / GIB:.1f} GiB')
      if not cost.fits:
        break
      candidates.append(Candidate(fields, cost))
      size *= 2
  return min(candidates, key=lambda c: c.seconds_per_image, default=None)


class Unrolling(NamedTuple):
  """What writing blocks out in place of a loop saves and costs."""

  fields: dict[str, Any]  # of the config
  cost: training_plan.BucketCost
  saved: float  # s of an optimizer step
  compiling: float  # s more for the programs of all buckets, one by one

  @property
  def steps(self) -> float:
    """Optimizer steps from which on it saves more than it costs."""
    if self.saved <= 0:
      return math.inf
    return max(0.0, self.compiling / self.saved)


def unroll(
  config: ml_collections.ConfigDict,
  name: str,
  bucket: tuple[int, int],
  found: Candidate,
) -> Unrolling | None:
  """Compares the fastest setting with the same, all blocks written out.

  Compiles with little optimisation, and takes the seconds of compiling to be
  those of a machine as fast as this one.

  Args:
    config: of the run.
    name: of the topology.
    bucket: (height, width) in px.
    found: the result of `search`.

  Returns:
    None where there is no loop, or where written out it does not fit.
  """
  depth = deepest(config)
  if config.task != 'diffusion' or depth < 2 or not config.unet.scan_blocks:
    return None
  fields = found.fields | {'unet.scan_unroll': depth}
  changed = training_plan.changed(config, fields)
  planner = training_plan.Planner(changed, name)
  cost = planner.gradients(bucket, training_plan.QUICK)
  if not cost.fits:
    return None
  longer = cost.compile_seconds - found.cost.compile_seconds
  return Unrolling(
    fields,
    cost,
    tasks.micro_batches_of(changed) * (found.cost.seconds - cost.seconds),
    len(config.data.buckets) * longer / training_plan.QUICK_SHARE,
  )


def deepest(config: ml_collections.ConfigDict) -> int:
  """Returns the blocks of the UNet's deepest stack."""
  names = 'transformer_depth', 'mid_transformer_depth', 'up_transformer_depth'
  return max(jax.tree.leaves([config.unet[name] for name in names]))


def describe(found: Unrolling | None, total_steps: int) -> str:
  """Returns a line on whether a run is long enough to write blocks out."""
  if found is None:
    return 'all blocks written out: no loop to replace, or it does not fit'
  if not math.isfinite(found.steps):
    return f'{as_flags(found.fields)}: no faster than the loop'
  verdict = 'worth it' if total_steps > found.steps else 'not worth it'
  return (
    f'{as_flags(found.fields)}: saves {found.saved:.3f} s of a step, compiles '
    f'for {found.compiling / 60:.0f} min more: from {found.steps:,.0f} steps '
    f'on, so {verdict} for the {total_steps:,} of this run'
  )


def as_flags(fields: dict[str, Any]) -> str:
  """Formats {field: value} as flags of the command line."""
  return ' '.join(f'--config.{name}={value}' for name, value in fields.items())
