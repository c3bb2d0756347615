"""What other programs call our samplers and spacings.

Each table is {name: our settings}. Names of A1111's webui are those of its
images' text ("Sampler" and, since its version 1.9, "Schedule type"); older
versions write both as one name, such as 'DPM++ 2M Karras'.
"""

from typing import Any

A1111_SAMPLERS = {
  'Euler': 'euler',
  'Euler a': 'euler_ancestral',
  'Heun': 'heun',
  'DPM2': 'dpm_2',
  'DPM2 a': 'dpm_2_ancestral',
  'LMS': 'lms',
  'DDIM': 'ddim',
  'DPM++ 2M': 'dpmpp_2m',
  'DPM++ 2M SDE': 'dpmpp_2m_sde',
  'DPM++ 2M SDE Heun': 'dpmpp_2m_sde_heun',
  'DPM++ 3M SDE': 'dpmpp_3m_sde',
  'DPM++ 2S a': 'dpmpp_2s_ancestral',
  'DPM++ SDE': 'dpmpp_sde',
  'UniPC': 'unipc',
  'LCM': 'lcm',
}
A1111_SCHEDULES = {
  'Uniform': {'spacing': 'linspace', 'sigmas': 'trained'},
  'Normal': {'spacing': 'linspace', 'sigmas': 'trained'},
  'Karras': {'spacing': 'linspace', 'sigmas': 'karras'},
  'Exponential': {'spacing': 'linspace', 'sigmas': 'exponential'},
  'SGM Uniform': {'spacing': 'sgm_uniform', 'sigmas': 'trained'},
  'Beta': {'spacing': 'linspace', 'sigmas': 'beta'},
  # Rounded down where 'trailing' rounds to the nearest timestep.
  'Simple': {'spacing': 'trailing', 'sigmas': 'trained'},
  'DDIM': {'spacing': 'leading', 'sigmas': 'trained'},
  'Align Your Steps': {'spacing': 'linspace', 'sigmas': 'align_your_steps'},
}
# The schedule of A1111's type 'Automatic', by sampler; Uniform of the others.
A1111_AUTOMATIC = {
  'DPM2': 'Karras',
  'DPM2 a': 'Karras',
  'DPM++ 2M': 'Karras',
  'DPM++ 2S a': 'Karras',
  'DPM++ SDE': 'Karras',
  'DPM++ 2M SDE': 'Exponential',
  'DPM++ 2M SDE Heun': 'Exponential',
  'DPM++ 3M SDE': 'Exponential',
}
COMFYUI_SAMPLERS = {
  'euler': 'euler',
  'euler_ancestral': 'euler_ancestral',
  'heun': 'heun',
  'dpm_2': 'dpm_2',
  'dpm_2_ancestral': 'dpm_2_ancestral',
  'lms': 'lms',
  'ddim': 'ddim',
  'ddpm': 'ddpm',
  'dpmpp_2m': 'dpmpp_2m',
  'dpmpp_2m_sde': 'dpmpp_2m_sde',
  'dpmpp_2m_sde_gpu': 'dpmpp_2m_sde',
  'dpmpp_2m_sde_heun': 'dpmpp_2m_sde_heun',
  'dpmpp_2m_sde_heun_gpu': 'dpmpp_2m_sde_heun',
  'dpmpp_3m_sde': 'dpmpp_3m_sde',
  'dpmpp_3m_sde_gpu': 'dpmpp_3m_sde',
  'dpmpp_2s_ancestral': 'dpmpp_2s_ancestral',
  'dpmpp_sde': 'dpmpp_sde',
  'dpmpp_sde_gpu': 'dpmpp_sde',
  # Of third order there.
  'deis': 'deis',
  'uni_pc': 'unipc',
  'uni_pc_bh2': 'unipc',
  'lcm': 'lcm',
}
COMFYUI_SCHEDULERS = {
  'normal': {'spacing': 'linspace', 'sigmas': 'trained'},
  'karras': {'spacing': 'linspace', 'sigmas': 'karras'},
  'exponential': {'spacing': 'linspace', 'sigmas': 'exponential'},
  'sgm_uniform': {'spacing': 'sgm_uniform', 'sigmas': 'trained'},
  # See A1111's.
  'simple': {'spacing': 'trailing', 'sigmas': 'trained'},
  'beta': {'spacing': 'linspace', 'sigmas': 'beta'},
  'ddim_uniform': {'spacing': 'leading', 'sigmas': 'trained'},
}


def of_a1111(name: str, schedule: str | None = None) -> dict[str, Any] | None:
  """Returns our settings for a sampler of A1111, None for one we lack.

  Args:
    name: such as 'DPM++ 2M', or of older versions 'DPM++ 2M Karras'.
    schedule: its "Schedule type"; None where the text has none.
  """
  if schedule is None and name not in A1111_SAMPLERS:
    # The older name of both; without a schedule it is the uniform one.
    name, _, schedule = name.rpartition(' ')
  elif schedule is None:
    schedule = 'Uniform'
  elif schedule == 'Automatic':
    schedule = A1111_AUTOMATIC.get(name, 'Uniform')
  if name not in A1111_SAMPLERS or schedule not in A1111_SCHEDULES:
    return None
  return {'sampler': A1111_SAMPLERS[name], **A1111_SCHEDULES[schedule]}


def of_comfyui(name: str, scheduler: str) -> dict[str, Any] | None:
  """Returns our settings for a sampler of ComfyUI, None for one we lack.

  Args:
    name: `sampler_name` of its KSampler, such as 'dpmpp_2m'.
    scheduler: of its KSampler, such as 'karras'.
  """
  if name not in COMFYUI_SAMPLERS or scheduler not in COMFYUI_SCHEDULERS:
    return None
  return {'sampler': COMFYUI_SAMPLERS[name], **COMFYUI_SCHEDULERS[scheduler]}
