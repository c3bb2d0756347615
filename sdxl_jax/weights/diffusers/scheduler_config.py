"""Translates diffusers' scheduler_config.json to our schedule and spacing."""

from typing import Any

import numpy as np

from sdxl_jax.diffusion import noise_schedule, sampling_schedule
from sdxl_jax.weights.diffusers import edm_config

# Our names of the predictions of a net, and those of diffusers.
PREDICTION_TYPES = {'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}
OUR_PREDICTIONS = {name: ours for ours, name in PREDICTION_TYPES.items()}
# The implemented values of options, where a config has them.
SUPPORTED = {
  'trained_betas': (None,),
  'prediction_type': tuple(PREDICTION_TYPES.values()),
  'interpolation_type': ('linear',),
  'timestep_type': ('discrete',),
  'clip_sample': (False,),
  'thresholding': (False,),
  'use_beta_sigmas': (False,),
  'sigma_min': (None,),
  'sigma_max': (None,),
}
SUPPORTED_MULTISTEP = SUPPORTED | {
  'solver_order': (2,),
  'use_flow_sigmas': (False,),
  'final_sigmas_type': ('zero',),
}
SUPPORTED_DPMPP = SUPPORTED_MULTISTEP | {
  'algorithm_type': ('dpmsolver++', 'sde-dpmsolver++'),
  'solver_type': ('midpoint', 'bh1', 'bh2', 'logrho'),  # all mean midpoint
  'use_lu_lambdas': (False,),
  'lambda_min_clipped': ('-inf', -np.inf),
}
SUPPORTED_UNIPC = SUPPORTED_MULTISTEP | {
  'solver_type': ('bh2', 'midpoint', 'heun', 'logrho'),  # all mean bh2
  'predict_x0': (True,),
  'disable_corrector': ([],),
  'solver_p': (None,),
}
SUPPORTED_DISTILLED = SUPPORTED | {'original_inference_steps': (50,)}
# By sampler, where the reference has more options.
SUPPORTED_BY = {
  'dpmpp_2m': SUPPORTED_DPMPP,
  'dpmpp_2m_sde': SUPPORTED_DPMPP,
  'unipc': SUPPORTED_UNIPC,
  'lcm': SUPPORTED_DISTILLED,
  'tcd': SUPPORTED_DISTILLED,
}
# Samplers whose reference schedulers cannot re-space their sigmas.
TRAINED_ONLY = ('ddim', 'euler_ancestral', 'lcm', 'tcd')


def read(
  config: dict[str, Any], sampler: str
) -> tuple[noise_schedule.Schedule, sampling_schedule.Spacing]:
  """Reads a diffusers scheduler_config.json for one of our samplers.

  Args:
    config: the parsed JSON, of the sampler's own class or of another, as
      diffusers' `from_config` allows.
    sampler: name of the sampler.

  Raises:
    ValueError: if an entry is missing, or the sampler does not support it.
  """
  if edm_config.is_edm(config):
    return edm_config.read(config, sampler)
  # Refuse options that would change the result of the reference.
  noise_schedule.check_choice(
    'sampler', sampler, sampling_schedule.SAMPLER_TRAITS
  )
  for name, allowed in SUPPORTED_BY.get(sampler, SUPPORTED).items():
    if name in config:
      noise_schedule.check_choice(
        f'{name} of the scheduler config', config[name], allowed
      )
  try:
    trained = noise_schedule.Schedule(
      num_train_timesteps=config['num_train_timesteps'],
      beta_start=config['beta_start'],
      beta_end=config['beta_end'],
      beta_schedule=config['beta_schedule'],
      prediction=OUR_PREDICTIONS[config['prediction_type']],
      zero_terminal_snr=config.get('rescale_betas_zero_snr', False),
    )
    kind = config['timestep_spacing']
  except KeyError as e:
    raise ValueError(f'the scheduler config lacks {e}; add it') from e
  # The last sigma is 0 or the smallest trained one, by the class of diffusers.
  to_zero = {
    'euler': config.get('final_sigmas_type', 'zero') == 'zero',
    'ddim': config.get('set_alpha_to_one', True),
    'tcd': False,
  }
  return trained, sampling_schedule.Spacing(
    kind=kind,
    steps_offset=config.get('steps_offset', 0),
    sigmas='trained' if sampler in TRAINED_ONLY else sigmas_of(config),
    final_sigma='zero' if to_zero.get(sampler, True) else 'smallest',
  )


def sigmas_of(config: dict[str, Any]) -> str:
  """Returns how a config re-spaces its sigmas."""
  for name in ('karras', 'exponential'):
    if config.get(f'use_{name}_sigmas', False):
      return name
  return 'trained'


def write(
  trained: noise_schedule.Schedule, spacing: sampling_schedule.Spacing
) -> dict[str, Any]:
  """Returns the scheduler_config.json of an Euler sampler."""
  return {
    '_class_name': 'EulerDiscreteScheduler',
    'num_train_timesteps': trained.num_train_timesteps,
    'beta_start': trained.beta_start,
    'beta_end': trained.beta_end,
    'beta_schedule': trained.beta_schedule,
    'prediction_type': PREDICTION_TYPES[trained.prediction],
    'rescale_betas_zero_snr': trained.zero_terminal_snr,
    'timestep_spacing': spacing.kind,
    'steps_offset': spacing.steps_offset,
    'use_karras_sigmas': spacing.sigmas == 'karras',
    'interpolation_type': 'linear',
    'set_alpha_to_one': False,
  }


def for_run(trained: noise_schedule.Schedule) -> dict[str, Any]:
  """Returns the scheduler_config.json that a run's model is sampled with."""
  # Only 'trailing' visits the last timestep, where zero terminal SNR is.
  kind = 'trailing' if trained.zero_terminal_snr else 'leading'
  return write(trained, sampling_schedule.Spacing(kind))
