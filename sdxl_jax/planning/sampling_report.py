"""Reports a sampling plan: a table of its phases, a verdict, a remedy."""

import dataclasses
from typing import Any

from sdxl_jax.models import compute_dtype
from sdxl_jax.planning import (
  machines,
  profile_report,
  report,
  sampling_plan,
)

GIB = 2**30

# Of the settings, those that decide the cost.
JSON_SETTINGS = 'steps', 'guidance_interval', 'tile'
# Of a PhaseCost.
COLUMNS = (
  report.Column('phase', lambda p: p.name),
  report.Column('GiB', lambda p: f'{p.memory / GIB:.1f}'),
  report.Column('of parameters', lambda p: f'{p.parameters / GIB:.1f}'),
  report.Column('TFLOP/image', lambda p: f'{p.flops / 1e12:.1f}'),
  report.Column('seconds', lambda p: f'{p.seconds:.2f}' if p.seconds else '?'),
  report.Column('compiled in s', lambda p: f'{p.compile_seconds:.0f}'),
)


def to_text(plan: sampling_plan.SamplingPlan) -> str:
  """Formats a plan as the command prints it."""
  workload, settings = plan.workload, plan.workload.settings
  guidance = ' with guidance' if settings.guidance_scale > 1 else ''
  if guidance and settings.guidance_interval:
    low, high = settings.guidance_interval
    guidance += f' at noise levels from {low:g} to {high:g}'
  stored = ''
  if workload.weights_dtype:
    stored = f' with kernels in {workload.weights_dtype}'
  return '\n'.join(
    [
      f'{report.describe_machine(plan.machine)}; {workload.batch} x '
      f'{settings.height} x {settings.width} px on each, {settings.steps} '
      f'steps of {workload.sampler}{guidance}, {workload.dtype}{stored}, '
      f'autoencoder {workload.vae_dtype}',
      report.table(COLUMNS, plan.phases),
      machines.ESTIMATE_METHOD[plan.machine.platform],
      *plan.notes,
      describe_host(plan),
      *describe_time(plan),
      verdict(plan),
    ]
  )


def describe_host(plan: sampling_plan.SamplingPlan) -> str:
  """Returns the line on what waits in the memory of a host."""
  if not plan.offloaded:
    return 'No net waits in host memory.'
  return (
    f'In host memory wait: {", ".join(plan.offloaded)}, '
    f'{plan.host_bytes / GIB:.1f} GiB of each host.'
  )


def describe_time(plan: sampling_plan.SamplingPlan) -> list[str]:
  """Returns the line on the time of an image, if it can be estimated."""
  if plan.seconds is None:
    return []
  count = plan.workload.batch * plan.machine.size
  images = 'one image' if count == 1 else f'{count} images'
  return [f'{plan.seconds:.1f} s for {images}, of all phases.']


def to_json(plan: sampling_plan.SamplingPlan) -> dict[str, Any]:
  """Returns the figures of a plan under the keys of --json."""
  platform = plan.machine.platform
  phases = [profile_report.figures(phase, platform) for phase in plan.phases]
  workload = dataclasses.asdict(plan.workload)
  settings = workload.pop('settings')
  workload |= {name: settings[name] for name in JSON_SETTINGS}
  workload |= {
    'sampler': plan.workload.sampler,
    'size': plan.workload.size,
    'guided': settings['guidance_scale'] > 1,
  }
  plan_wide = ('offloaded', 'host_bytes', 'seconds')
  return workload | {
    'phases': phases,
    **{name: getattr(plan, name) for name in plan_wide},
    'fits': plan.machine.fits(plan.worst.memory),
  }


def verdict(plan: sampling_plan.SamplingPlan) -> str:
  """States whether all phases fit, and otherwise what to change."""
  worst = plan.worst
  advice = remedy(worst, plan.workload, plan.machine)
  return report.verdict(plan.machine, worst.name, worst.memory, advice)


def remedy(
  worst: sampling_plan.PhaseCost,
  workload: sampling_plan.SampleWorkload,
  machine: machines.Machine,
) -> str:
  """Names the cheapest change of the settings that saves memory."""
  if workload.dtype == 'float32':
    # On a CPU either takes half the memory.
    is_old = compute_dtype.choose('auto', machine.kind) == 'float16'
    return f'Set --dtype={"float16" if is_old else "bfloat16"}.'
  if worst.name == 'decoding' and workload.settings.tile is None:
    return 'Set --tile=256.'
  if workload.offload is False:
    return 'Set --offload=auto.'
  if workload.batch > 1:
    return f'Set --batch={workload.batch // 2}.'
  return 'Take a device with more memory, or sample smaller images.'
