"""Reports a training plan: a table of its buckets, a verdict, a remedy."""

import dataclasses
from typing import Any

from sdxl_jax.distributed import device_mesh
from sdxl_jax.planning import (
  machines,
  profile_report,
  report,
  training_plan,
)
from sdxl_jax.training import config_validation, tasks

GIB = 2**30


def gathered(collectives: dict[str, float]) -> float:
  """Returns the bytes of parameters that a device receives."""
  return collectives.get('all-gather', 0.0)


def reduced(collectives: dict[str, float]) -> float:
  """Returns the bytes of sums, mostly gradients, that a device receives."""
  return sum(collectives.get(k, 0.0) for k in ('reduce-scatter', 'all-reduce'))


def others(collectives: dict[str, float]) -> float:
  """Returns the bytes that a device receives in all other collectives."""
  counted = gathered(collectives) + reduced(collectives)
  return sum(collectives.values()) - counted


# Of a BucketCost.
COLUMNS = (
  report.Column('bucket', lambda b: b.bucket),
  report.Column('batch', lambda b: f'{b.batch}'),
  report.Column('GiB', lambda b: f'{b.memory / GIB:.1f}'),
  report.Column('TFLOP/image', lambda b: f'{b.model_flops / 1e12:.1f}'),
  report.Column('with remat', lambda b: f'{b.flops / 1e12:.1f}'),
  report.Column(
    'gathered GB', lambda b: f'{gathered(b.collectives) / 1e9:.1f}'
  ),
  report.Column('reduced GB', lambda b: f'{reduced(b.collectives) / 1e9:.1f}'),
  report.Column('other GB', lambda b: f'{others(b.collectives) / 1e9:.1f}'),
  report.Column('seconds', lambda b: f'{b.seconds:.3f}' if b.seconds else '?'),
  report.Column(
    'MFU', lambda b: f'{b.utilisation:.0%}' if b.utilisation else '?'
  ),
  report.Column('compiled in s', lambda b: f'{b.compile_seconds:.0f}'),
)


def one_line(bucket: training_plan.BucketCost) -> str:
  """Formats one bucket, to print while the others still compile."""
  return ', '.join(f'{c.name} {c.show(bucket)}' for c in COLUMNS)


def to_text(plan: training_plan.TrainingPlan) -> str:
  """Formats a plan as the command prints it."""
  machine, state = plan.planner.machine, plan.planner.state
  axes = ', '.join(f'{n}={size}' for n, size in machine.mesh.shape.items())
  frozen = machines.bytes_of(plan.planner.frozen)
  return '\n'.join(
    [
      f'{report.describe_machine(machine)}; mesh {axes}',
      'of each device: parameters '
      f'{machines.bytes_of(state.params) / GIB:.2f} GiB, moments and EMA '
      f'{machines.bytes_of(state.opt_state) / GIB:.2f}, frozen nets '
      f'{frozen / GIB:.2f}; the update peaks at {plan.update.memory / GIB:.1f}',
      *plan.planner.types,
      report.table(COLUMNS, plan.buckets),
      estimate_method(machine),
      verdict(plan),
    ]
  )


def to_json(plan: training_plan.TrainingPlan) -> dict[str, Any]:
  """Returns the figures of a plan under the keys of --json."""
  machine, state = plan.planner.machine, plan.planner.state
  figures = {
    'chip': dataclasses.asdict(machine.chip) | {'count': machine.size},
    'mesh': dict(machine.mesh.shape),
    'parameter_bytes': machines.bytes_of(state.params),
    'optimizer_bytes': machines.bytes_of(state.opt_state),
    'frozen_bytes': machines.bytes_of(plan.planner.frozen),
    'update_peak': plan.update.memory,
    'method': estimate_method(machine),
    'buckets': [
      profile_report.figures(bucket, machine.platform)
      for bucket in plan.buckets
    ],
  }
  if plan.update.profile is not None:
    figures['update'] = profile_report.to_json(
      plan.update.profile, machine.platform
    )
  return figures


def estimate_method(machine: machines.Machine) -> str:
  """Describes how the seconds were estimated, and of what."""
  method = machines.ESTIMATE_METHOD[machine.platform]
  return f'{method}; of the gradients alone'


def verdict(plan: training_plan.TrainingPlan) -> str:
  """States whether the plan fits, and otherwise what to change."""
  worst = plan.worst
  peak = max(worst.memory, plan.update.memory)
  part = worst.bucket if peak == worst.memory else 'the update'
  return report.verdict(plan.planner.machine, part, peak, remedy(plan.planner))


def remedy(planner: training_plan.Planner) -> str:
  """Names the cheapest change of the config that saves memory."""
  config, mesh = planner.config, planner.mesh
  # Rematerialisation costs time only.
  field = training_plan.REMAT[config.task]
  remat = config_validation.get(config, field)
  if remat != 'full':
    stronger = {'none': 'dots', 'dots': 'full'}[remat]
    return f'Set --config.{field}={stronger}.'
  # A device needs at least one row of a micro-batch.
  rows = config.global_batch_size // tasks.micro_batches_of(config)
  if rows > device_mesh.row_devices(mesh):
    doubled = config.accumulation_steps * 2
    return f'Set --config.accumulation_steps={doubled}.'
  if mesh.shape['fsdp'] < planner.machine.size:
    return 'Set --config.mesh.fsdp=-1 --config.mesh.data=1.'
  # What stays frozen beside factors or words may be stored in 8 bits.
  is_frozen = config.task == 'diffusion' and 'unet' not in config.trained
  if is_frozen and not config.unet.weights_dtype:
    return (
      'Set --config.unet.weights_dtype=int8, and that of the text encoders.'
    )
  return 'Take more devices, or devices with more memory.'
