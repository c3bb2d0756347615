"""The noise levels that a run of sampling visits, and where each step ends."""

import dataclasses
import typing

import jax
import numpy as np
from jaxtyping import Int

from sdxl_jax.diffusion import (
  continuous_levels,
  flow,
  noise_schedule,
  sampler_traits,
  sigma_spacing,
)
from sdxl_jax.diffusion.sampler_traits import (
  NO_LIMIT,
  SAMPLER_TRAITS,
  Levels,
  SamplerTraits,
  Timesteps,
  TrainedSigmas,
)

SPACINGS = ('leading', 'trailing', 'linspace', 'sgm_uniform')
SIGMAS = ('trained', *sigma_spacing.RESPACINGS)
# Spacings whose runs start at variance 1 + sigma^2, that of a noised image.
FULL_VARIANCE = ('leading', 'sgm_uniform')
SHORT_RUN = 15  # steps from which on no step needs a lower order
# Spacings of sigmas whose timesteps the reference rounds down.
ROUNDED_DOWN = ('exponential', 'beta')
LONG_STEP = 10  # times by which sigma falls


@dataclasses.dataclass(frozen=True)
class Spacing:
  """Chooses which noise levels a run visits; the defaults are SDXL's."""

  kind: str = 'leading'  # one of SPACINGS
  steps_offset: int = 1  # added to the timesteps of 'leading'
  sigmas: str = 'trained'  # of these timesteps; or one of SIGMAS re-spaces them
  final_sigma: str = 'zero'  # or 'smallest', that of timestep 0
  rho: float = 7.0  # of 'karras', for continuous noise levels
  # Options of diffusers' multistep solvers.
  solver_order: int = NO_LIMIT  # of a step, at most
  lower_order_final: bool = True  # in the last steps of runs below 15
  euler_at_final: bool = False  # in the last step

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
  orders: jax.Array  # int32 [n], the highest order that a step may have
  timesteps: jax.Array  # [n], the net's input at sigmas[:-1]
  trained_sigmas: jax.Array  # [num_train_timesteps], ascending
  init_scale: jax.Array  # []
  final_scale: jax.Array  # []
  prediction: str = dataclasses.field(metadata={'static': True})
  # Of a net of continuous noise levels, see noise_schedule.Schedule.
  sigma_data: float | None = dataclasses.field(
    default=None, metadata={'static': True}
  )


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
  terminal = traits.terminal_sigma
  if schedule.is_flow:
    terminal = flow.terminal_sigma(sampler)
  trained = noise_schedule.trained_sigmas(schedule, terminal)
  sigmas, timesteps = _levels(schedule, spacing, sampler, trained, steps)
  # Rounding may put the last level below the smallest.
  smallest = min(trained[0], sigmas[-1])
  final = 0.0 if spacing.final_sigma == 'zero' else smallest
  sigmas = np.append(sigmas, final)

  # Fresh noise, and the scale of x at both ends.
  sigmas_down = _sigmas_down(sampler, sigmas, timesteps, trained, eta)
  has_variances = not (schedule.is_continuous or schedule.is_flow)
  preserving = traits.variance_preserving and has_variances
  unit = preserving or spacing.kind in FULL_VARIANCE
  init_scale = np.sqrt(unit + sigmas[0] ** 2)
  if schedule.is_flow:  # the net's first input is the noise itself
    init_scale = 1 + sigmas[0]
  return SamplingSchedule(
    sigmas=sigmas.astype(np.float32),
    sigmas_down=sigmas_down.astype(np.float32),
    sigmas_up=np.sqrt(sigmas[1:] ** 2 - sigmas_down**2).astype(np.float32),
    orders=_orders(spacing, traits, schedule, sigmas, sigmas_down),
    timesteps=timesteps.astype(np.float32),
    trained_sigmas=trained.astype(np.float32),
    init_scale=np.float32(init_scale),
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


def _sigmas_down(
  sampler: str,
  sigmas: Levels,
  timesteps: Timesteps,
  trained: TrainedSigmas,
  eta: float | None,
) -> Timesteps:
  """Returns where each step ends before fresh noise, see sampler_traits."""
  traits = SAMPLER_TRAITS[sampler]
  sampler_traits.check_eta(sampler, eta)
  eta = traits.eta if eta is None else eta
  sigmas_down = traits.sigma_down(sigmas, timesteps, trained, eta)
  return np.minimum(sigmas_down, sigmas[1:])  # rounding may exceed it


def _orders(
  spacing: Spacing,
  traits: SamplerTraits,
  schedule: noise_schedule.Schedule,
  sigmas: Levels,
  sigmas_down: Timesteps,
) -> Int[np.ndarray, ' n']:
  """Returns the highest order that each step may have."""
  steps = len(sigmas_down)
  orders = np.full(steps, min(traits.order, spacing.solver_order), np.int32)
  if traits.in_pairs:
    orders[::2] = 1
    # The last step of a run to 0 is of first order, and with an even number of
    # steps the one before has no other to go on from.
    if spacing.lower_order_final or spacing.final_sigma == 'zero':
      orders[-1] = 1
  elif traits.lower_order_final:
    if spacing.lower_order_final and steps < SHORT_RUN:
      orders[-2:] = np.minimum(orders[-2:], [2, 1][-steps:])
    if spacing.euler_at_final:
      orders[-1] = 1
  # At zero SNR steps may multiply a net's error, see sampler_traits.
  if schedule.ends_in_noise:
    long = sigmas[:-1] > LONG_STEP * sigmas_down
    orders[long] = np.minimum(orders[long], traits.order_of_long_steps)
  return orders


def _levels(
  schedule: noise_schedule.Schedule,
  spacing: Spacing,
  sampler: str,
  trained: TrainedSigmas,
  steps: int,
) -> tuple[Timesteps, Timesteps]:
  """Returns the sigmas and timesteps of a run that fits, as `_call_levels`."""
  if schedule.is_continuous:
    continuous_levels.check(sampler, spacing.kind, spacing.sigmas)
    sigmas, timesteps = continuous_levels.call_levels(
      schedule, spacing.sigmas, spacing.rho, steps
    )
  elif schedule.is_flow:
    flow.check(sampler, spacing.kind, spacing.sigmas)
    return flow.call_levels(schedule, spacing.kind, sampler, steps)
  else:
    traits = SAMPLER_TRAITS[sampler]
    sigmas, timesteps = _call_levels(spacing, traits, trained, steps)
  if timesteps[0] > len(trained) - 1 or not (np.diff(sigmas) < 0).all():
    raise ValueError(
      f'{steps} steps of {sampler} with {spacing.kind} spacing and '
      f'steps_offset {spacing.steps_offset} do not fit into {len(trained)} '
      "timesteps; take fewer steps or the spacing 'trailing'"
    )
  return sigmas, timesteps


def _call_levels(
  spacing: Spacing,
  traits: SamplerTraits,
  trained: TrainedSigmas,
  steps: int,
) -> tuple[Timesteps, Timesteps]:
  """Returns the sigmas and timesteps of a run without the final sigma."""
  if traits.distilled_timesteps:
    timesteps = sigma_spacing.distilled_timesteps(
      traits.distilled_timesteps, len(trained), steps
    )
    return trained[timesteps], timesteps.astype(np.float64)
  sigmas, timesteps = _trained_levels(spacing, traits, trained, steps)
  if spacing.sigmas == 'trained':
    return sigmas, timesteps

  # Sigmas spaced again, at interpolated timesteps.
  all_trained = traits.respace_all_trained or spacing.sigmas == 'edm'
  limits = trained[::-1] if all_trained else sigmas
  respace = sigma_spacing.RESPACINGS[spacing.sigmas]
  sigmas = respace(limits[0], limits[-1], steps)
  timesteps = sigma_spacing.sigmas_to_timesteps(sigmas, trained)
  if traits.integer_timesteps and spacing.sigmas in ROUNDED_DOWN:
    # In float32 as the reference, where the last timestep may become 998.99.
    trained, limits = np.float32(trained), np.float32(limits)
    rough = respace(limits[0].item(), limits[-1].item(), steps)
    timesteps = sigma_spacing.sigmas_to_timesteps(rough, trained)
    return sigmas, np.floor(timesteps)
  at_karras = traits.integer_if_karras and spacing.sigmas == 'karras'
  rounded = traits.integer_timesteps or at_karras
  return sigmas, np.round(timesteps) if rounded else timesteps


def _trained_levels(
  spacing: Spacing,
  traits: SamplerTraits,
  trained: TrainedSigmas,
  steps: int,
) -> tuple[Timesteps, Timesteps]:
  """Returns the sigmas of training at evenly spaced timesteps, and these."""
  snap = np.round if traits.integer_timesteps else np.asarray
  if spacing.kind == 'sgm_uniform':
    timesteps = np.linspace(len(trained) - 1, 0, steps + 1)[:-1]
    sigmas = sigma_spacing.timesteps_to_sigmas_in_log(timesteps, trained)
    return sigmas, snap(timesteps)
  end = traits.timestep_for_end and spacing.kind != 'trailing'
  timesteps = sigma_spacing.space_timesteps(
    spacing.kind, steps + end, len(trained), spacing.steps_offset
  )
  # Floating point gives 'trailing' a surplus timestep for some counts.
  timesteps = snap(timesteps[:steps])
  return sigma_spacing.timesteps_to_sigmas(timesteps, trained), timesteps
