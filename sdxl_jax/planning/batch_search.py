"""Searches for the batch size and rematerialisation with the least time."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


def as_flags(fields: dict[str, Any]) -> str:
  """Formats {field: value} as flags of the command line."""
  return ' '.join(f'--config.{name}={value}' for name, value in fields.items())
