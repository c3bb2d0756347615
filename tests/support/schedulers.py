"""The sampler of ours that a recorded scheduler_config.json names."""

from sdxl_jax.weights.diffusers import scheduler_config

# Of all that were recorded.
SAMPLERS = {
  named: scheduler_config.SAMPLER_CLASSES[named]
  for named in (
    'EulerDiscreteScheduler',
    'EulerAncestralDiscreteScheduler',
    'HeunDiscreteScheduler',
    'LMSDiscreteScheduler',
    'DDIMScheduler',
    'DPMSolverMultistepScheduler',
    'UniPCMultistepScheduler',
    'LCMScheduler',
    'TCDScheduler',
  )
}


def sampler_of(config):
  """Returns the name of the sampler of a scheduler_config.json."""
  sampler, note = scheduler_config.sampler_of(config)
  assert note is None, note
  return sampler
