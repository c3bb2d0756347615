"""Reads and writes scheduler_config.json of rectified flow."""

from typing import Any

from sdxl_jax.diffusion import noise_schedule, sampling_schedule

EULER = 'FlowMatchEulerDiscreteScheduler'
PREDICTION = 'flow_prediction'  # diffusers' word
# The implemented values of options, where a config has them.
SUPPORTED = {
  'use_dynamic_shifting': (False,),
  'invert_sigmas': (False,),
  'shift_terminal': (None,),
  'use_karras_sigmas': (False,),
  'use_exponential_sigmas': (False,),
  'use_beta_sigmas': (False,),
  'stochastic_sampling': (False,),
}
# Spacings whose runs begin with pure noise; diffusers' class has the first.
SPACINGS = ('linspace', 'trailing', 'sgm_uniform')


def is_flow(config: dict[str, Any]) -> bool:
  """Whether a scheduler_config.json is of rectified flow."""
  return config.get('_class_name') == EULER


def decided(stored: dict[str, Any]) -> dict[str, Any]:
  """Returns the scheduler_config.json of a net that is said to predict flows.

  Args:
    stored: that of its files, which stays if it is one of flows.
  """
  return stored if is_flow(stored) else write(schedule_of({}))


def schedule_of(config: dict[str, Any]) -> noise_schedule.Schedule:
  """Returns the Schedule of a scheduler_config.json of rectified flow."""
  return noise_schedule.Schedule(
    num_train_timesteps=config.get('num_train_timesteps', 1000),
    prediction='flow',
    shift=float(config.get('shift', 1.0)),
    shift_size=config.get('shift_size', 0),
  )


def read(
  config: dict[str, Any],
) -> tuple[noise_schedule.Schedule, sampling_schedule.Spacing]:
  """Reads a scheduler_config.json whose options are supported."""
  kind = config.get('timestep_spacing', SPACINGS[0])
  return schedule_of(config), sampling_schedule.Spacing(kind)


def write(
  trained: noise_schedule.Schedule, spacing: str = SPACINGS[0]
) -> dict[str, Any]:
  """Returns the scheduler_config.json of diffusers' class for flows.

  The last lines are what other classes of diffusers, such as UniPC, read of it
  by `from_config`. shift_size and timestep_spacing are ours: where they are,
  others take the shift of that size for all sizes, and their own spacing.
  """
  ours = {'shift_size': trained.shift_size} if trained.shift_size else {}
  if spacing != SPACINGS[0]:
    ours['timestep_spacing'] = spacing
  return {
    '_class_name': EULER,
    'num_train_timesteps': trained.num_train_timesteps,
    'shift': trained.shift,
    **ours,
    'prediction_type': PREDICTION,
    'use_flow_sigmas': True,
    'flow_shift': trained.shift,
  }
