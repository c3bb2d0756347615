"""The sampler of ours that a recorded scheduler_config.json names."""

SAMPLERS = {
  'EulerDiscreteScheduler': 'euler',
  'EulerAncestralDiscreteScheduler': 'euler_ancestral',
  'HeunDiscreteScheduler': 'heun',
  'LMSDiscreteScheduler': 'lms',
  'DDIMScheduler': 'ddim',
  'DPMSolverMultistepScheduler': 'dpmpp_2m',
  'UniPCMultistepScheduler': 'unipc',
  'LCMScheduler': 'lcm',
  'TCDScheduler': 'tcd',
}


def sampler_of(config):
  """Returns the name of the sampler of a scheduler_config.json, or None."""
  name = SAMPLERS.get(config.get('_class_name'))
  sde = config.get('algorithm_type') == 'sde-dpmsolver++'
  return 'dpmpp_2m_sde' if name == 'dpmpp_2m' and sde else name
