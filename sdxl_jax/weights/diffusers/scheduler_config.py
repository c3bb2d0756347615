"""Translates diffusers' scheduler_config.json to our schedule and spacing."""

from typing import Any, NamedTuple

from sdxl_jax.diffusion import (
  noise_schedule,
  sampler_traits,
  sampling_schedule,
)
from sdxl_jax.weights import prediction_words
from sdxl_jax.weights.diffusers import (
  edm_config,
  flow_config,
  scheduler_defaults,
  scheduler_support,
)

# Our names of the predictions of a net, and those of diffusers.
PREDICTION_TYPES = {ours: n for n, ours in prediction_words.OURS.items()}
# Our samplers by the classes of diffusers; see also SOLVER_VARIANTS.
SAMPLER_CLASSES = {
  'EulerDiscreteScheduler': 'euler',
  'EulerAncestralDiscreteScheduler': 'euler_ancestral',
  'HeunDiscreteScheduler': 'heun',
  'KDPM2DiscreteScheduler': 'dpm_2',
  'KDPM2AncestralDiscreteScheduler': 'dpm_2_ancestral',
  'LMSDiscreteScheduler': 'lms',
  'DDIMScheduler': 'ddim',
  'DDIMParallelScheduler': 'ddim',
  'DDPMScheduler': 'ddpm',
  'DDPMParallelScheduler': 'ddpm',
  'DPMSolverMultistepScheduler': 'dpmpp_2m',
  'DPMSolverSinglestepScheduler': 'dpmpp_2s',
  'DPMSolverSDEScheduler': 'dpmpp_sde',
  'DEISMultistepScheduler': 'deis',
  'UniPCMultistepScheduler': 'unipc',
  'LCMScheduler': 'lcm',
  'TCDScheduler': 'tcd',
  edm_config.EULER: 'euler',
  edm_config.MULTISTEP: 'dpmpp_2m',
  flow_config.EULER: 'euler',
}
# Samplers whose reference schedulers cannot re-space their sigmas.
TRAINED_ONLY = ('ddim', 'ddpm', 'euler_ancestral', 'lcm', 'tcd')
# Samplers whose order a config may set.
ORDER_BY_CONFIG = ('dpmpp_2m', 'dpmpp_2m_sde', 'deis')
# Samplers whose reference schedulers choose the final sigma.
FINAL_SIGMA_BY_CONFIG = (
  'euler',
  'dpmpp_2m',
  'dpmpp_2m_sde',
  'unipc',
  *scheduler_support.DPMPP_SAMPLERS,
)


def sampler_of(config: dict[str, Any]) -> tuple[str, str | None]:
  """Returns the sampler that a scheduler_config.json names, and a note.

  Args:
    config: the parsed JSON; without a class it is Euler's.

  Returns:
    (name, None), or where the class or one of its options is not implemented:
    (the sampler to take instead, a line that says so).
  """
  named = config.get('_class_name', 'EulerDiscreteScheduler')
  sampler = SAMPLER_CLASSES.get(named)
  reason = f'names {named}, which is not implemented'
  if sampler in ('dpmpp_2m', 'dpmpp_2s'):
    variant = _solver_variant(config)
    sampler = SOLVER_VARIANTS[sampler].get(variant)
    reason = f'names {named} with {variant}, which is not implemented'
  if sampler == 'dpmpp_3m_sde':
    return sampler, (
      "scheduler_config.json names an SDE of order 3: k-diffusion's step is "
      "taken, since diffusers' has the wrong sign in its last term"
    )
  if sampler is not None:
    try:
      scheduler_support.check(config, sampler)
      return sampler, None
    except ValueError as error:
      reason = f'names {named}, and {error}'
  if sampler == 'euler':
    return sampler, None  # `read` raises the error
  return 'euler', (
    f'scheduler_config.json {reason}: euler is taken; --sampler chooses another'
  )


class SolverVariant(NamedTuple):
  """The options of diffusers' DPM-Solvers that make them another sampler."""

  algorithm_type: str
  solver_order: int
  solver_type: str = 'midpoint'

  def __str__(self):
    return ', '.join(f'{k} {v}' for k, v in self._asdict().items())


def _solver_variant(config: dict[str, Any]) -> SolverVariant:
  """Reads the options with the defaults and aliases of diffusers."""
  algorithm = config.get('algorithm_type', 'dpmsolver++')
  order = config.get('solver_order', 2)
  # Steps of first order have no type, and the names of others mean midpoint.
  is_heun = config.get('solver_type') == 'heun' and order > 1
  return SolverVariant(
    'dpmsolver++' if algorithm == 'deis' else algorithm,
    order,
    'heun' if is_heun else 'midpoint',
  )


