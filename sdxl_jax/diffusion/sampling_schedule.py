"""Which noise levels a run visits, and how far down each of its steps goes."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from sdxl_jax.diffusion import noise_schedule

SPACINGS = ('leading', 'trailing', 'linspace')
SIGMAS = ('trained', 'karras', 'exponential', 'edm')


@dataclasses.dataclass(frozen=True)
class Spacing:
  """Which of the trained noise levels a run visits; SDXL's by default."""

  kind: str = 'leading'  # one of SPACINGS
  steps_offset: int = 1  # added to the timesteps of 'leading'
  sigmas: str = 'trained'  # of these timesteps; or one of SIGMAS re-spaces them
  final_sigma: str = 'zero'  # or 'smallest', that of timestep 0

  def __post_init__(self):
    noise_schedule.check_choice('spacing', self.kind, SPACINGS)
    noise_schedule.check_choice('sigmas', self.sigmas, SIGMAS)
    noise_schedule.check_choice(
      'final_sigma', self.final_sigma, ('zero', 'smallest')
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingSchedule:
  """The noise levels of one run: arrays, so that a jit takes them at run time.

  A run is x = init_scale * noise, one sampler step from sigmas[i] to
  sigmas[i + 1] for each i, and latents = final_scale * x. A step may go further
  down and come up again by fresh noise: downs^2 + ups^2 = sigmas[1:]^2.
  """

  sigmas: jax.Array  # [n + 1], descending
  downs: jax.Array  # [n]
  ups: jax.Array  # [n], zero without fresh noise
  timesteps: jax.Array  # [n], what the net is told at sigmas[:-1]
  trained_sigmas: jax.Array  # [num_train_timesteps], ascending
  init_scale: jax.Array  # []
  final_scale: jax.Array  # []
  prediction: str = dataclasses.field(metadata={'static': True})


def no_churn(sigmas, timesteps, trained, eta):
  """Straight to the next sigma, whatever eta."""
  del timesteps, trained, eta
  return sigmas[1:]


# Song et al. 2020, Denoising Diffusion Implicit Models, equation 16, in terms
# of sigma; the ancestral step of k-diffusion is the same.
def ancestral_sigma_down(sigmas, timesteps, trained, eta):
  """A share eta of the noise that a step of ancestral sampling replaces."""
  del timesteps, trained
  r = sigmas[1:] / sigmas[:-1]
  return sigmas[1:] * np.sqrt(1 - eta**2 + (eta * r) ** 2)


# Lu et al. 2022, DPM-Solver++, SDE-DPM-Solver++(2M), which has eta 1.
def sde_sigma_down(sigmas, timesteps, trained, eta):
  """As far as the reverse SDE goes without its noise; eta as in k-diffusion."""
  del timesteps, trained
  return sigmas[1:] * (sigmas[1:] / sigmas[:-1]) ** eta


# Luo et al. 2023, Latent Consistency Models, algorithm 3. The reference keeps a
# share of x, which is below 1e-5, for the net's boundary condition.
def consistency_sigma_down(sigmas, timesteps, trained, eta):
  """All the way to the image, and up again."""
  del timesteps, trained, eta
  return np.zeros(len(sigmas) - 1)


# Zheng et al. 2024, Trajectory Consistency Distillation, algorithm 4.
def trajectory_sigma_down(sigmas, timesteps, trained, eta):
  """To a share 1 - eta of the next timestep; eta is the paper's gamma."""
  below = np.floor((1 - eta) * timesteps[1:]).astype(int)
  return np.append(trained[below], sigmas[-1])


@dataclasses.dataclass(frozen=True)
class SamplerTraits:
  """In what the reference schedulers of the samplers differ."""

  whole_timesteps: bool = False  # fractional timesteps are rounded
  counts_end: bool = False  # the end of the run takes one of the timesteps
  between_trained: bool = False  # re-spaced sigmas: all trained, not the run's
  variance_preserving: bool = False  # starts and ends with x of variance 1
  terminal_sigma: float = 4096.0  # for the infinite sigma of zero SNR
  distilled: int = 0  # timesteps that the net was distilled on, the only ones
  downs: Callable = no_churn  # how far each step goes down before fresh noise
  eta: float = 0.0  # the default; what it means is said by downs


ANCESTRAL = SamplerTraits(downs=ancestral_sigma_down, eta=1.0)
MULTISTEP = SamplerTraits(
  whole_timesteps=True,
  counts_end=True,
  between_trained=True,
  variance_preserving=True,
)
DDIM = SamplerTraits(
  whole_timesteps=True,
  variance_preserving=True,
  terminal_sigma=1e6,  # as good as infinite; its square is a float32 still
  downs=ancestral_sigma_down,
)
SAMPLER_TRAITS = {
  'euler': SamplerTraits(),
  'euler_ancestral': ANCESTRAL,
  'heun': SamplerTraits(),
  'lms': SamplerTraits(),
  'ddim': DDIM,
  'dpmpp_2m': MULTISTEP,
  'dpmpp_2m_sde': dataclasses.replace(MULTISTEP, downs=sde_sigma_down, eta=1.0),
  'dpmpp_2s_ancestral': ANCESTRAL,
  'unipc': MULTISTEP,
  'lcm': dataclasses.replace(DDIM, distilled=50, downs=consistency_sigma_down),
  'tcd': dataclasses.replace(
    DDIM, distilled=50, downs=trajectory_sigma_down, eta=0.3
  ),
}


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


def exponential_sigmas(sigma_max, sigma_min, count):
  return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), count))


