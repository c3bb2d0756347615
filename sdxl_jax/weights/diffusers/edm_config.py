"""Reads scheduler_config.json of nets on continuous noise levels (EDM).

EDMEulerScheduler and EDMDPMSolverMultistepScheduler of diffusers, of which
Playground v2.5 and CosXL are sampled with one each.
"""

from typing import Any

from sdxl_jax.diffusion import noise_schedule, sampling_schedule

EULER, MULTISTEP = 'EDMEulerScheduler', 'EDMDPMSolverMultistepScheduler'
PREDICTIONS = {'epsilon': 'eps', 'v_prediction': 'v'}
# The defaults of both classes, for what a config lacks.
DEFAULTS = {
  'sigma_min': 0.002,
  'sigma_max': 80.0,
  'sigma_data': 0.5,
  'sigma_schedule': 'karras',
  'num_train_timesteps': 1000,
  'prediction_type': 'epsilon',
  'rho': 7.0,
  'final_sigmas_type': 'zero',
}
SUPPORTED = {
  'prediction_type': tuple(PREDICTIONS),
  'sigma_schedule': ('karras', 'exponential'),
  'final_sigmas_type': ('zero', 'sigma_min'),
}
SUPPORTED_MULTISTEP = SUPPORTED | {
  'solver_order': (2,),
  'algorithm_type': ('dpmsolver++', 'sde-dpmsolver++', 'deis'),
  'solver_type': ('midpoint', 'logrho', 'bh1', 'bh2'),  # all mean midpoint
  'thresholding': (False,),
}
# As published with Playground v2.5, and as Stability AI samples CosXL.
PLAYGROUND = {
  '_class_name': MULTISTEP,
  **DEFAULTS,
  'algorithm_type': 'dpmsolver++',
  'dynamic_thresholding_ratio': 0.995,
  'euler_at_final': False,
  'lower_order_final': True,
  'sample_max_value': 1.0,
  'solver_order': 2,
  'solver_type': 'midpoint',
  'thresholding': False,
}
COSXL = {
  '_class_name': EULER,
  **DEFAULTS,
  'sigma_max': 120.0,
  'sigma_data': 1.0,
  'sigma_schedule': 'exponential',
  'prediction_type': 'v_prediction',
}


def is_edm(config: dict[str, Any]) -> bool:
  """Whether a scheduler_config.json is of continuous noise levels."""
  return config.get('_class_name') in (EULER, MULTISTEP)


def read(
  config: dict[str, Any], sampler: str
) -> tuple[noise_schedule.Schedule, sampling_schedule.Spacing]:
  """Reads a scheduler_config.json for one of our samplers.

  Raises:
    ValueError: for options that would change the result of the reference.
  """
  config = DEFAULTS | config
  supported = SUPPORTED
  if sampler in ('dpmpp_2m', 'dpmpp_2m_sde'):
    supported = SUPPORTED_MULTISTEP
  for name, allowed in supported.items():
    if name in config:
      noise_schedule.check_choice(
        f'{name} of the scheduler config', config[name], allowed
      )
  schedule = noise_schedule.Schedule(
    num_train_timesteps=config['num_train_timesteps'],
    prediction=PREDICTIONS[config['prediction_type']],
    sigma_data=float(config['sigma_data']),
    sigma_min=float(config['sigma_min']),
    sigma_max=float(config['sigma_max']),
  )
  to_zero = config['final_sigmas_type'] == 'zero'
  return schedule, sampling_schedule.Spacing(
    sigmas=config['sigma_schedule'],
    final_sigma='zero' if to_zero else 'smallest',
    rho=float(config['rho']),
  )
