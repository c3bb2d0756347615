"""Options of diffusers' schedulers that our samplers implement.

An option with another value would change the result of the reference, and is
refused by name.
"""

from typing import Any

import numpy as np

from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.weights import prediction_words
from sdxl_jax.weights.diffusers import edm_config, flow_config

# The implemented values of options, where a config has them.
SUPPORTED = {
  'trained_betas': (None,),
  'prediction_type': tuple(prediction_words.WORDS),
  'timestep_type': ('discrete',),
  'sigma_min': (None,),
  'sigma_max': (None,),
  'use_flow_sigmas': (False,),
}
SUPPORTED_EULER = SUPPORTED | {'interpolation_type': ('linear',)}
SUPPORTED_CLIPPING = SUPPORTED | {'clip_sample': (False,)}
SUPPORTED_DDIM = SUPPORTED_CLIPPING | {'thresholding': (False,)}
SUPPORTED_DDPM = SUPPORTED_DDIM | {
  'variance_type': (None, 'fixed_small', 'fixed_small_log')
}
SUPPORTED_MULTISTEP = SUPPORTED | {'thresholding': (False,)}
SUPPORTED_DPMPP = SUPPORTED_MULTISTEP | {
  'algorithm_type': ('dpmsolver++', 'sde-dpmsolver++', 'deis'),
  'use_lu_lambdas': (False,),
  'lambda_min_clipped': ('-inf', -np.inf),
  'variance_type': (None,),
}
SUPPORTED_DPMPP_2M = SUPPORTED_DPMPP | {
  'solver_order': (1, 2),
  'solver_type': ('midpoint', 'bh1', 'bh2', 'logrho'),  # all mean midpoint
}
SUPPORTED_DEIS = SUPPORTED_MULTISTEP | {'solver_order': (1, 2, 3)}
SUPPORTED_UNIPC = SUPPORTED_MULTISTEP | {
  'solver_order': (2,),
  'solver_type': ('bh2', 'midpoint', 'heun', 'logrho'),  # all mean bh2
  'predict_x0': (True,),
  'disable_corrector': ([],),
  'solver_p': (None,),
}
SUPPORTED_DISTILLED = SUPPORTED_DDIM | {'original_inference_steps': (50,)}
DPMPP_SAMPLERS = (
  'dpmpp_2m_heun',
  'dpmpp_2m_sde_heun',
  'dpmpp_3m',
  'dpmpp_3m_sde',
  'dpmpp_2s',
)
# By sampler, where the reference has more options.
SUPPORTED_BY = dict.fromkeys(DPMPP_SAMPLERS, SUPPORTED_DPMPP) | {
  'euler': SUPPORTED_EULER,
  'heun': SUPPORTED_CLIPPING,
  'ddim': SUPPORTED_DDIM,
  'ddpm': SUPPORTED_DDPM,
  'dpmpp_2m': SUPPORTED_DPMPP_2M,
  'dpmpp_2m_sde': SUPPORTED_DPMPP_2M,
  'deis': SUPPORTED_DEIS,
  'unipc': SUPPORTED_UNIPC,
  'lcm': SUPPORTED_DISTILLED,
  'tcd': SUPPORTED_DISTILLED,
}


def check(config: dict[str, Any], sampler: str) -> None:
  """Raises ValueError for an option that would change a sampler's result."""
  supported = SUPPORTED_BY.get(sampler, SUPPORTED)
  if edm_config.is_edm(config):
    supported = edm_config.SUPPORTED_BY.get(sampler, edm_config.SUPPORTED)
  elif flow_config.is_flow(config):
    supported = flow_config.SUPPORTED
  for name, allowed in supported.items():
    if name in config:
      noise_schedule.check_choice(
        f'{name} of the scheduler config', config[name], allowed
      )
