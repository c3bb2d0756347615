"""Samplers: from noise to an image along a list of descending sigmas.

A sampler is a pair (init, step) and `sample` is one loop of step over pairs of
sigmas. A step sees the net only as denoise(x, sigma) -> denoised, where
x = x0 + sigma * eps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Sampler(NamedTuple):
  """init(x) -> memory; step(denoise, x, sigma, sigma_next, draw, memory).

  A step returns x at sigma_next and its new memory, what it needs to know of
  the steps before; draw() gives fresh N(0, 1) noise in the shape of x.
  """

  init: Callable[..., Any]
  step: Callable[..., Any]


def no_memory(x):
  del x
  return ()


def toward(x, denoised, sigma, sigma_next):
  """The exact step to sigma_next if denoised were the same all along."""
  # Not x + slope * (sigma_next - sigma): at a sigma of zero SNR, x and the
  # difference are so large that float32 would lose the image between them.
  return denoised + (sigma_next / sigma) * (x - denoised)


# Song et al. 2020, Denoising Diffusion Implicit Models, equation 16, in terms
# of sigma; the ancestral step of k-diffusion is the same.
def split_variance(sigma, sigma_next, eta):
  """(down, up): the sigma to step to and that of the noise added there."""
  r = sigma_next / sigma
  down = sigma_next * jnp.sqrt(1 - eta**2 + (eta * r) ** 2)
  return down, sigma_next * eta * jnp.sqrt(1 - r**2)


def ancestral(eta):
  """Steps of first order that replace a share eta of the noise they leave.

  With eta 0 this is Euler's method on the ODE of Karras et al. 2022 and DDIM,
  which are one; with eta 1 it is ancestral sampling.
  """
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; it must be from 0 to 1')

  def step(denoise, x, sigma, sigma_next, draw, memory):
    denoised = denoise(x, sigma)
    if not eta:
      return toward(x, denoised, sigma, sigma_next), memory
    down, up = split_variance(sigma, sigma_next, eta)
    return toward(x, denoised, sigma, down) + up * draw(), memory

  return Sampler(no_memory, step)


# Karras et al. 2022, Elucidating the Design Space, algorithm 1.
def heun_step(denoise, x, sigma, sigma_next, draw, memory):
  """Second order: the slopes at both ends, so two calls of the net."""
  del draw
  denoised = denoise(x, sigma)
  euler = toward(x, denoised, sigma, sigma_next)

  def correct():
    slope = (x - denoised) / sigma
    slope_next = (euler - denoise(euler, sigma_next)) / sigma_next
    return euler + (sigma_next - sigma) * (slope_next - slope) / 2

  return jax.lax.cond(sigma_next > 0, correct, lambda: euler), memory


def no_history(x):
  # An infinitely long step before it has no weight: the first is first order.
  return jnp.zeros_like(x), jnp.float32(jnp.inf)


# Lu et al. 2022, DPM-Solver++, algorithm 2, with lambda = -log(sigma).
def dpmpp_2m_step(denoise, x, sigma, sigma_next, draw, memory):
  """Second order from one call of the net and the result of the last one."""
  del draw
  denoised = denoise(x, sigma)
  denoised_last, h_last = memory
  h = jnp.log(sigma / sigma_next)
  # The step to 0 is infinitely long and takes no slope, so first order too.
  weight = jnp.where(sigma_next > 0, h / (2 * h_last), 0)
  ahead = denoised + weight * (denoised - denoised_last)
  return toward(x, ahead, sigma, sigma_next), (denoised, h)


SAMPLERS = {
  'euler': ancestral(eta=0.0),
  'euler_ancestral': ancestral(eta=1.0),
  'heun': Sampler(no_memory, heun_step),
  'ddim': ancestral(eta=0.0),
  'dpmpp_2m': Sampler(no_history, dpmpp_2m_step),
}


def draw_noise(keys, step, shape):
  """N(0, 1) noise [b, ...] from one key per image, for one of its steps.

  A run takes its initial noise from step 0 and sampler step i takes i + 1.
  """
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
  return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def sample(
  denoise,
  x,
  sigmas,
  sampler,
  *,
  keys=None,
  noise=None,
  start=0,
  stop=None,
  collect=False,
):
  """Takes x from sigmas[start] to sigmas[stop], one step from each to the next.

  Args:
    denoise: (x, sigma) -> denoised; see `denoiser.make_denoiser`.
    x: float32 [b, h, w, c] at noise level sigmas[start].
    sigmas: float32 [n + 1], descending; only n is static.
    sampler: one of SAMPLERS, or `ancestral(eta)`.
    keys: jax keys [b], one per image, for samplers that add noise.
    noise: the noise itself, [n, b, h, w, c], in place of keys.
    start, stop: of the steps to take, 0 <= start <= stop <= n; may be traced.
    collect: whether to return x after every step.

  Returns:
    x at sigmas[stop]; if collect, x at sigmas[1:], [n, b, h, w, c], zero where
    no step was taken.
  """
  x, sigmas = jnp.asarray(x, jnp.float32), jnp.asarray(sigmas, jnp.float32)
  steps = len(sigmas) - 1

  def draw(i):
    if noise is not None:
      return jnp.asarray(noise)[i]
    if keys is None:
      raise ValueError('this sampler adds noise: give it keys [b] or noise')
    return draw_noise(keys, i + 1, x.shape)

  def step(i, carry):
    x, memory, path = carry
    x, memory = sampler.step(
      denoise, x, sigmas[i], sigmas[i + 1], lambda: draw(i), memory
    )
    return x, memory, path.at[i].set(x) if collect else path

  path = jnp.zeros((steps if collect else 0, *x.shape))
  carry = x, sampler.init(x), path
  stop = steps if stop is None else stop
  x, _, path = jax.lax.fori_loop(start, stop, step, carry)
  return path if collect else x
