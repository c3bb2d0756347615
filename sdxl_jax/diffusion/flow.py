"""Rectified flow: straight paths from the image to noise.

x_t = (1 - t) x0 + t eps for a time t in 0..1, and the net predicts eps - x0,
the direction of the path. Samplers work on x = x0 + sigma eps: at sigma = t /
(1 - t) that is x_t / (1 - t), so that all of them sample flows too, and a step
of Euler is Euler's step over t. As others have it, the net's timestep is 1000 t
and the trained times are t = 1/1000, ..., 1, shifted.
"""

import numpy as np
from jaxtyping import Float

from sdxl_jax.diffusion import noise_schedule, sampler_traits, sigma_spacing

Times = Float[np.ndarray, ' n']
# Their first step has a limit at infinite sigma, which others have not.
FIRST_ORDER = ('euler', 'euler_ancestral', 'ddim', 'ddpm')
AS_GOOD_AS_INFINITE = 1e6


def terminal_sigma(sampler: str) -> float:
  """Returns the sigma that stands for pure noise, t = 1."""
  if sampler in FIRST_ORDER:
    return AS_GOOD_AS_INFINITE
  return sampler_traits.SAMPLER_TRAITS[sampler].terminal_sigma


def call_levels(
  schedule: noise_schedule.Schedule, spacing: str, sampler: str, steps: int
) -> tuple[Times, Times]:
  """Returns sigmas and timesteps of a run without the final sigma, descending.

  With 'linspace' they are those of diffusers' FlowMatchEulerDiscreteScheduler,
  which shifts the shortest time twice.

  Args:
    schedule: of the net.
    spacing: one of sampling_schedule.SPACINGS, of times before their shift.
    sampler: its name.
    steps: number of calls.
  """
  count = schedule.num_train_timesteps
  if spacing == 'linspace':
    shortest = noise_schedule.times(schedule)[0]
    unshifted = np.linspace(1, shortest, steps)
  elif spacing == 'sgm_uniform':
    unshifted = np.linspace(1, 1 / count, steps + 1)[:-1]
  else:
    # 'leading' would begin below pure noise, where nothing is known.
    timesteps = sigma_spacing.space_timesteps('trailing', steps, count, 0)
    unshifted = (timesteps[:steps] + 1) / count
  times = noise_schedule.shift_times(unshifted, schedule.shift)
  with np.errstate(divide='ignore'):
    sigmas = np.minimum(times / (1 - times), terminal_sigma(sampler))
  return sigmas, count * times


def check(sampler: str, spacing: str, sigmas: str) -> None:
  """Raises ValueError for settings that are of other noise schedules.

  Args:
    sampler: name of the sampler.
    spacing: of timesteps.
    sigmas: how they are spaced.
  """
  if sampler_traits.SAMPLER_TRAITS[sampler].distilled_timesteps:
    raise ValueError(
      f'the sampler {sampler} is of nets distilled on the timesteps of SDXL, '
      'and this net was trained with rectified flow: choose another one'
    )
  if sigmas != 'trained':
    raise ValueError(
      f'sigmas is {sigmas!r}, and a net trained with rectified flow begins at '
      'an infinite one, from which they cannot be spaced: leave it out'
    )
  if spacing == 'leading':
    raise ValueError(
      "spacing is 'leading', which leaves out the noisiest timestep, and a net "
      'trained with rectified flow begins with pure noise: choose '
      "'linspace', 'trailing' or 'sgm_uniform'"
    )