def make_sampling_schedule(schedule, spacing, sampler, steps, eta=None):
  """The noise levels of a run, those of the sampler's diffusers scheduler.

  Only its DDIM goes to t - 1000 // steps where ours goes to the run's next t:
  the same for 'leading', and for 'trailing' if steps divide 1000.

  Args:
    schedule: Schedule of the net.
    spacing: Spacing of the run; 'lcm' and 'tcd' have timesteps of their own.
    sampler: name of the sampler; the reference schedulers differ in detail.
    steps: number of steps, 1 to num_train_timesteps.
    eta: 0..1, how much fresh noise a stochastic sampler takes; None: its own.

  Returns:
    Levels of float32 arrays.

  Raises:
    ValueError: on an unknown sampler, or steps that the schedule cannot hold.
  """
  noise_schedule.check_choice('sampler', sampler, SAMPLER_TRAITS)
  habits = SAMPLER_TRAITS[sampler]
  limit = habits.distilled or schedule.num_train_timesteps
  if not 1 <= steps <= limit:
    raise ValueError(
      f'steps is {steps}; the limit of {sampler} is 1 to {limit}'
    )
  trained = noise_schedule.trained_sigmas(schedule, habits.terminal_sigma)
  sigmas, timesteps = _run_levels(spacing, habits, trained, steps)
  if timesteps[0] > len(trained) - 1 or not (np.diff(sigmas) < 0).all():
    raise ValueError(
      f'{steps} steps of {sampler} with {spacing.kind} spacing and '
      f'steps_offset {spacing.steps_offset} do not fit into {len(trained)} '
      "timesteps; take fewer steps or the spacing 'trailing'"
    )
  final = 0.0 if spacing.final_sigma == 'zero' else trained[0]
  preserving = habits.variance_preserving
  unit = preserving or spacing.kind == 'leading'
  sigmas = np.append(sigmas, final)
  downs = _downs(sampler, sigmas, timesteps, trained, eta)
  return SamplingSchedule(
    sigmas=sigmas.astype(np.float32),
    downs=downs.astype(np.float32),
    ups=np.sqrt(sigmas[1:] ** 2 - downs**2).astype(np.float32),
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


def _downs(sampler, sigmas, timesteps, trained, eta):
  """How far each step goes down; a sampler without noise takes no eta."""
  habits = SAMPLER_TRAITS[sampler]
  if eta is None:
    eta = habits.eta
  elif habits.downs in (no_churn, consistency_sigma_down):
    raise ValueError(f'eta is {eta}, but {sampler} has none: leave it out')
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; it must be from 0 to 1')
  downs = habits.downs(sigmas, timesteps, trained, eta)
  return np.minimum(downs, sigmas[1:])  # but for rounding


def _run_levels(spacing, habits, trained, steps):
  """The sigmas and timesteps of a run, without the final sigma."""
  if habits.distilled:
    timesteps = _distilled_timesteps(habits.distilled, len(trained), steps)
    return trained[timesteps], timesteps.astype(np.float64)
  snap = np.round if habits.whole_timesteps else np.asarray
  end = habits.counts_end and spacing.kind != 'trailing'
  # Floating point gives 'trailing' a surplus timestep for some counts.
  timesteps = space_timesteps(
    spacing.kind, steps + end, len(trained), spacing.steps_offset
  )
  timesteps = snap(timesteps[:steps])
  sigmas = timesteps_to_sigmas(timesteps, trained)
  if spacing.sigmas == 'trained':
    return sigmas, timesteps
  ends = trained[::-1] if habits.between_trained else sigmas
  if spacing.sigmas == 'karras':
    sigmas = karras_sigmas(ends[0], ends[-1], steps)
  elif spacing.sigmas == 'exponential':
    sigmas = exponential_sigmas(ends[0], ends[-1], steps)
    # The reference rounds down here.
    snap = np.floor if habits.whole_timesteps else snap
  else:
    # As EDMDiscretization of the reference (sgm, inference/api.py) is set.
    sigmas = karras_sigmas(trained[-1], trained[0], steps, rho=3.0)
  return sigmas, snap(sigmas_to_timesteps(sigmas, trained))


def _distilled_timesteps(count, num_train_timesteps, steps):
  """Evenly from those that a net was distilled on, int, descending."""
  taught = np.arange(count, 0, -1) * (num_train_timesteps // count) - 1
  return taught[
    np.floor(np.linspace(0, count, steps, endpoint=False)).astype(int)
  ]
