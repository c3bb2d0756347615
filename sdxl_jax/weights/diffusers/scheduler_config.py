"""diffusers' scheduler_config.json <> our trained schedule and spacing."""

import numpy as np

from sdxl_jax.diffusion import noise_schedule, sampling_schedule

# Our names of what a net predicts, and diffusers'.
PREDICTION_TYPES = {'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}
OUR_PREDICTIONS = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
# What a config may say only in one way, where it says it at all.
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
# Of the samplers that ask for more.
SUPPORTED_BY = {
  'dpmpp_2m': SUPPORTED_DPMPP,
  'dpmpp_2m_sde': SUPPORTED_DPMPP,
  'unipc': SUPPORTED_UNIPC,
  'lcm': SUPPORTED_DISTILLED,
  'tcd': SUPPORTED_DISTILLED,
}
# Whose reference schedulers know no re-spaced sigmas.
TRAINED_ONLY = ('ddim', 'euler_ancestral', 'lcm', 'tcd')


def read(config, sampler):
  """Reads a diffusers scheduler_config.json for one of our samplers.

  Args:
    config: the parsed JSON, of the sampler's own class or of another, as
      diffusers' `from_config` allows.
    sampler: name of the sampler.

  Returns:
    (schedule.Schedule, noise_levels.Spacing).

  Raises:
    ValueError: on a missing entry or one that the samplers do not support.
  """
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


def sigmas_of(config):
  """How the config re-spaces its sigmas."""
  for name in ('karras', 'exponential'):
    if config.get(f'use_{name}_sigmas', False):
      return name
  return 'trained'


def write(trained, spacing):
  """The scheduler_config.json of an Euler sampler with these settings."""
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


def for_run(trained):
  """Returns the scheduler_config.json that a trained model is sampled with.

  Args:
    trained: noise_schedule.Schedule of the run.
  """
  # Only 'trailing' visits the last timestep, where zero terminal SNR is.
  kind = 'trailing' if trained.zero_terminal_snr else 'leading'
  return write(trained, sampling_schedule.Spacing(kind))
