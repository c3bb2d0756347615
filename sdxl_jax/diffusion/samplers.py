"""Samplers: the table of their steps, and the loop over descending sigmas."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from sdxl_jax.diffusion import (
  multistep,
  sampler_steps,
  sampling_schedule,
  unipc,
)

Latents = Float[ArrayLike, 'b h w c']


class Sampler(NamedTuple):
  """Holds the two functions of a sampler.

  init(x) -> history; step(x, denoised, step, history, denoise) -> x, history.
  A step returns x at step.sigma_down and the history that later steps need.
  Single-step methods of second order call `denoise` once more.
  """

  init: Callable[..., Any]
  step: Callable[..., Any]
  stochastic: bool = False  # whether it may add fresh noise
  middle_noise: bool = False  # in the middle of a step too


class SamplerState(NamedTuple):
  """The state between two steps; `denoised` is of the last step."""

  x: jax.Array
  denoised: jax.Array
  history: Any


EULER = Sampler(sampler_steps.init_none, sampler_steps.first_order_step)
ANCESTRAL = EULER._replace(stochastic=True)
HEUN = EULER._replace(step=sampler_steps.heun_step)
MIDPOINT = EULER._replace(step=sampler_steps.midpoint_step)
DPMPP_2M = Sampler(multistep.init_2m, multistep.dpmpp_2m_step)
DPMPP_3M = Sampler(multistep.init_3m, multistep.dpmpp_3m_step)
SAMPLERS = {
  'euler': EULER,
  'euler_ancestral': ANCESTRAL,
  'heun': HEUN,
  'dpm_2': MIDPOINT,
  'dpm_2_ancestral': MIDPOINT._replace(stochastic=True),
  'lms': Sampler(multistep.init_lms, multistep.lms_step),
  'ddim': ANCESTRAL,
  'ddpm': ANCESTRAL,
  'dpmpp_2m': DPMPP_2M,
  'dpmpp_2m_sde': DPMPP_2M._replace(stochastic=True),
  # Of second order by their traits.
  'dpmpp_2m_heun': DPMPP_3M,
  'dpmpp_2m_sde_heun': DPMPP_3M._replace(stochastic=True),
  'dpmpp_3m': DPMPP_3M._replace(
    step=functools.partial(multistep.dpmpp_3m_step, midpoint=True)
  ),
  'dpmpp_3m_sde': DPMPP_3M._replace(stochastic=True),
  'dpmpp_2s': Sampler(multistep.init_pair, multistep.dpmpp_2s_step),
  'dpmpp_2s_ancestral': ANCESTRAL._replace(
    step=sampler_steps.dpmpp_2s_ancestral_step
  ),
  'dpmpp_sde': ANCESTRAL._replace(
    step=sampler_steps.dpmpp_sde_step, middle_noise=True
  ),
  'deis': Sampler(multistep.init_deis, multistep.deis_step),
  'unipc': Sampler(unipc.init_unipc, unipc.unipc_step),
  'lcm': ANCESTRAL,
  'tcd': ANCESTRAL,
}
# draw_noise's step for the middle of step i of a run is this plus i.
MIDDLE_NOISE = 2**29


def draw_noise(
  keys: Key[Array, ' b'],
  step: Int[ArrayLike, ''],
  shape: tuple[int, ...],
) -> Float[Array, ' b *dims']:
  """Draws N(0, 1) noise from one key per image, for one step of a run.

  The initial noise of a run is of step 0; sampler step i draws i + 1.
  """
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
  return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def init_state(sampler: Sampler, x: Latents) -> SamplerState:
  """Returns the state of a run before its first step."""
  x = jnp.asarray(x, jnp.float32)
  return SamplerState(x, jnp.zeros_like(x), sampler.init(x))


def run_steps(
  denoise: Callable,
  state: SamplerState,
  schedule: sampling_schedule.SamplingSchedule,
  sampler: Sampler,
  start: Int[ArrayLike, ''],
  stop: Int[ArrayLike, ''],
  *,
  keys: Key[Array, ' b'] | None = None,
  noise: Float[ArrayLike, 'n *noises b h w c'] | None = None,
) -> SamplerState:
  """Runs some of a run's n steps.

  Args:
    denoise: (x, sigma) -> denoised; see `denoiser.make_denoiser`.
    state: from `init_state` or from earlier steps; its x, float32
      [b, h, w, c], is at noise level schedule.sigmas[start].
    schedule: of n steps; only n is static.
    sampler: one of SAMPLERS, for which the schedule was made.
    start, stop: steps to run, 0 <= start <= stop <= n; may be traced.
    keys: one per image, for samplers that add noise.
    noise: the noise itself, in place of keys; for a sampler with middle_noise
      two of each step, of its halves.

  Returns:
    The state with x at schedule.sigmas[stop].
  """
  schedule, noise = jax.tree.map(jnp.asarray, (schedule, noise))
  if sampler.stochastic and keys is None and noise is None:
    raise ValueError('this sampler adds noise: pass keys [b] or noise')

  def run_step(i, state):
    step = sampler_steps.Step(
      schedule.sigmas[i],
      schedule.sigmas[i + 1],
      schedule.sigmas_down[i],
      schedule.orders[i],
    )
    fresh = None
    if sampler.stochastic:
      drawn = None if noise is None else noise[i]
      step, fresh = draw_step_noise(
        sampler, step, i, state.x.shape, keys, drawn
      )
    denoised = denoise(state.x, step.sigma)
    x, history = sampler.step(state.x, denoised, step, state.history, denoise)
    # Noise takes x from sigma_down up to sigma_next.
    if sampler.stochastic:
      x = x + schedule.sigmas_up[i] * fresh
    return SamplerState(x, denoised, history)

  return jax.lax.fori_loop(start, stop, run_step, state)


def draw_step_noise(
  sampler: Sampler,
  step: sampler_steps.Step,
  i: Int[ArrayLike, ''],
  shape: tuple[int, ...],
  keys: Key[Array, ' b'] | None,
  drawn: Float[ArrayLike, '*noises b h w c'] | None,
) -> tuple[sampler_steps.Step, Float[ArrayLike, 'b h w c']]:
  """Returns the step with the noise of its middle, and that of its end.

  Args:
    sampler: a stochastic one.
    step: without noise.
    i: number of the step.
    shape: of x.
    keys: one per image, where nothing is drawn yet.
    drawn: the noise of the step or, with middle_noise, [2, ...] of its halves.
  """
  if not sampler.middle_noise:
    return step, draw_noise(keys, i + 1, shape) if drawn is None else drawn
  if drawn is None:
    first = draw_noise(keys, MIDDLE_NOISE + i, shape)
    second = draw_noise(keys, i + 1, shape)
  else:
    first, second = drawn
  # Both are of one Brownian motion over sigma, as in k-diffusion: the noise of
  # the whole step contains that of its first half.
  middle = jnp.sqrt(step.sigma * step.sigma_next)
  share = (step.sigma - middle) / (step.sigma - step.sigma_next)
  whole = jnp.sqrt(share) * first + jnp.sqrt(1 - share) * second
  return step._replace(middle_noise=first), whole
