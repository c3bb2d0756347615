"""Spacings of timesteps and of sigmas over a run of sampling."""

import functools

import numpy as np
import scipy.special
from jaxtyping import Float, Int

Timesteps = Float[np.ndarray, ' n']
TrainedSigmas = Float[np.ndarray, ' timesteps']  # ascending


def timesteps_to_sigmas(
  timesteps: Timesteps, trained: TrainedSigmas
) -> Timesteps:
  """Interpolates sigmas between the trained timesteps."""
  return np.interp(timesteps, np.arange(len(trained)), trained)


def timesteps_to_sigmas_in_log(
  timesteps: Timesteps, trained: TrainedSigmas
) -> Timesteps:
  """Interpolates log(sigma) between the trained timesteps, as k-diffusion."""
  return np.exp(timesteps_to_sigmas(timesteps, np.log(trained)))


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


# Lee et al. 2024, Beta Sampling is All You Need, with alpha = beta = 0.6.
def beta_sigmas(sigma_max: float, sigma_min: float, count: int) -> Timesteps:
  """Returns sigmas that lie closer at both ends, descending."""
  shares = scipy.special.betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, count))
  return sigma_min + shares * (sigma_max - sigma_min)


# Sabour et al. 2024, Align Your Steps: the levels optimised for ten steps of
# SDXL, with the digits that ComfyUI has; the last of them becomes 0.
ALIGN_YOUR_STEPS = np.array(
  [
    14.6146412293,
    6.3184485287,
    3.7681790315,
    2.1811480769,
    1.3405244945,
    0.8620721141,
    0.5550693289,
    0.3798540708,
    0.2332364134,
    0.1114188177,
    0.0291671582,
  ]
)


def align_your_steps_sigmas(
  sigma_max: float, sigma_min: float, count: int
) -> Timesteps:
  """Returns SDXL's optimised sigmas, interpolated in log(sigma)."""
  del sigma_max, sigma_min
  levels = np.log(ALIGN_YOUR_STEPS)
  at = np.linspace(0, len(levels) - 1, count + 1)[:-1]
  return np.exp(np.interp(at, np.arange(len(levels)), levels))


# By name: (sigma_max, sigma_min, count) -> descending sigmas. 'edm' has the rho
# that the reference sets for EDMDiscretization (sgm, inference/api.py).
RESPACINGS = {
  'karras': karras_sigmas,
  'exponential': exponential_sigmas,
  'edm': functools.partial(karras_sigmas, rho=3.0),
  'beta': beta_sigmas,
  'align_your_steps': align_your_steps_sigmas,
}


def distilled_timesteps(
  count: int, num_train_timesteps: int, steps: int
) -> Int[np.ndarray, ' n']:
  """Picks `steps` of the `count` timesteps of distillation, descending."""
  distilled = np.arange(count, 0, -1) * (num_train_timesteps // count) - 1
  return distilled[
    np.floor(np.linspace(0, count, steps, endpoint=False)).astype(int)
  ]
