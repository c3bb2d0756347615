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

PREDICTIONS = ('eps', 'v', 'x0')
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

  @property
  def is_continuous(self) -> bool:
    """Whether the net takes any noise level, rather than timesteps."""
    return self.sigma_data is not None

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
  # Published nets come with float32 tables; the digits lost in 1 - b and in
  # the product move the smallest sigmas by 1e-5 and Karras timesteps by 1e-3.
  a = np.float32(1) - betas(schedule).astype(np.float32)
  return np.cumprod(a, dtype=np.float64).astype(np.float32).astype(np.float64)


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
  a = np.maximum(alphas_cumprod(schedule), 1 / (1 + terminal_sigma**2))
  with np.errstate(divide='ignore'):
    return np.sqrt((1 - a) / a)


def check_choice(name: str, value: Any, allowed: Collection) -> None:
  """Raises a ValueError that lists the allowed values for any other."""
  if value not in allowed:
    given = repr(value)
    given = given if len(given) <= 80 else f'{given[:80]}...'
    raise ValueError(f'{name} is {given}; choose one of {list(allowed)}')
