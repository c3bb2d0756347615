"""Samplers: from noise to an image along a list of descending sigmas.

A sampler is a pair (init, step) and `sample` is one loop of step over pairs of
sigmas. A step sees the net only as denoise(x, sigma) -> denoised, where
x = x0 + sigma * eps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Step(NamedTuple):
  """One step: from sigma down to `down`, and by noise up again to sigma_next.

  Without fresh noise `down` is sigma_next.
  """

  sigma: jax.Array
  sigma_next: jax.Array
  down: jax.Array


class Sampler(NamedTuple):
  """init(x) -> memory; step(x, denoised, span, memory, denoise) -> x, memory.

  A step returns x at span.down, and what it needs to know of the steps before.
  Those of second order by one step alone call the net, denoise, once more.
  """

  init: Callable[..., Any]
  step: Callable[..., Any]
  stochastic: bool = False  # whether it may take fresh noise


class SamplerState(NamedTuple):
  """A run between two steps; `denoised` is the net's result of the last one."""

  x: jax.Array
  denoised: jax.Array
  memory: Any


def init_none(x):
  del x
  return ()


def ddim_update(x, denoised, sigma, sigma_next):
  """The exact step to sigma_next if denoised were the same all along."""
  # Not x + slope * (sigma_next - sigma): at a sigma of zero SNR, x and the
  # difference are so large that float32 would lose the image between them.
  return denoised + (sigma_next / sigma) * (x - denoised)


def first_order_step(x, denoised, span, memory, denoise):
  """Euler's method on the ODE of Karras et al. 2022, and DDIM, which are one.

  With fresh noise it is ancestral sampling, DDIM with eta, LCM or TCD.
  """
  del denoise
  return ddim_update(x, denoised, span.sigma, span.down), memory


# Karras et al. 2022, Elucidating the Design Space, algorithm 1.
def heun_step(x, denoised, span, memory, denoise):
  """Second order: the slopes at both ends, so two calls of the net."""
  sigma, sigma_next, _ = span
  euler = ddim_update(x, denoised, sigma, sigma_next)

  def correct():
    slope = (x - denoised) / sigma
    slope_next = (euler - denoise(euler, sigma_next)) / sigma_next
    return euler + (sigma_next - sigma) * (slope_next - slope) / 2

  return jax.lax.cond(sigma_next > 0, correct, lambda: euler), memory


# Lu et al. 2022, DPM-Solver++, algorithm 1, as sgm's ancestral sampler uses it.
def dpmpp_2s_step(x, denoised, span, memory, denoise):
  """Second order: the net once more, half way down in log(sigma)."""

  def correct():
    middle = jnp.sqrt(span.sigma * span.down)
    halfway = ddim_update(x, denoised, span.sigma, middle)
    return ddim_update(x, denoise(halfway, middle), span.sigma, span.down)

  return jax.lax.cond(span.down > 0, correct, lambda: denoised), memory


def init_2m(x):
  # An infinitely long step before it has no weight: the first is first order.
  return jnp.zeros_like(x), jnp.float32(jnp.inf)


# Lu et al. 2022, DPM-Solver++, algorithm 2, with lambda = -log(sigma).
def dpmpp_2m_step(x, denoised, span, memory, denoise):
  """Second order from one call of the net and the result of the last one.

  With fresh noise it is SDE-DPM-Solver++(2M).
  """
  del denoise
  denoised_last, h_last = memory
  h = jnp.log(span.sigma / span.sigma_next)
  # The step to 0 is infinitely long and takes no slope, so first order too.
  weight = jnp.where(span.sigma_next > 0, h / (2 * h_last), 0)
  ahead = denoised + weight * (denoised - denoised_last)
  return ddim_update(x, ahead, span.sigma, span.down), (denoised, h)


LMS_ORDER = 4
# The two points and equal weights that integrate cubics over [-1, 1] exactly.
GAUSS = 0.5773502691896258


def init_lms(x):
  # Slopes of nothing, taken ever farther away: the first are of lower order.
  far = jnp.array([1e8, 1e16, 1e24], jnp.float32)
  return jnp.zeros((LMS_ORDER - 1, *x.shape)), far


# Linear multistep (Adams-Bashforth) on the ODE of Karras et al. 2022.
def lms_step(x, denoised, span, memory, denoise):
  """Fourth order: the polynomial through four slopes, integrated over sigma."""
  del denoise
  sigma, sigma_next, _ = span
  slopes, sigmas = memory
  slope = (x - denoised) / sigma
  slopes = jnp.concatenate([slope[None], slopes])
  sigmas = jnp.concatenate([sigma[None], sigmas])
  middle, half = (sigma_next + sigma) / 2, (sigma_next - sigma) / 2
  weights = half * (
    lagrange(sigmas, middle - GAUSS * half)
    + lagrange(sigmas, middle + GAUSS * half)
  )
  x = x + jnp.tensordot(weights, slopes, 1)
  return x, (slopes[:-1], sigmas[:-1])


def lagrange(nodes, at):
  """The values at a point of the Lagrange polynomials of nodes [n]; [n]."""
  others = ~jnp.eye(len(nodes), dtype=bool)
  apart = jnp.where(others, nodes[:, None] - nodes, 1)
  return jnp.where(others, (at - nodes) / apart, 1).prod(axis=1)


