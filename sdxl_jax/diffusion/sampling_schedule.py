"""The noise levels that a run of sampling visits, and where each step ends."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from sdxl_jax.diffusion import (
  continuous_levels,
  noise_schedule,
  sigma_spacing,
)

SPACINGS = ('leading', 'trailing', 'linspace')
SIGMAS = ('trained', 'karras', 'exponential', 'edm')

Levels = Float[np.ndarray, ' levels']  # of n steps: n + 1
Timesteps = Float[np.ndarray, ' n']
TrainedSigmas = Float[np.ndarray, ' timesteps']  # ascending


@dataclasses.dataclass(frozen=True)
class Spacing:
  """Chooses which noise levels a run visits; the defaults are SDXL's."""

  kind: str = 'leading'  # one of SPACINGS
  steps_offset: int = 1  # added to the timesteps of 'leading'
  sigmas: str = 'trained'  # of these timesteps; or one of SIGMAS re-spaces them
  final_sigma: str = 'zero'  # or 'smallest', that of timestep 0
  rho: float = 7.0  # of 'karras', for continuous noise levels

  def __post_init__(self):
    noise_schedule.check_choice('spacing', self.kind, SPACINGS)
    noise_schedule.check_choice('sigmas', self.sigmas, SIGMAS)
    noise_schedule.check_choice(
      'final_sigma', self.final_sigma, ('zero', 'smallest')
    )


# Not checked on creation: a tree of it may hold shapes or shardings as well.
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingSchedule:
  """The noise levels of one run, as arrays that jit takes at run time.

  A run is x = init_scale * noise, one sampler step from sigmas[i] to
  sigmas[i + 1] for each i, and latents = final_scale * x. A step may go further
  down and add fresh noise: sigmas_down^2 + sigmas_up^2 = sigmas[1:]^2.
  """

  sigmas: jax.Array  # [n + 1], descending
  sigmas_down: jax.Array  # [n]
  sigmas_up: jax.Array  # [n], zero without fresh noise
  timesteps: jax.Array  # [n], the net's input at sigmas[:-1]
  trained_sigmas: jax.Array  # [num_train_timesteps], ascending
  init_scale: jax.Array  # []
  final_scale: jax.Array  # []
  prediction: str = dataclasses.field(metadata={'static': True})
  # Of a net of continuous noise levels, see noise_schedule.Schedule.
  sigma_data: float | None = dataclasses.field(
    default=None, metadata={'static': True}
  )


