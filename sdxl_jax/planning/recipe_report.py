"""Reports the plan of the paper's recipe: a table, totals, limits."""

from collections.abc import Sequence
from typing import Any

from sdxl_jax.planning import machines, report
from sdxl_jax.planning.recipe_plan import DAY, GIB, StagePlan

# Of a StagePlan.
COLUMNS = (
  report.Column('stage', lambda s: s.name),
  report.Column('on', lambda s: s.topology),
  report.Column('px', lambda s: s.gradients.bucket),
  report.Column('batch', lambda s: f'{s.config.global_batch_size:,}'),
  report.Column('each', lambda s: f'{s.gradients.batch}'),
  report.Column('steps', lambda s: f'{s.config.total_steps:,}'),
  report.Column('GiB', lambda s: f'{peak_of(s) / GIB:.1f}'),
  report.Column('s per step', lambda s: f'{s.step_seconds:.2f}'),
  report.Column('MFU', lambda s: f'{s.gradients.utilisation:.0%}'),
  report.Column('days', lambda s: f'{s.seconds / DAY:.1f}'),
  report.Column('chip-hours', lambda s: f'{s.chip_hours:,.0f}'),
  report.Column('images/s', lambda s: f'{s.images_per_second:,.0f}'),
  report.Column('of a host', lambda s: f'{s.host_images_per_second:,.0f}'),
  report.Column('checkpoint GB', lambda s: f'{s.checkpoint_bytes / 1e9:.1f}'),
)


def peak_of(stage: StagePlan) -> int:
  """Returns the bytes per chip at the peak of a step."""
  return max(stage.gradients.memory, stage.update.memory)


def to_text(
  stages: Sequence[StagePlan], host_images: float | None, host_gb: float
) -> str:
  """Formats a recipe as the command prints it.

  Args:
    stages: in order.
    host_images: images per second that a host's pipeline delivers, if known.
    host_gb: GB that a host writes per second.
  """
  machine = stages[0].planner.machine
  days = sum(stage.seconds for stage in stages) / DAY
  hours = sum(stage.chip_hours for stage in stages)
  lines = [
    report.table(COLUMNS, stages),
    f'all: {days:.1f} days, {hours:,.0f} chip-hours; without starts, samples '
    'and checkpoints',
  ]
  for stage in stages:
    lines += [
      describe_limits(stage, host_images),
      describe_checkpoints(stage, host_gb),
    ]
  return '\n'.join([*lines, machines.ESTIMATE_METHOD[machine.platform]])


def describe_limits(stage: StagePlan, host_images: float | None) -> str:
  """Returns a line on what keeps a stage from being faster on more chips."""
  limits = stage.most_chips
  first = min(limits, key=limits.get)
  found = ', '.join(f'{name} {n:,.0f}' for name, n in limits.items())
  fields = ' '.join(f'--config.{k}={v}' for k, v in stage.fields.items())
  text = (
    f'{stage.name} ({fields}): useful chips by {found}; more are stopped by '
    f'the {first} first'
  )
  if (slowdown := stage.slowdown(host_images)) > 1:
    text += (
      f'. It waits for data already: a pipeline delivers {host_images:,.0f} of '
      f'{stage.host_images_per_second:,.0f} images/s, so that it takes '
      f'{slowdown * stage.seconds / DAY:.1f} days'
    )
  return text


def describe_checkpoints(stage: StagePlan, host_gb: float) -> str:
  """Returns a line on how long a checkpoint takes, and how often."""
  seconds = stage.checkpoint_bytes / 1e9 / host_gb / hosts_of(stage)
  every = stage.config.checkpoint.every
  return (
    f'  a checkpoint takes {seconds:.1f} s at {host_gb:g} GB/s of each of '
    f'{hosts_of(stage):.0f} hosts, every {every:,} steps, which take '
    f'{every * stage.step_seconds:,.0f} s'
  )


def hosts_of(stage: StagePlan) -> float:
  """Returns the number of hosts."""
  return stage.chips / stage.planner.machine.devices_of_a_host


def to_json(
  stages: Sequence[StagePlan], host_images: float | None
) -> dict[str, Any]:
  """Returns the figures of a recipe under the keys of --json."""
  return {
    stage.name: {
      'topology': stage.topology,
      'chips': stage.chips,
      'fields': stage.fields,
      'batch': stage.config.global_batch_size,
      'steps': stage.config.total_steps,
      'peak': peak_of(stage),
      'step_seconds': stage.step_seconds,
      'utilisation': stage.gradients.utilisation,
      'seconds': stage.seconds,
      'chip_hours': stage.chip_hours,
      'images_per_second': stage.images_per_second,
      'host_images_per_second': stage.host_images_per_second,
      'checkpoint_bytes': stage.checkpoint_bytes,
      'most_chips': stage.most_chips,
      'slowdown': stage.slowdown(host_images),
    }
    for stage in stages
  }
