"""The noise schedule of training: a sigma for each timestep.

Nets of continuous noise levels (EDM) have no timesteps: they take any sigma
from sigma_min to sigma_max.

Sigma is the noise level of x = x0 + sigma * eps. The other usual form of a
noisy image, sqrt(a) x0 + sqrt(1 - a) eps with a = alphas_cumprod, is this x
divided by sqrt(1 + sigma^2), where sigma^2 = (1 - a) / a.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float

PREDICTIONS = ('eps', 'v', 'x0', 'flow')
CONTINUOUS_PREDICTIONS = ('eps', 'v')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Describes a noise schedule; the defaults are SDXL's."""

  num_train_timesteps: int = 1000
  beta_start: float = 0.00085
  beta_end: float = 0.012
  beta_schedule: str = 'scaled_linear'  # or 'linear'
  prediction: str = 'eps'  # one of PREDICTIONS; the net's output
  zero_terminal_snr: bool = False  # the last timestep is pure noise
  # Standard deviation of the data, of a net of continuous noise levels; None:
  # of one of timesteps. The prediction then only decides the sign: v = -eps.
  sigma_data: float | None = None
  sigma_min: float = 0.002
  sigma_max: float = 80.0
  # Of 'flow', see `shift_times`: at images of shift_size^2 px; at others by
  # their size. 0: the same at all sizes.
  shift: float = 1.0
  shift_size: int = 0

  def __post_init__(self):
    check_choice(
      'beta_schedule', self.beta_schedule, ('scaled_linear', 'linear')
    )
    check_choice('prediction', self.prediction, PREDICTIONS)
    if not 0 < self.beta_start <= self.beta_end < 1:
      raise ValueError(
        f'beta_start {self.beta_start} and beta_end {self.beta_end} must be '
        'ascending and inside (0, 1)'
      )
    if self.sigma_data is not None:
      self._check_continuous()
    self._check_flow()

  @property
  def is_continuous(self) -> bool:
    """Whether the net takes any noise level, rather than timesteps."""
    return self.sigma_data is not None

  @property
  def is_flow(self) -> bool:
    """Whether noise is added on straight paths, see `flow`."""
    return self.prediction == 'flow'

  @property
  def ends_in_noise(self) -> bool:
    """Whether the last timestep has no signal."""
    return self.zero_terminal_snr or self.is_flow

  # Esser et al. 2024, Scaling Rectified Flow Transformers for High-Resolution
  # Image Synthesis, equation 23: shifts of m pixels are sqrt(m / n) of n.
  def at_size(self, height: int, width: int) -> 'Schedule':
    """Returns the schedule of images of a size in px."""
    if not self.shift_size:
      return self
    factor = (height * width) ** 0.5 / self.shift_size
    return dataclasses.replace(self, shift=self.shift * factor, shift_size=0)

  def _check_flow(self):
    if not self.is_flow and (self.shift != 1 or self.shift_size):
      raise ValueError(
        f'shift is {self.shift} and shift_size {self.shift_size}, which are of '
        f"the prediction 'flow', and this one is {self.prediction!r}: leave "
        'them out'
      )
    if self.is_flow and self.zero_terminal_snr:
      raise ValueError(
        "zero_terminal_snr is of the predictions 'v' and 'x0', and 'flow' ends "
        'in pure noise anyway: leave it out'
      )
    if self.shift <= 0 or self.shift_size < 0:
      raise ValueError(
        f'shift is {self.shift} and shift_size {self.shift_size}; they must be '
        'above 0, and at least 0'
      )

  def _check_continuous(self):
    check_choice('prediction', self.prediction, CONTINUOUS_PREDICTIONS)
    if self.zero_terminal_snr:
      raise ValueError(
        'zero_terminal_snr is of schedules with timesteps, and this net takes '
        'continuous noise levels: leave it out'
      )
    if self.sigma_data <= 0 or not 0 < self.sigma_min < self.sigma_max:
      raise ValueError(
        f'sigma_data {self.sigma_data}, sigma_min {self.sigma_min} and '
        f'sigma_max {self.sigma_max} must be above 0, the last two ascending'
      )


def betas(schedule: Schedule) -> Float[np.ndarray, ' timesteps']:
  """Returns the noise variance that each timestep adds, float64."""
  start, end = schedule.beta_start, schedule.beta_end
  if schedule.beta_schedule == 'scaled_linear':
    b = np.linspace(start**0.5, end**0.5, schedule.num_train_timesteps) ** 2
  else:
    b = np.linspace(start, end, schedule.num_train_timesteps)
  return rescale_zero_terminal_snr(b) if schedule.zero_terminal_snr else b


# Lin et al. 2023, Common Diffusion Noise Schedules, algorithm 1.
def rescale_zero_terminal_snr(
  betas: Float[np.ndarray, ' timesteps'],
) -> Float[np.ndarray, ' timesteps']:
  """Shifts sqrt(alphas_cumprod) to end at 0, scaled to keep its start."""
  # sqrt(alphas_cumprod), shifted and scaled, then betas again.
  a = np.sqrt(np.cumprod(1 - betas))
  a = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
  return 1 - np.concatenate([a[:1], a[1:] / a[:-1]])


def alphas_cumprod(schedule: Schedule) -> Float[np.ndarray, ' timesteps']:
  """Returns the share of signal variance at each timestep, descending."""
  if schedule.is_flow:
    t = times(schedule)
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
  # Published nets come with float32 tables; the digits lost in 1 - b and in
  # the product move the smallest sigmas by 1e-5 and Karras timesteps by 1e-3.
  a = np.float32(1) - betas(schedule).astype(np.float32)
  return np.cumprod(a, dtype=np.float64).astype(np.float32).astype(np.float64)


# Esser et al. 2024, Scaling Rectified Flow Transformers for High-Resolution
# Image Synthesis, equation 23, with shift for sqrt(m / n).
def shift_times(
  t: Float[np.ndarray, ' n'], shift: float
) -> Float[np.ndarray, ' n']:
  """Returns the times of rectified flow; a shift above 1 is more noise."""
  return shift * t / (1 + (shift - 1) * t)


def times(schedule: Schedule) -> Float[np.ndarray, ' timesteps']:
  """Returns the time of each timestep of rectified flow, ascending to 1."""
  count = schedule.num_train_timesteps
  return shift_times(np.arange(1, count + 1) / count, schedule.shift)


def trained_sigmas(
  schedule: Schedule, terminal_sigma: float = np.inf
) -> Float[np.ndarray, ' timesteps']:
  """Returns each timestep's sigma, float64, ascending, <= terminal_sigma.

  Continuous noise levels are as many, evenly spaced in log(sigma).
  """
  if schedule.is_continuous:
    return np.geomspace(
      schedule.sigma_min, schedule.sigma_max, schedule.num_train_timesteps
    )
  if schedule.is_flow:
    t = times(schedule)
    with np.errstate(divide='ignore'):
      return np.minimum(t / (1 - t), terminal_sigma)
  a = np.maximum(alphas_cumprod(schedule), 1 / (1 + terminal_sigma**2))
  with np.errstate(divide='ignore'):
    return np.sqrt((1 - a) / a)


def check_choice(name: str, value: Any, allowed: Collection) -> None:
  """Raises a ValueError that lists the allowed values for any other."""
  if value not in allowed:
    given = repr(value)
    given = given if len(given) <= 80 else f'{given[:80]}...'
    raise ValueError(f'{name} is {given}; choose one of {list(allowed)}')
