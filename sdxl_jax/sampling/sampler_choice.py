"""Chooses the sampler that a model's scheduler_config.json names."""

import dataclasses
import warnings
from typing import TypeVar

from sdxl_jax.diffusion import sampling_schedule
from sdxl_jax.sampling import pipelines, step_segments, validation
from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.weights.diffusers import scheduler_config

Settings = TypeVar('Settings', bound=SampleSettings)

# From here on a net that was distilled to few steps gets worse, not better.
MOST_DISTILLED_STEPS = 12
MOST_DISTILLED_GUIDANCE = 2.0
# The presets of distilled nets by the class of their scheduler.
DISTILLED_CLASSES = {'LCMScheduler': 'lcm', 'TCDScheduler': 'tcd'}
# The same for classes that base models have too, but with other spacings.
DISTILLED_IF_TRAILING = {
  'EulerAncestralDiscreteScheduler': 'turbo',
  'EulerDiscreteScheduler': 'lightning',
}


class SamplerWarning(UserWarning):
  """Warns of a sampler or of settings that a model was not made for."""


def resolve(pipeline: pipelines.Pipeline, chosen: Settings) -> Settings:
  """Returns settings that name a sampler; warns if it is not the model's own.

  Args:
    pipeline: has the model's scheduler_config.json.
    chosen: settings, or a request, whose sampler may be None.
  """
  if chosen.sampler is not None:
    return chosen
  sampler, note = scheduler_config.sampler_of(pipeline.scheduler)
  if note is not None:
    warnings.warn(note, SamplerWarning, stacklevel=2)
  return dataclasses.replace(chosen, sampler=sampler)


def advise(pipeline: pipelines.Pipeline, chosen: SampleSettings) -> None:
  """Warns of settings that distilled weights were not made for."""
  preset = distilled_preset(pipeline)
  if preset is None:
    return
  guided = validation.uses_cfg(pipeline.model, chosen.guidance_scale)
  strong = guided and chosen.guidance_scale > MOST_DISTILLED_GUIDANCE
  if chosen.steps <= MOST_DISTILLED_STEPS and not strong:
    return
  warnings.warn(
    f'{chosen.steps} steps with guidance_scale {chosen.guidance_scale}: the '
    'scheduler_config.json or the UNet is one of weights distilled to few '
    f'steps, which --preset {preset} has the settings for',
    SamplerWarning,
    stacklevel=3,  # the caller of generate
  )


def advise_interval(
  pipeline: pipelines.Pipeline,
  chosen: SampleSettings,
  schedule: sampling_schedule.SamplingSchedule,
) -> None:
  """Warns of a guidance_interval in which no step is guided."""
  interval = chosen.guidance_interval
  if interval is None:
    return
  if not validation.uses_cfg(pipeline.model, chosen.guidance_scale):
    reason = (
      f'guidance is off at guidance_scale {chosen.guidance_scale:g}, or the '
      'model is distilled with guidance'
    )
  elif not step_segments.guided_steps(schedule.sigmas, interval).any():
    first, last = schedule.sigmas[0], schedule.sigmas[-2]
    reason = (
      'no step begins in it, so that none is guided and no negative prompt is '
      f'read: the {chosen.steps} steps begin at noise levels from {first:.3g} '
      f'to {last:.3g}'
    )
  else:
    return
  low, high = interval
  warnings.warn(
    f'guidance_interval {low:g},{high:g} is of no use: {reason}',
    SamplerWarning,
    stacklevel=3,  # the caller of generate
  )


def distilled_preset(pipeline: pipelines.Pipeline) -> str | None:
  """Returns the preset that suits a model, None for one that needs none."""
  config, named = pipeline.scheduler, pipeline.scheduler.get('_class_name')
  if named in DISTILLED_CLASSES:
    return DISTILLED_CLASSES[named]
  if pipeline.model.unet.guidance_embed_dim:
    return 'lcm'
  # Base models of zero terminal SNR, and most that predict v, need 'trailing'.
  schedule = pipeline.model.schedule
  is_base = schedule.zero_terminal_snr or schedule.prediction != 'eps'
  if is_base or config.get('timestep_spacing') != 'trailing':
    return None
  return DISTILLED_IF_TRAILING.get(named)
