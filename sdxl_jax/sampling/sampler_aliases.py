"""Names that other programs give to samplers and to spacings of noise levels.

AUTOMATIC1111's web UI, Forge and SD.Next name a sampler, and in the same name
or beside it a schedule type; ComfyUI has a sampler_name and a scheduler.
"""

from typing import Any

from sdxl_jax.diffusion import samplers

# By lowercase names; those that are ours too are not listed. ComfyUI's uni_pc
# is of the variant bh1, and ours of bh2.
SAMPLERS = {
  'euler a': 'euler_ancestral',
  'euler ancestral': 'euler_ancestral',
  'dpm2': 'dpm_2',
  'dpm2 a': 'dpm_2_ancestral',
  'dpm++ 2m': 'dpmpp_2m',
  'dpm++ 2m sde': 'dpmpp_2m_sde',
  'dpm++ 2m sde heun': 'dpmpp_2m_sde_heun',
  'dpm++ 2s a': 'dpmpp_2s_ancestral',
  'dpm++ sde': 'dpmpp_sde',
  'dpm++ 3m sde': 'dpmpp_3m_sde',
  'uni_pc_bh2': 'unipc',
  'dpmpp_2m_sde_gpu': 'dpmpp_2m_sde',
  'dpmpp_2m_sde_heun_gpu': 'dpmpp_2m_sde_heun',
  'dpmpp_3m_sde_gpu': 'dpmpp_3m_sde',
  'dpmpp_sde_gpu': 'dpmpp_sde',
}
# The settings of each schedule type or scheduler. Sigmas that are spaced again
# begin at the largest trained one there, as after 'linspace' here.
SCHEDULES = {
  'uniform': {'spacing': 'linspace', 'sigmas': 'trained'},
  'normal': {'spacing': 'linspace', 'sigmas': 'trained'},
  'simple': {'spacing': 'trailing', 'sigmas': 'trained'},
  'ddim': {'spacing': 'leading', 'sigmas': 'trained'},
  'ddim_uniform': {'spacing': 'leading', 'sigmas': 'trained'},
  'sgm uniform': {'spacing': 'sgm_uniform', 'sigmas': 'trained'},
  'sgm_uniform': {'spacing': 'sgm_uniform', 'sigmas': 'trained'},
  'karras': {'spacing': 'linspace', 'sigmas': 'karras'},
  'exponential': {'spacing': 'linspace', 'sigmas': 'exponential'},
  'beta': {'spacing': 'linspace', 'sigmas': 'beta'},
  'align your steps': {'spacing': 'linspace', 'sigmas': 'align_your_steps'},
}
# What A1111 takes for the schedule type 'Automatic'.
AUTOMATIC = {
  'dpm2': 'karras',
  'dpm2 a': 'karras',
  'dpm++ 2m': 'karras',
  'dpm++ 2s a': 'karras',
  'dpm++ sde': 'karras',
  'dpm++ 2m sde': 'exponential',
  'dpm++ 2m sde heun': 'exponential',
  'dpm++ 3m sde': 'exponential',
}


def sampler(name: str) -> dict[str, Any] | None:
  """Returns the settings of a sampler's name; None if it is unknown.

  'DPM++ 2M Karras' gives the spacing and the sigmas of Karras, too.
  """
  words = ' '.join(name.lower().split())
  for suffix in ('', 'karras', 'exponential'):
    if not words.endswith(suffix):
      continue
    short = words.removesuffix(suffix).strip()
    found = SAMPLERS.get(short, short)
    chosen = {'sampler': found} | SCHEDULES.get(suffix, {})
    if found in samplers.SAMPLERS:
      return chosen
  return None


def schedule(name: str, sampler_name: str = '') -> dict[str, Any] | None:
  """Returns the settings of a schedule type or scheduler; None if unknown.

  Args:
    name: such as 'Karras', 'sgm_uniform' or 'Automatic'.
    sampler_name: of A1111, by which it chooses where it is automatic.
  """
  name = ' '.join(name.lower().split())
  sampler_name = ' '.join(sampler_name.lower().split())
  if sampler_name == 'ddim':
    name = 'ddim'  # A1111's has no other
  elif name == 'automatic':
    name = AUTOMATIC.get(sampler_name, 'uniform')
  return SCHEDULES.get(name)
