"""Reads scheduler_config.json of nets on continuous noise levels (EDM).

CosXL is sampled with EDMEulerScheduler of diffusers, and Playground v2.5 with
EDMDPMSolverMultistepScheduler.
"""

import dataclasses
from typing import Any

from sdxl_jax.diffusion import noise_schedule, sampling_schedule
from sdxl_jax.weights import prediction_words
from sdxl_jax.weights.diffusers import flow_config

EULER, MULTISTEP = 'EDMEulerScheduler', 'EDMDPMSolverMultistepScheduler'
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
  'prediction_type': ('epsilon', 'v_prediction'),
  'sigma_schedule': ('karras', 'exponential'),
  'final_sigmas_type': ('zero', 'sigma_min'),
}
SUPPORTED_MULTISTEP = SUPPORTED | {
  'algorithm_type': ('dpmsolver++', 'sde-dpmsolver++', 'deis'),
  'thresholding': (False,),
}
SUPPORTED_2M = SUPPORTED_MULTISTEP | {
  'solver_order': (1, 2),
  'solver_type': ('midpoint', 'logrho', 'bh1', 'bh2'),  # all mean midpoint
}
# By sampler, where diffusers' class has more options.
SUPPORTED_BY = {
  'dpmpp_2m': SUPPORTED_2M,
  'dpmpp_2m_sde': SUPPORTED_2M,
  'dpmpp_2m_heun': SUPPORTED_MULTISTEP,
  'dpmpp_2m_sde_heun': SUPPORTED_MULTISTEP,
  'dpmpp_3m': SUPPORTED_MULTISTEP,
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
# By the words of --prediction.
PUBLISHED = {'edm': PLAYGROUND, 'edm_v': COSXL}


def is_edm(config: dict[str, Any]) -> bool:
  """Whether a scheduler_config.json is of continuous noise levels."""
  return config.get('_class_name') in (EULER, MULTISTEP)


def join(base: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
  """Returns a scheduler_config.json with the entries of another one.

  One of continuous noise levels or of flows stands for itself: it has other
  entries.
  """
  alone = is_edm(parts) or flow_config.is_flow(parts)
  return parts if alone else base | parts


def read(
  config: dict[str, Any], spacing: sampling_schedule.Spacing
) -> tuple[noise_schedule.Schedule, sampling_schedule.Spacing]:
  """Reads a scheduler_config.json of continuous noise levels.

  Args:
    config: the parsed JSON, whose options are supported.
    spacing: what other classes have too, the solver's order and the last sigma.
  """
  config = DEFAULTS | config
  schedule = noise_schedule.Schedule(
    num_train_timesteps=config['num_train_timesteps'],
    prediction=prediction_words.OURS[config['prediction_type']],
    sigma_data=float(config['sigma_data']),
    sigma_min=float(config['sigma_min']),
    sigma_max=float(config['sigma_max']),
  )
  return schedule, dataclasses.replace(
    spacing,
    kind='leading',
    sigmas=config['sigma_schedule'],
    rho=float(config['rho']),
  )
