"""Samplers: the table of their steps, and the loop over descending sigmas."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from sdxl_jax.diffusion import sampler_steps, sampling_schedule

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


class SamplerState(NamedTuple):
  """The state between two steps; `denoised` is of the last step."""

  x: jax.Array
  denoised: jax.Array
  history: Any


EULER = Sampler(sampler_steps.init_none, sampler_steps.first_order_step)
ANCESTRAL = Sampler(
  sampler_steps.init_none, sampler_steps.first_order_step, stochastic=True
)
SAMPLERS = {
  'euler': EULER,
  'euler_ancestral': ANCESTRAL,
  'heun': Sampler(sampler_steps.init_none, sampler_steps.heun_step),
  'lms': Sampler(sampler_steps.init_lms, sampler_steps.lms_step),
  'ddim': ANCESTRAL,
  'dpmpp_2m': Sampler(sampler_steps.init_2m, sampler_steps.dpmpp_2m_step),
  'dpmpp_2m_sde': Sampler(
    sampler_steps.init_2m, sampler_steps.dpmpp_2m_step, stochastic=True
  ),
  'dpmpp_2s_ancestral': Sampler(
    sampler_steps.init_none, sampler_steps.dpmpp_2s_step, stochastic=True
  ),
  'unipc': Sampler(sampler_steps.init_unipc, sampler_steps.unipc_step),
  'lcm': ANCESTRAL,
  'tcd': ANCESTRAL,
}


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
  noise: Float[ArrayLike, 'n b h w c'] | None = None,
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
    noise: the noise itself, in place of keys.

  Returns:
    The state with x at schedule.sigmas[stop].
  """
  schedule, noise = jax.tree.map(jnp.asarray, (schedule, noise))
  if sampler.stochastic and keys is None and noise is None:
    raise ValueError('this sampler adds noise: pass keys [b] or noise')

  def run_step(i, state):
    step = sampler_steps.Step(
      schedule.sigmas[i], schedule.sigmas[i + 1], schedule.sigmas_down[i]
    )
    denoised = denoise(state.x, step.sigma)
    x, history = sampler.step(state.x, denoised, step, state.history, denoise)
    # Noise takes x from sigma_down up to sigma_next.
    if sampler.stochastic:
      fresh = draw_noise(keys, i + 1, x.shape) if noise is None else noise[i]
      x = x + schedule.sigmas_up[i] * fresh
    return SamplerState(x, denoised, history)

  return jax.lax.fori_loop(start, stop, run_step, state)
