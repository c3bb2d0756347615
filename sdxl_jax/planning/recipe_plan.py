"""Plans the paper's recipe, stage after stage: days, chip-hours, limits.

Each stage runs on as many chips of the machine as its batch can be shared
among, with the least rematerialisation that fits.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections

from sdxl_jax.planning import topology, training_plan
from sdxl_jax.training import tasks

# In the order in which they are trained; see configs/README.md.
STAGES = ('stage0', 'stage1', 'stage2', 'stage3', 'refiner')
DAY, HOUR = 86400, 3600  # s
GIB = 2**30


class Links(NamedTuple):
  """How the time of a step's gradients divides."""

  computing: float  # s
  transfer: float  # s, of all collectives; none is counted as overlapped


class StagePlan(NamedTuple):
  """What a stage takes."""

  name: str
  topology: str  # of the chips that it runs on
  fields: dict[str, Any]  # of the config, to make it fit
  planner: training_plan.Planner
  gradients: training_plan.BucketCost  # of a micro-batch
  update: training_plan.UpdateCost

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The stage's config, with the fields."""
    return self.planner.config

  @property
  def chips(self) -> int:
    """Number of chips."""
    return self.planner.machine.size

  @property
  def step_seconds(self) -> float:
    """Time of an optimizer step: all micro-batches, then the update."""
    count = tasks.micro_batches_of(self.config)
    return count * self.gradients.seconds + self.update.seconds

  @property
  def seconds(self) -> float:
    """Time of all steps, without start, samples and checkpoints."""
    return self.config.total_steps * self.step_seconds

  @property
  def chip_hours(self) -> float:
    """Hours of one chip."""
    return self.chips * self.seconds / HOUR

  @property
  def images_per_second(self) -> float:
    """Images that the step takes in, on all chips."""
    return self.config.global_batch_size / self.step_seconds

  @property
  def host_images_per_second(self) -> float:
    """Images that the pipeline of each host must deliver."""
    hosts = self.chips / self.planner.machine.devices_of_a_host
    return self.images_per_second / hosts

  @property
  def checkpoint_bytes(self) -> int:
    """Bytes of a checkpoint: parameters, moments, EMA."""
    leaves = jax.tree.leaves(self.planner.state)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)

  @property
  def links(self) -> Links:
    """The seconds of the gradients of a micro-batch, with the links' apart."""
    received = sum(self.gradients.collectives.values())
    transfer = received / self.planner.machine.chip.link if received else 0.0
    return Links(self.gradients.seconds - transfer, transfer)

  @property
  def most_chips(self) -> dict[str, float]:
    """{limit: chips beyond which it makes more of them useless}.

    Each chip needs an image of the batch. Computing takes less time on more
    chips, and exchanging parameters and gradients does not: where both take as
    long, further chips gain less than half of what they add.
    """
    limits = {'batch': float(self.config.global_batch_size)}
    computing, transfer = self.links
    if transfer:
      limits['links'] = self.chips * computing / transfer
    return limits

  def slowdown(self, host_images: float | None) -> float:
    """Returns how many times as long a stage takes that waits for its data.

    Every host reads for its own chips, so that their number does not matter.

    Args:
      host_images: images per second that the pipeline of a host delivers; None:
        not known, and taken to be enough.
    """
    if host_images is None:
      return 1.0
    return max(1.0, self.host_images_per_second / host_images)


def plan(
  name: str,
  stages: list[str],
  say: Callable[[str], None],
  load: Callable[[str], ml_collections.ConfigDict] | None = None,
) -> list[StagePlan]:
  """Plans stages on a machine.

  Args:
    name: of the topology.
    stages: some of STAGES.
    say: takes a line for the user.
    load: returns the config of a stage; default: `stage_config`.

  Raises:
    ValueError: for a machine of unknown speed, or a stage that fits no number
      of its chips.
  """
  if topology.chip_of(name) is None:
    raise ValueError(
      f'--recipe needs the speed of the devices, and that of {name!r} is not '
      'known: name a machine'
    )
  load = load or stage_config
  return [plan_stage(stage, load(stage), name, say) for stage in stages]


def stage_config(name: str) -> ml_collections.ConfigDict:
  """Imports the config of a stage from the folder configs/.

  Raises:
    ValueError: if this folder cannot be imported.
  """
  try:
    module = importlib.import_module(f'configs.{name}')
  except ModuleNotFoundError as error:
    raise ValueError(
      f'--recipe finds no configs/{name}.py here: run it in the folder of the '
      'repository'
    ) from error
  return module.get_config()


def plan_stage(
  stage: str,
  config: ml_collections.ConfigDict,
  name: str,
  say: Callable[[str], None],
) -> StagePlan:
  """Plans one stage on the largest part of a machine that its batch fills.

  Compiles quickly until something fits, then once more for the time.

  Args:
    stage: its name.
    config: its config.
    name: of the topology.
    say: takes a line for the user.

  Raises:
    ValueError: if nothing fits.
  """
  micro_batches = tasks.micro_batches_of(config)
  part, chips = share_of(name, config.global_batch_size // micro_batches)
  # The square bucket, as the others need the same.
  bucket = min(config.data.buckets, key=lambda b: abs(math.log(b[0] / b[1])))
  bucket = tuple(map(int, bucket))
  for fields in choices(config, training_plan.REMAT[config.task], chips):
    planner = training_plan.Planner(training_plan.changed(config, fields), part)
    found = planner.gradients(bucket, training_plan.QUICK)
    described = ' '.join(f'{k}={v}' for k, v in fields.items())
    say(f'  {stage} on {part}, {described}: {found.memory / GIB:.1f} GiB')
    if found.fits:
      return StagePlan(
        stage,
        part,
        fields,
        planner,
        planner.gradients(bucket),
        planner.update(),
      )
  memory = planner.machine.chip.memory / GIB
  raise ValueError(
    f'{stage} does not fit {part}, whose chips have {memory:.1f} GiB: take '
    'chips with more memory'
  )


def share_of(name: str, batch: int) -> tuple[str, int]:
  """Returns the largest part of a machine that shares a batch evenly.

  Returns:
    (its topology, its chips).

  Raises:
    ValueError: for a name that does not exist, or if no part does.
  """
  parts = topology.parts(name)
  counts = [n for n in parts if batch % n == 0]
  if not counts:
    raise ValueError(
      f'a micro-batch of {batch} images cannot be shared evenly by '
      f'{", ".join(map(str, parts))} chips of {name}: name another machine'
    )
  return parts[max(counts)], max(counts)


def choices(
  config: ml_collections.ConfigDict, field: str, chips: int
) -> Iterator[dict[str, Any]]:
  """Yields fields that need less and less memory, and more and more time.

  Args:
    config: of the stage.
    field: that sets the rematerialisation.
    chips: that share each micro-batch evenly.
  """
  for remat in ('none', 'dots', 'full'):
    yield {field: remat}
  parts = 2 * config.accumulation_steps
  while not config.global_batch_size % (
    parts * config.buckets_per_step * chips
  ):
    yield {field: 'full', 'accumulation_steps': parts}
    parts *= 2
