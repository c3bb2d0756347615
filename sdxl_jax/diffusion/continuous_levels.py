"""Noise levels of nets without timesteps, which take any sigma (EDM)."""

import functools

import numpy as np
from jaxtyping import Float

from sdxl_jax.diffusion import noise_schedule, sampler_traits, sigma_spacing

Sigmas = Float[np.ndarray, ' n']
# The levels of 'align_your_steps' are those of SDXL's timesteps.
SIGMAS = [n for n in sigma_spacing.RESPACINGS if n != 'align_your_steps']


def call_levels(
  schedule: noise_schedule.Schedule, sigmas: str, rho: float, steps: int
) -> tuple[Sigmas, Sigmas]:
  """Returns the sigmas of a run without the final one, descending.

  Only for a single step of 'exponential', which starts at the largest sigma
  here, diffusers takes the smallest.

  Args:
    schedule: of the net.
    sigmas: how they are spaced, one of SIGMAS.
    rho: of 'karras'.
    steps: number of calls.

  Returns:
    The sigmas, and what the net takes in place of timesteps: c_noise of Karras
    et al. 2022, table 1.
  """
  respace = sigma_spacing.RESPACINGS[sigmas]
  if sigmas == 'karras':
    respace = functools.partial(respace, rho=rho)
  levels = respace(schedule.sigma_max, schedule.sigma_min, steps)
  return levels, np.log(levels) / 4


def check(sampler: str, spacing: str, sigmas: str) -> None:
  """Raises ValueError for settings that are of timesteps.

  Args:
    sampler: name of the sampler.
    spacing: of timesteps; 'leading', the default, has no effect.
    sigmas: how they are spaced.
  """
  what = 'and this net takes continuous noise levels (EDM)'
  traits = sampler_traits.SAMPLER_TRAITS
  fitting = [name for name in traits if not traits[name].needs_timesteps]
  if sampler not in fitting:
    raise ValueError(
      f'the sampler {sampler} is defined on timesteps, {what}: choose one of '
      f'{", ".join(fitting)}'
    )
  if spacing != 'leading':
    raise ValueError(
      f'spacing is {spacing!r}, which is of timesteps, {what}: leave it out'
    )
  if sigmas not in SIGMAS:
    raise ValueError(
      f'sigmas is {sigmas!r}, which is of timesteps, {what}: choose one of '
      f'{", ".join(SIGMAS)}, or leave it out'
    )
