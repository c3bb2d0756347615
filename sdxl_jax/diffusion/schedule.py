"""Noise levels: those a net was trained on, and those a sampler visits.

A trained schedule pairs each timestep with a sigma, the noise level of
x = x0 + sigma * eps. The other usual way to write a noisy image, sqrt(a) x0 +
sqrt(1 - a) eps with a = alphas_cumprod, is this x divided by
sqrt(1 + sigma^2); both mean the same picture when sigma^2 = (1 - a) / a.
"""

import dataclasses

import jax
import numpy as np

PREDICTIONS = ('eps', 'v', 'x0')
SPACINGS = ('leading', 'trailing', 'linspace')


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


@dataclasses.dataclass(frozen=True)
class Spacing:
  """Which of the trained noise levels a run visits; SDXL's by default."""

  kind: str = 'leading'  # one of SPACINGS
  steps_offset: int = 1  # added to the timesteps of 'leading'
  karras: bool = False  # re-space the sigmas between the same two ends
  final_sigma: str = 'zero'  # or 'smallest', that of timestep 0

  def __post_init__(self):
    check_choice('spacing', self.kind, SPACINGS)
    check_choice('final_sigma', self.final_sigma, ('zero', 'smallest'))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
  """The noise levels of one run: arrays, so that a jit takes them at run time.

  A run is x = init_scale * noise, one sampler step from sigmas[i] to
  sigmas[i + 1] for each i, and latents = final_scale * x.
  """

  sigmas: jax.Array  # [n + 1], descending
  timesteps: jax.Array  # [n], what the net is told at sigmas[:-1]
  trained_sigmas: jax.Array  # [num_train_timesteps], ascending
  init_scale: jax.Array  # []
  final_scale: jax.Array  # []
  prediction: str = dataclasses.field(metadata={'static': True})


@dataclasses.dataclass(frozen=True)
class _Habits:
  """In what the reference schedulers of the samplers differ."""

  whole_timesteps: bool = False  # fractional timesteps are rounded
  counts_end: bool = False  # the end of the run takes one of the timesteps
  karras_over_trained: bool = False  # Karras ends: all trained, not the run's
  variance_preserving: bool = False  # starts and ends with x of variance 1
  terminal_sigma: float = 4096.0  # for the infinite sigma of zero SNR


HABITS = {
  'euler': _Habits(),
  'euler_ancestral': _Habits(),
  'heun': _Habits(),
  'ddim': _Habits(
    whole_timesteps=True,
    variance_preserving=True,
    terminal_sigma=1e6,  # as good as infinite; its square is a float32 still
  ),
  'dpmpp_2m': _Habits(
    whole_timesteps=True,
    counts_end=True,
    karras_over_trained=True,
    variance_preserving=True,
  ),
}


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


def timesteps_to_sigmas(timesteps, trained):
  return np.interp(timesteps, np.arange(len(trained)), trained)


def sigmas_to_timesteps(sigmas, trained):
  return np.interp(np.log(sigmas), np.log(trained), np.arange(len(trained)))


# Lin et al. 2023, table 2.
def space_timesteps(kind, count, num_train_timesteps, steps_offset):
  """count descending timesteps, float64."""
  if kind == 'linspace':
    return np.linspace(0, num_train_timesteps - 1, count)[::-1]
  if kind == 'leading':
    stride = num_train_timesteps // count
    return np.arange(count)[::-1] * stride + float(steps_offset)
  stride = num_train_timesteps / count
  return np.round(np.arange(num_train_timesteps, 0, -stride)) - 1


# Karras et al. 2022, Elucidating the Design Space, equation 5.
def karras_sigmas(sigma_max, sigma_min, count, rho=7.0):
  ramp = np.linspace(0, 1, count)
  ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  return (ends[0] + ramp * (ends[1] - ends[0])) ** rho


def make_levels(schedule, spacing, sampler, steps):
  """The noise levels of a run, those of the sampler's diffusers scheduler.

  Only its DDIM goes to t - 1000 // steps where ours goes to the run's next t:
  the same for 'leading', and for 'trailing' if steps divide 1000.

  Args:
    schedule: Schedule of the net.
    spacing: Spacing of the run.
    sampler: name of the sampler; the reference schedulers differ in detail.
    steps: number of steps, 1 to num_train_timesteps.

  Returns:
    Levels of float32 arrays.

  Raises:
    ValueError: on an unknown sampler, or steps that the schedule cannot hold.
  """
  check_choice('sampler', sampler, HABITS)
  limit = schedule.num_train_timesteps
  if not 1 <= steps <= limit:
    raise ValueError(f'steps is {steps}; the limit is 1 to {limit}')
  habits = HABITS[sampler]
  trained = trained_sigmas(schedule, habits.terminal_sigma)
  sigmas, timesteps = _run_levels(spacing, habits, trained, steps)
  if timesteps[0] > limit - 1 or not (np.diff(sigmas) < 0).all():
    raise ValueError(
      f'{steps} steps of {sampler} with {spacing.kind} spacing and '
      f'steps_offset {spacing.steps_offset} do not fit into {limit} '
      "timesteps; take fewer steps or the spacing 'trailing'"
    )
  final = 0.0 if spacing.final_sigma == 'zero' else trained[0]
  preserving = habits.variance_preserving
  unit = preserving or spacing.kind == 'leading'
  return Levels(
    sigmas=np.append(sigmas, final).astype(np.float32),
    timesteps=timesteps.astype(np.float32),
    trained_sigmas=trained.astype(np.float32),
    init_scale=np.float32(np.sqrt(unit + sigmas[0] ** 2)),
    final_scale=np.float32(1 / np.sqrt(1 + preserving * final**2)),
    prediction=schedule.prediction,
  )


def steps_until(levels, share):
  """How many steps of a run start before this share of all noise levels.

  Args:
    levels: Levels.
    share: 0..1 of the trained timesteps, counted from the noisiest.

  Raises:
    ValueError: for a share outside of 0..1.
  """
  if not 0 <= share <= 1:
    raise ValueError(f'refiner_start is {share}; it must be from 0 to 1')
  count = len(levels.trained_sigmas)
  return int((levels.timesteps >= round(count - share * count)).sum())


def _run_levels(spacing, habits, trained, steps):
  """The sigmas and timesteps of a run, without the final sigma."""
  snap = np.round if habits.whole_timesteps else np.asarray
  end = habits.counts_end and spacing.kind != 'trailing'
  # Floating point gives 'trailing' a surplus timestep for some counts.
  timesteps = space_timesteps(
    spacing.kind, steps + end, len(trained), spacing.steps_offset
  )
  timesteps = snap(timesteps[:steps])
  sigmas = timesteps_to_sigmas(timesteps, trained)
  if not spacing.karras:
    return sigmas, timesteps
  ends = trained[::-1] if habits.karras_over_trained else sigmas
  sigmas = karras_sigmas(ends[0], ends[-1], steps)
  return sigmas, snap(sigmas_to_timesteps(sigmas, trained))


def check_choice(name, value, allowed):
  if value not in allowed:
    raise ValueError(f'{name} is {value!r}; choose one of {list(allowed)}')