def no_churn(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Deterministic: sigma_down is the next sigma, whatever eta."""
  del timesteps, trained, eta
  return sigmas[1:]


# Song et al. 2020, Denoising Diffusion Implicit Models, equation 16, in terms
# of sigma; the ancestral step of k-diffusion is the same.
def ancestral_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Replaces a share eta of the noise that ancestral sampling replaces."""
  del timesteps, trained
  r = sigmas[1:] / sigmas[:-1]
  return sigmas[1:] * np.sqrt(1 - eta**2 + (eta * r) ** 2)


# Lu et al. 2022, DPM-Solver++, SDE-DPM-Solver++(2M), which has eta 1.
def sde_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Follows the reverse SDE without its noise; eta as in k-diffusion."""
  del timesteps, trained
  return sigmas[1:] * (sigmas[1:] / sigmas[:-1]) ** eta


# Luo et al. 2023, Latent Consistency Models, algorithm 3. The reference keeps a
# share of x, which is below 1e-5, for the net's boundary condition.
def consistency_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Goes all the way to the image, then noises it again."""
  del timesteps, trained, eta
  return np.zeros(len(sigmas) - 1)


# Zheng et al. 2024, Trajectory Consistency Distillation, algorithm 4.
def trajectory_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Goes to a share 1 - eta of the next timestep; eta is the paper's gamma."""
  target = np.floor((1 - eta) * timesteps[1:]).astype(int)
  return np.append(trained[target], sigmas[-1])


@dataclasses.dataclass(frozen=True)
class SamplerTraits:
  """Describes the conventions of a sampler's diffusers scheduler."""

  integer_timesteps: bool = False  # fractional timesteps are rounded
  timestep_for_end: bool = False  # the end of the run uses up a timestep
  respace_all_trained: bool = False  # between all trained sigmas, not the run's
  variance_preserving: bool = False  # x has variance 1 at the start and the end
  terminal_sigma: float = 4096.0  # in place of the infinite sigma of zero SNR
  needs_timesteps: bool = False  # not sigmas alone
  distilled_timesteps: int = 0  # number the net was distilled on; 0: all
  sigma_down: Callable = no_churn  # where each step ends before fresh noise
  eta: float = 0.0  # the default; `sigma_down` defines its meaning


ANCESTRAL = SamplerTraits(sigma_down=ancestral_sigma_down, eta=1.0)
MULTISTEP = SamplerTraits(
  integer_timesteps=True,
  timestep_for_end=True,
  respace_all_trained=True,
  variance_preserving=True,
)
DDIM = SamplerTraits(
  needs_timesteps=True,
  integer_timesteps=True,
  variance_preserving=True,
  terminal_sigma=1e6,  # as good as infinite; its square still is a float32
  sigma_down=ancestral_sigma_down,
)
SAMPLER_TRAITS = {
  'euler': SamplerTraits(),
  'euler_ancestral': ANCESTRAL,
  'heun': SamplerTraits(),
  'lms': SamplerTraits(),
  'ddim': DDIM,
  'dpmpp_2m': MULTISTEP,
  'dpmpp_2m_sde': dataclasses.replace(
    MULTISTEP, sigma_down=sde_sigma_down, eta=1.0
  ),
  'dpmpp_2s_ancestral': ANCESTRAL,
  'unipc': MULTISTEP,
  'lcm': dataclasses.replace(
    DDIM, distilled_timesteps=50, sigma_down=consistency_sigma_down
  ),
  'tcd': dataclasses.replace(
    DDIM, distilled_timesteps=50, sigma_down=trajectory_sigma_down, eta=0.3
  ),
}


def make_sampling_schedule(
  schedule: noise_schedule.Schedule,
  spacing: Spacing,
  sampler: str,
  steps: int,
  eta: float | None = None,
) -> SamplingSchedule:
  """Makes the noise levels of a run, equal to the sampler's in diffusers.

  Only its DDIM goes to t - 1000 // steps where this one goes to the run's next
  t: the same for 'leading', and for 'trailing' if steps divide 1000.

  Args:
    schedule: of the net.
    spacing: of the run; 'lcm' and 'tcd' have timesteps of their own.
    sampler: name of the sampler; the reference schedulers differ in detail.
    steps: number of steps, 1 to num_train_timesteps.
    eta: 0..1, how much fresh noise a stochastic sampler adds; None: the
      sampler's default.

  Returns:
    SamplingSchedule of float32 arrays.

  Raises:
    ValueError: on an unknown sampler, or steps that the schedule cannot hold.
  """
  noise_schedule.check_choice('sampler', sampler, SAMPLER_TRAITS)
  traits = SAMPLER_TRAITS[sampler]
  limit = traits.distilled_timesteps or schedule.num_train_timesteps
  if not 1 <= steps <= limit:
    raise ValueError(
      f'steps is {steps}; the limit of {sampler} is 1 to {limit}'
    )

  # The levels of the net's calls, and the final one.
  trained = noise_schedule.trained_sigmas(schedule, traits.terminal_sigma)
  continuous = schedule.is_continuous
  if continuous:
    fitting = [n for n, t in SAMPLER_TRAITS.items() if not t.needs_timesteps]
    continuous_levels.check(sampler, fitting, spacing.kind, spacing.sigmas)
    sigmas = continuous_levels.call_sigmas(
      schedule, spacing.sigmas, spacing.rho, steps
    )
    timesteps = continuous_levels.noise_inputs(sigmas)
  else:
    sigmas, timesteps = _call_levels(spacing, traits, trained, steps)
  if timesteps[0] > len(trained) - 1 or not (np.diff(sigmas) < 0).all():
    raise ValueError(
      f'{steps} steps of {sampler} with {spacing.kind} spacing and '
      f'steps_offset {spacing.steps_offset} do not fit into {len(trained)} '
      "timesteps; take fewer steps or the spacing 'trailing'"
    )
  smallest = sigmas[-1] if continuous else trained[0]
  final = 0.0 if spacing.final_sigma == 'zero' else smallest
  sigmas = np.append(sigmas, final)

  # Fresh noise, and the scale of x at both ends.
  sigmas_down = _sigmas_down(sampler, sigmas, timesteps, trained, eta)
  preserving = traits.variance_preserving and not continuous
  unit = preserving or spacing.kind == 'leading'
  return SamplingSchedule(
    sigmas=sigmas.astype(np.float32),
    sigmas_down=sigmas_down.astype(np.float32),
    sigmas_up=np.sqrt(sigmas[1:] ** 2 - sigmas_down**2).astype(np.float32),
    timesteps=timesteps.astype(np.float32),
    trained_sigmas=trained.astype(np.float32),
    init_scale=np.float32(np.sqrt(unit + sigmas[0] ** 2)),
    final_scale=np.float32(1 / np.sqrt(1 + preserving * final**2)),
    prediction=schedule.prediction,
    sigma_data=schedule.sigma_data,
  )


def steps_until(schedule: SamplingSchedule, share: float) -> int:
  """Counts the steps of a run that start before a share of all noise levels.

  Args:
    schedule: of the run.
    share: 0..1 of the trained timesteps, counted from the noisiest.

  Raises:
    ValueError: for a share outside of 0..1.
  """
  if not 0 <= share <= 1:
    raise ValueError(f'refiner_start is {share}; it must be from 0 to 1')
  count = len(schedule.trained_sigmas)
  return int((schedule.timesteps >= round(count - share * count)).sum())


def _sigmas_down(sampler, sigmas, timesteps, trained, eta):
  """Returns where each step ends before fresh noise.

  Raises a ValueError for an eta that the sampler does not take.
  """
  traits = SAMPLER_TRAITS[sampler]
  # Only some samplers take an eta.
  if eta is None:
    eta = traits.eta
  elif traits.sigma_down in (no_churn, consistency_sigma_down):
    raise ValueError(f'eta is {eta}, but {sampler} has none: leave it out')
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; it must be from 0 to 1')
  sigmas_down = traits.sigma_down(sigmas, timesteps, trained, eta)
  return np.minimum(sigmas_down, sigmas[1:])  # rounding may exceed it


def _call_levels(spacing, traits, trained, steps):
  """Returns the sigmas and timesteps of a run without the final sigma."""
  if traits.distilled_timesteps:
    timesteps = sigma_spacing.distilled_timesteps(
      traits.distilled_timesteps, len(trained), steps
    )
    return trained[timesteps], timesteps.astype(np.float64)

  # Timesteps at the sigmas of training.
  snap = np.round if traits.integer_timesteps else np.asarray
  end = traits.timestep_for_end and spacing.kind != 'trailing'
  timesteps = sigma_spacing.space_timesteps(
    spacing.kind, steps + end, len(trained), spacing.steps_offset
  )
  # Floating point gives 'trailing' a surplus timestep for some counts.
  timesteps = snap(timesteps[:steps])
  sigmas = sigma_spacing.timesteps_to_sigmas(timesteps, trained)
  if spacing.sigmas == 'trained':
    return sigmas, timesteps

  # Sigmas spaced again, at interpolated timesteps.
  limits = trained[::-1] if traits.respace_all_trained else sigmas
  if spacing.sigmas == 'karras':
    sigmas = sigma_spacing.karras_sigmas(limits[0], limits[-1], steps)
  elif spacing.sigmas == 'exponential':
    sigmas = sigma_spacing.exponential_sigmas(limits[0], limits[-1], steps)
    # The reference rounds down here.
    snap = np.floor if traits.integer_timesteps else snap
  else:
    # As the reference sets EDMDiscretization (sgm, inference/api.py).
    sigmas = sigma_spacing.karras_sigmas(
      trained[-1], trained[0], steps, rho=3.0
    )
  return sigmas, snap(sigma_spacing.sigmas_to_timesteps(sigmas, trained))
