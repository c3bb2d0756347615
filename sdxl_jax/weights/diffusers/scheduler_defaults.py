"""Completes a scheduler_config.json as diffusers does: by its class.

A field that the file lacks has the default of the class's constructor. Classes
without an entry here have no betas, or other fields.
"""

from typing import Any

from sdxl_jax.weights import prediction_words
from sdxl_jax.weights.diffusers import edm_config, flow_config

COMMON = {
  'num_train_timesteps': 1000,
  'beta_start': 0.0001,
  'beta_end': 0.02,
  'beta_schedule': 'linear',
  'prediction_type': 'epsilon',
  'timestep_spacing': 'linspace',
}
LEADING = COMMON | {'timestep_spacing': 'leading'}
STABLE_DIFFUSION = COMMON | {'beta_start': 0.00085, 'beta_end': 0.012}
DISTILLED = STABLE_DIFFUSION | {
  'beta_schedule': 'scaled_linear',
  'timestep_spacing': 'leading',
}
# scheduler_config.json of the published SDXL, base and refiner.
SDXL = {
  '_class_name': 'EulerDiscreteScheduler',
  'num_train_timesteps': 1000,
  'beta_start': 0.00085,
  'beta_end': 0.012,
  'beta_schedule': 'scaled_linear',
  'prediction_type': 'epsilon',
  'timestep_spacing': 'leading',
  'steps_offset': 1,
  'use_karras_sigmas': False,
  'interpolation_type': 'linear',
  'set_alpha_to_one': False,
  'skip_prk_steps': True,
  'clip_sample': False,
  'sample_max_value': 1.0,
  'trained_betas': None,
}
# Entries that are numbers, wherever a config has them.
NUMBERS = {
  'num_train_timesteps': int,
  'steps_offset': int,
  'solver_order': int,
  'beta_start': float,
  'beta_end': float,
  'rho': float,
  'sigma_data': float,
  'shift': float,
  'shift_size': int,
}
DEFAULTS = {
  'DDIMParallelScheduler': LEADING,
  'DDIMScheduler': LEADING,
  'DDPMParallelScheduler': LEADING,
  'DDPMScheduler': LEADING,
  'DEISMultistepScheduler': COMMON,
  'DPMSolverMultistepScheduler': COMMON,
  'DPMSolverSDEScheduler': STABLE_DIFFUSION,
  'DPMSolverSinglestepScheduler': COMMON,
  'EulerAncestralDiscreteScheduler': COMMON,
  'EulerDiscreteScheduler': COMMON,
  'HeunDiscreteScheduler': STABLE_DIFFUSION,
  'KDPM2AncestralDiscreteScheduler': STABLE_DIFFUSION,
  'KDPM2DiscreteScheduler': STABLE_DIFFUSION,
  'LCMScheduler': DISTILLED,
  'LMSDiscreteScheduler': COMMON,
  'PNDMScheduler': LEADING,
  'SASolverScheduler': COMMON,
  'TCDScheduler': DISTILLED,
  'UniPCMultistepScheduler': COMMON,
  edm_config.EULER: edm_config.DEFAULTS,
  edm_config.MULTISTEP: edm_config.DEFAULTS,
}


def complete(
  config: dict[str, Any], location: str, decided: bool = False
) -> dict[str, Any]:
  """Adds the defaults of a config's class, and spells its prediction.

  Args:
    config: a scheduler_config.json.
    location: of the config, for errors.
    decided: whether the user says what is predicted.

  Raises:
    ValueError: for a prediction that is not known, a net trained with flow
      matching, or text where a number belongs.
  """
  name = config.get('_class_name')
  if flow_config.is_flow(config):
    return complete_flow(config, location)
  if 'FlowMatch' in str(name):
    raise ValueError(
      f'{location} is of {name}, for a net trained with flow matching, of '
      f'which {flow_config.EULER} is implemented: name that, or if the net '
      "predicts eps or v after all, put the file of SDXL's base in its place"
    )
  defaults = DEFAULTS.get(name, {})
  config = config | {n: x for n, x in defaults.items() if n not in config}
  check_numbers(config, location)
  word = config.get('prediction_type')
  if word is None or decided:
    return config
  where = f'prediction_type in {location}'
  name, zero_snr = prediction_words.read(word, where)
  spelled = {'prediction_type': name}
  return (
    config | spelled | ({'rescale_betas_zero_snr': True} if zero_snr else {})
  )


def complete_flow(config: dict[str, Any], location: str) -> dict[str, Any]:
  """Completes a config of rectified flow.

  Raises:
    ValueError: for an option that is not implemented.
  """
  check_numbers(config, location)
  for option, allowed in flow_config.SUPPORTED.items():
    if config.get(option, allowed[0]) not in allowed:
      raise ValueError(
        f'{location} has {option} = {config[option]!r}, which is not '
        f'implemented: set it to {allowed[0]!r}'
      )
  fields = {'num_train_timesteps': 1000, 'shift': 1.0} | config
  return fields | {'prediction_type': flow_config.PREDICTION}


def check_numbers(config: dict[str, Any], location: str) -> None:
  """Raises ValueError for an entry that is no number where one belongs."""
  for name, kind in NUMBERS.items():
    kinds = (int,) if kind is int else (int, float)
    if name in config and type(config[name]) not in kinds:
      raise ValueError(
        f'{location} has an invalid value ({name} is {config[name]!r}, not of '
        f'type {kind.__name__}): re-download the file'
      )