def init_unipc(x):
  far = jnp.float32(jnp.inf)
  return x, jnp.zeros((2, *x.shape)), jnp.stack([far, far]), jnp.int32(0)


# Zhao et al. 2023, UniPC, algorithms 1 and 2: order 2, B(h) = e^h - 1 ("bh2"),
# on denoised, with lambda = -log(sigma).
def unipc_step(x, denoised, span, memory, denoise):
  """Second order: corrects the last step by this call of the net, and goes on.

  Memory is the last x and the last two denoised, their sigmas and number.
  """
  del denoise
  _, denoised_last, sigmas, count = memory
  sigma, sigma_next, _ = span
  x = jnp.where(count > 0, unipc_correct(denoised, sigma, memory), x)
  h = jnp.log(sigma / sigma_next)
  # First order where there is no step before, and on the step to 0.
  second = (count > 0) & (sigma_next > 0)
  slope = (denoised - denoised_last[0]) / jnp.log(sigmas[0] / sigma)
  ahead = denoised + jnp.where(second, h / 2, 0) * slope
  memory = (
    x,
    jnp.stack([denoised, denoised_last[0]]),
    jnp.stack([sigma, sigmas[0]]),
    count + 1,
  )
  return ddim_update(x, ahead, sigma, sigma_next), memory


def unipc_correct(denoised, sigma, memory):
  """x at sigma once more, now that the net's result there is known."""
  x_last, (first, second), sigmas, count = memory
  h = jnp.log(sigmas[0] / sigma)
  b = jnp.expm1(-h)
  # The conditions of order: rho_1 + rho_2 = c_1, r rho_1 + rho_2 = c_2.
  phi = -b / h - 1
  c_1, c_2 = phi / b, 2 * (-phi / h - 0.5) / b
  r = jnp.log(sigmas[0] / sigmas[1]) / h
  rho_1 = jnp.where(count > 1, (c_1 - c_2) / (1 - r), 0)
  rho_2 = jnp.where(count > 1, c_1 - rho_1, 0.5)
  slope = jnp.where(count > 1, (second - first) / r, 0)
  change = rho_1 * slope + rho_2 * (denoised - first)
  return ddim_update(x_last, first, sigmas[0], sigma) - b * change


EULER = Sampler(init_none, first_order_step)
ANCESTRAL = Sampler(init_none, first_order_step, stochastic=True)
SAMPLERS = {
  'euler': EULER,
  'euler_ancestral': ANCESTRAL,
  'heun': Sampler(init_none, heun_step),
  'lms': Sampler(init_lms, lms_step),
  'ddim': ANCESTRAL,
  'dpmpp_2m': Sampler(init_2m, dpmpp_2m_step),
  'dpmpp_2m_sde': Sampler(init_2m, dpmpp_2m_step, stochastic=True),
  'dpmpp_2s_ancestral': Sampler(init_none, dpmpp_2s_step, stochastic=True),
  'unipc': Sampler(init_unipc, unipc_step),
  'lcm': ANCESTRAL,
  'tcd': ANCESTRAL,
}


def draw_noise(keys, step, shape):
  """N(0, 1) noise [b, ...] from one key per image, for one of its steps.

  A run takes its initial noise from step 0 and sampler step i takes i + 1.
  """
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
  return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def sample(denoise, x, levels, sampler, *, keys=None, noise=None):
  """A whole run: x at levels.sigmas[0] to x at levels.sigmas[-1].

  Arguments are those of `advance`.
  """
  steps, carry = len(levels.sigmas) - 1, init_state(sampler, x)
  return run_steps(
    denoise, carry, levels, sampler, 0, steps, keys=keys, noise=noise
  ).x


def init_state(sampler, x):
  """The carry of a run that starts from x."""
  x = jnp.asarray(x, jnp.float32)
  return SamplerState(x, jnp.zeros_like(x), sampler.init(x))


def run_steps(
  denoise, carry, levels, sampler, start, stop, *, keys=None, noise=None
):
  """Takes some of a run's steps.

  Args:
    denoise: (x, sigma) -> denoised; see `denoiser.make_denoiser`.
    carry: of `begin`, or of the steps before; its x, float32 [b, h, w, c], is
      at noise level levels.sigmas[start].
    levels: noise_levels.Levels of n steps; only n is static.
    sampler: one of SAMPLERS, that of the levels.
    start, stop: of the steps to take, 0 <= start <= stop <= n; may be traced.
    keys: jax keys [b], one per image, for samplers that add noise.
    noise: the noise itself, [n, b, h, w, c], in place of keys.

  Returns:
    The carry, its x at levels.sigmas[stop].
  """
  levels, noise = jax.tree.map(jnp.asarray, (levels, noise))
  if sampler.stochastic and keys is None and noise is None:
    raise ValueError('this sampler adds noise: give it keys [b] or noise')

  def step(i, carry):
    x, _, memory = carry
    span = Step(levels.sigmas[i], levels.sigmas[i + 1], levels.downs[i])
    denoised = denoise(x, span.sigma)
    x, memory = sampler.step(x, denoised, span, memory, denoise)
    if sampler.stochastic:
      fresh = draw_noise(keys, i + 1, x.shape) if noise is None else noise[i]
      x = x + levels.ups[i] * fresh
    return SamplerState(x, denoised, memory)

  return jax.lax.fori_loop(start, stop, step, carry)
