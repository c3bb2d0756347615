"""The noise schedule that a net was trained with.

A schedule pairs each timestep with a sigma, the noise level of
x = x0 + sigma * eps. The other usual way to write a noisy image, sqrt(a) x0 +
sqrt(1 - a) eps with a = alphas_cumprod, is this x divided by
sqrt(1 + sigma^2); both mean the same picture when sigma^2 = (1 - a) / a.
"""

import dataclasses

import numpy as np

PREDICTIONS = ('eps', 'v', 'x0')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The noise schedule that a net was trained with; SDXL's by default."""

  num_train_timesteps: int = 1000
  beta_start: float = 0.00085
  beta_end: float = 0.012
  beta_schedule: str = 'scaled_linear'  # or 'linear'
  prediction: str = 'eps'  # one of PREDICTIONS; what the net gives
  zero_terminal_snr: bool = False  # the last timestep is noise alone

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


def betas(schedule):
  """Noise variance added by each timestep, float64 [num_train_timesteps]."""
  start, end = schedule.beta_start, schedule.beta_end
  if schedule.beta_schedule == 'scaled_linear':
    b = np.linspace(start**0.5, end**0.5, schedule.num_train_timesteps) ** 2
  else:
    b = np.linspace(start, end, schedule.num_train_timesteps)
  return rescale_zero_terminal_snr(b) if schedule.zero_terminal_snr else b


# Lin et al. 2023, Common Diffusion Noise Schedules, algorithm 1.
def rescale_zero_terminal_snr(betas):
  """Shifts sqrt(alphas_cumprod) to end at 0, scaled to keep its start."""
  a = np.sqrt(np.cumprod(1 - betas))
  a = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
  return 1 - np.concatenate([a[:1], a[1:] / a[:-1]])


def alphas_cumprod(schedule):
  """Share of the signal's variance at each timestep, float64, descending."""
  # Published nets come with float32 tables; the digits lost in 1 - b and in
  # the product move the smallest sigmas by 1e-5 and Karras timesteps by 1e-3.
  a = np.float32(1) - betas(schedule).astype(np.float32)
  return np.cumprod(a, dtype=np.float64).astype(np.float32).astype(np.float64)


def trained_sigmas(schedule, terminal_sigma=np.inf):
  """Sigma of each timestep, float64, ascending, at most terminal_sigma."""
  a = np.maximum(alphas_cumprod(schedule), 1 / (1 + terminal_sigma**2))
  with np.errstate(divide='ignore'):
    return np.sqrt((1 - a) / a)


def check_choice(name, value, allowed):
  if value not in allowed:
    raise ValueError(f'{name} is {value!r}; choose one of {list(allowed)}')