# Our samplers by the variants of a multistep and of a single-step solver.
SOLVER_VARIANTS = {
  'dpmpp_2m': {
    SolverVariant('dpmsolver++', 1): 'dpmpp_2m',
    SolverVariant('dpmsolver++', 2): 'dpmpp_2m',
    SolverVariant('dpmsolver++', 2, 'heun'): 'dpmpp_2m_heun',
    SolverVariant('dpmsolver++', 3): 'dpmpp_3m',
    SolverVariant('sde-dpmsolver++', 1): 'dpmpp_2m_sde',
    SolverVariant('sde-dpmsolver++', 2): 'dpmpp_2m_sde',
    SolverVariant('sde-dpmsolver++', 2, 'heun'): 'dpmpp_2m_sde_heun',
    SolverVariant('sde-dpmsolver++', 3): 'dpmpp_3m_sde',
  },
  'dpmpp_2s': {SolverVariant('dpmsolver++', 2): 'dpmpp_2s'},
}


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
  noise_schedule.check_choice('sampler', sampler, sampler_traits.SAMPLER_TRAITS)
  scheduler_support.check(config, sampler)
  if edm_config.is_edm(config):
    return edm_config.read(config, _spacing(config, sampler))
  if flow_config.is_flow(config):
    return flow_config.read(config)
  try:
    trained = noise_schedule.Schedule(
      num_train_timesteps=config['num_train_timesteps'],
      beta_start=config['beta_start'],
      beta_end=config['beta_end'],
      beta_schedule=config['beta_schedule'],
      prediction=prediction_words.OURS[
        config.get('prediction_type', 'epsilon')
      ],
      zero_terminal_snr=config.get('rescale_betas_zero_snr', False),
    )
  except KeyError as e:
    named = config.get('_class_name')
    # Such as those of flow matching.
    if named is not None and named not in SAMPLER_CLASSES:
      raise ValueError(
        f'the scheduler config names {named} and lacks {e}, as do schedulers '
        'of nets that were trained on other noise than SDXL: put the '
        'scheduler_config.json of the base model in its place'
      ) from e
    raise ValueError(f'the scheduler config lacks {e}; add it') from e
  return trained, _spacing(config, sampler)


def _spacing(config: dict[str, Any], sampler: str) -> sampling_schedule.Spacing:
  """Reads the spacing of a sampler, as its class of diffusers does."""
  named = config.get('_class_name')
  defaults = scheduler_defaults.DEFAULTS.get(named, scheduler_defaults.COMMON)
  kind = (defaults | config).get('timestep_spacing', 'linspace')
  # The last sigma is 0 or the smallest trained one, by the class.
  to_zero = config.get('final_sigmas_type', 'zero') == 'zero'
  to_zero = {
    'ddim': config.get('set_alpha_to_one', True),
    'tcd': False,
    'deis': False,
  }.get(sampler, to_zero if sampler in FINAL_SIGMA_BY_CONFIG else True)
  # UniPC's last step is always of first order, others' in short runs.
  lower_order_final = config.get('lower_order_final', sampler != 'dpmpp_2s')
  at_final = 'lower_order_final' if sampler == 'unipc' else 'euler_at_final'
  order = sampler_traits.NO_LIMIT
  if sampler in ORDER_BY_CONFIG:
    order = config.get('solver_order', 2)
  return sampling_schedule.Spacing(
    # Its class has no other.
    kind='linspace' if sampler == 'dpmpp_2s' else kind,
    steps_offset=config.get('steps_offset', 0),
    sigmas='trained' if sampler in TRAINED_ONLY else sigmas_of(config),
    final_sigma='zero' if to_zero else 'smallest',
    solver_order=order,
    lower_order_final=lower_order_final,
    euler_at_final=config.get(at_final, sampler == 'unipc'),
  )


def sigmas_of(config: dict[str, Any]) -> str:
  """Returns how a config re-spaces its sigmas."""
  for name in ('karras', 'exponential', 'beta'):
    if config.get(f'use_{name}_sigmas', False):
      return name
  return 'trained'


def write(
  trained: noise_schedule.Schedule, spacing: sampling_schedule.Spacing
) -> dict[str, Any]:
  """Returns the scheduler_config.json of an Euler sampler."""
  if trained.is_flow:
    return flow_config.write(trained, spacing.kind)
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
  if trained.is_flow:
    return flow_config.write(trained)
  # Only 'trailing' visits the last timestep, where zero terminal SNR is.
  kind = 'trailing' if trained.zero_terminal_snr else 'leading'
  return write(trained, sampling_schedule.Spacing(kind))
