"""Spacings of timesteps and of sigmas over a run of sampling."""

import numpy as np
from jaxtyping import Float, Int

Timesteps = Float[np.ndarray, ' n']
TrainedSigmas = Float[np.ndarray, ' timesteps']  # ascending


def timesteps_to_sigmas(
  timesteps: Timesteps, trained: TrainedSigmas
) -> Timesteps:
  """Interpolates sigmas between the trained timesteps."""
  return np.interp(timesteps, np.arange(len(trained)), trained)


def sigmas_to_timesteps(sigmas: Timesteps, trained: TrainedSigmas) -> Timesteps:
  """Interpolates timesteps over log(sigma)."""
  return np.interp(np.log(sigmas), np.log(trained), np.arange(len(trained)))


# Lin et al. 2023, table 2.
def space_timesteps(
  kind: str, count: int, num_train_timesteps: int, steps_offset: int
) -> Timesteps:
  """Returns `count` descending timesteps ('trailing' may return one more)."""
  if kind == 'linspace':
    return np.linspace(0, num_train_timesteps - 1, count)[::-1]
  if kind == 'leading':
    stride = num_train_timesteps // count
    return np.arange(count)[::-1] * stride + float(steps_offset)
  # 'trailing' starts at the last timestep, whatever the count.
  stride = num_train_timesteps / count
  return np.round(np.arange(num_train_timesteps, 0, -stride)) - 1


# Karras et al. 2022, Elucidating the Design Space, equation 5.
def karras_sigmas(
  sigma_max: float, sigma_min: float, count: int, rho: float = 7.0
) -> Timesteps:
  """Returns sigmas that are evenly spaced in sigma^(1 / rho), descending."""
  ramp = np.linspace(0, 1, count)
  start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  return (start + ramp * (end - start)) ** rho


def exponential_sigmas(
  sigma_max: float, sigma_min: float, count: int
) -> Timesteps:
  """Returns sigmas that are evenly spaced in log(sigma), descending."""
  return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), count))


def distilled_timesteps(
  count: int, num_train_timesteps: int, steps: int
) -> Int[np.ndarray, ' n']:
  """Picks `steps` of the `count` timesteps of distillation, descending."""
  distilled = np.arange(count, 0, -1) * (num_train_timesteps // count) - 1
  return distilled[
    np.floor(np.linspace(0, count, steps, endpoint=False)).astype(int)
  ]
