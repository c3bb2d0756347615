"""The steps of all samplers, from one sigma down to the next.

Each calls the net only as denoise(x, sigma) -> denoised, where
x = x0 + sigma * eps, and returns x at step.sigma_down together with the history
that later steps need.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

Scalar = Float[ArrayLike, '']
Latents = Float[ArrayLike, 'b h w c']


class Step(NamedTuple):
  """One step: from sigma to sigma_down, then by fresh noise up to sigma_next.

  Without fresh noise sigma_down is sigma_next.
  """

  sigma: jax.Array
  sigma_next: jax.Array
  sigma_down: jax.Array


def init_none(x: Latents) -> tuple:
  """Returns the history of a single-step sampler."""
  del x
  return ()


def ddim_update(
  x: Latents, denoised: Latents, sigma: Scalar, sigma_next: Scalar
) -> Float[Array, 'b h w c']:
  """Returns x at sigma_next; exact if denoised is constant in between."""
  # Not x + slope * (sigma_next - sigma): at a sigma of zero SNR, x and the
  # difference are so large that float32 would lose the image between them.
  return denoised + (sigma_next / sigma) * (x - denoised)


def first_order_step(
  x: Latents, denoised: Latents, step: Step, history: tuple, denoise: Callable
) -> tuple[Float[Array, 'b h w c'], tuple]:
  """Euler's method on the ODE of Karras et al. 2022, which is also DDIM.

  With fresh noise it is ancestral sampling, DDIM with eta, LCM or TCD.
  """
  del denoise
  return ddim_update(x, denoised, step.sigma, step.sigma_down), history


# Karras et al. 2022, Elucidating the Design Space, algorithm 1.
def heun_step(
  x: Latents, denoised: Latents, step: Step, history: tuple, denoise: Callable
) -> tuple[Float[Array, 'b h w c'], tuple]:
  """Second order: averages the slopes at both ends, so two calls of the net."""
  sigma, sigma_next, _ = step
  euler = ddim_update(x, denoised, sigma, sigma_next)

  def correct():
    slope = (x - denoised) / sigma
    slope_next = (euler - denoise(euler, sigma_next)) / sigma_next
    return euler + (sigma_next - sigma) * (slope_next - slope) / 2

  return jax.lax.cond(sigma_next > 0, correct, lambda: euler), history


# Lu et al. 2022, DPM-Solver++, algorithm 1, as sgm's ancestral sampler uses it.
def dpmpp_2s_step(
  x: Latents, denoised: Latents, step: Step, history: tuple, denoise: Callable
) -> tuple[Float[Array, 'b h w c'], tuple]:
  """Second order: calls the net once more, half way down in log(sigma)."""

  def correct():
    middle = jnp.sqrt(step.sigma * step.sigma_down)
    halfway = ddim_update(x, denoised, step.sigma, middle)
    return ddim_update(x, denoise(halfway, middle), step.sigma, step.sigma_down)

  return jax.lax.cond(step.sigma_down > 0, correct, lambda: denoised), history


History2M = tuple[Latents, Scalar]  # the last denoised, the last step's h


def init_2m(x: Latents) -> History2M:
  """Returns the history before the first step of DPM-Solver++(2M)."""
  # An infinitely long step has no weight, so the first step is first order.
  return jnp.zeros_like(x), jnp.float32(jnp.inf)


# Lu et al. 2022, DPM-Solver++, algorithm 2, with lambda = -log(sigma).
def dpmpp_2m_step(
  x: Latents,
  denoised: Latents,
  step: Step,
  history: History2M,
  denoise: Callable,
) -> tuple[Float[Array, 'b h w c'], History2M]:
  """Second order from one call of the net and the result of the last step.

  With fresh noise it is SDE-DPM-Solver++(2M).
  """
  del denoise
  denoised_last, h_last = history
  # Extrapolate denoised by the last slope in lambda.
  h = jnp.log(step.sigma / step.sigma_next)
  # The step to 0 is infinitely long and takes no slope, so first order too.
  weight = jnp.where(step.sigma_next > 0, h / (2 * h_last), 0)
  extrapolated = denoised + weight * (denoised - denoised_last)
  x = ddim_update(x, extrapolated, step.sigma, step.sigma_down)
  return x, (denoised, h)


LMS_ORDER = 4
# The two points and equal weights that integrate cubics over [-1, 1] exactly.
GAUSS = 0.5773502691896258

# The last three slopes and their sigmas.
HistoryLMS = tuple[Float[Array, '3 b h w c'], Float[Array, '3']]


def init_lms(x: Latents) -> HistoryLMS:
  """Returns the history before the first step of LMS."""
  # Zero slopes, ever farther away, so the first steps are of lower order.
  far = jnp.array([1e8, 1e16, 1e24], jnp.float32)
  return jnp.zeros((LMS_ORDER - 1, *x.shape)), far


# Linear multistep (Adams-Bashforth) on the ODE of Karras et al. 2022.
def lms_step(
  x: Latents,
  denoised: Latents,
  step: Step,
  history: HistoryLMS,
  denoise: Callable,
) -> tuple[Float[Array, 'b h w c'], HistoryLMS]:
  """Fourth order: integrates the polynomial through four slopes over sigma."""
  del denoise
  sigma, sigma_next, _ = step
  # The newest slope comes first.
  slopes, sigmas = history
  slope = (x - denoised) / sigma
  slopes = jnp.concatenate([slope[None], slopes])
  sigmas = jnp.concatenate([sigma[None], sigmas])
  # Two Gauss points integrate each Lagrange polynomial, a cubic.
  middle, half = (sigma_next + sigma) / 2, (sigma_next - sigma) / 2
  weights = half * (
    lagrange(sigmas, middle - GAUSS * half)
    + lagrange(sigmas, middle + GAUSS * half)
  )
  x = x + jnp.tensordot(weights, slopes, 1)
  return x, (slopes[:-1], sigmas[:-1])


def lagrange(nodes: Float[Array, ' n'], at: Scalar) -> Float[Array, ' n']:
  """Returns the values of the nodes' Lagrange polynomials at a point."""
  # prod_(j != i) (at - x_j) / (x_i - x_j).
  others = ~jnp.eye(len(nodes), dtype=bool)
  differences = jnp.where(others, nodes[:, None] - nodes, 1)
  return jnp.where(others, (at - nodes) / differences, 1).prod(axis=1)


class HistoryUniPC(NamedTuple):
  """What UniPC keeps of the last step and of the step before it."""

  x: jax.Array  # [b, h, w, c], of the last step
  denoised: jax.Array  # [2, b, h, w, c], last first
  sigmas: jax.Array  # [2], last first
  count: jax.Array  # int32 [], steps done


def init_unipc(x: Latents) -> HistoryUniPC:
  """Returns the history before the first step of UniPC."""
  far = jnp.float32(jnp.inf)
  return HistoryUniPC(
    x=x,
    denoised=jnp.zeros((2, *x.shape)),
    sigmas=jnp.stack([far, far]),
    count=jnp.int32(0),
  )


# Zhao et al. 2023, UniPC, algorithms 1 and 2: order 2, B(h) = e^h - 1 ("bh2"),
# on denoised, with lambda = -log(sigma).
def unipc_step(
  x: Latents,
  denoised: Latents,
  step: Step,
  history: HistoryUniPC,
  denoise: Callable,
) -> tuple[Float[Array, 'b h w c'], HistoryUniPC]:
  """Second order: corrects the last step by this call, then goes on."""
  del denoise
  sigma, sigma_next, _ = step
  sigma_last, denoised_last = history.sigmas[0], history.denoised[0]
  x = jnp.where(history.count > 0, unipc_correct(denoised, sigma, history), x)
  # Predict x at sigma_next by a denoised half a step ahead.
  h = jnp.log(sigma / sigma_next)
  # First order where there is no step before, and on the step to 0.
  second_order = (history.count > 0) & (sigma_next > 0)
  slope = (denoised - denoised_last) / jnp.log(sigma_last / sigma)
  extrapolated = denoised + jnp.where(second_order, h / 2, 0) * slope
  history = HistoryUniPC(
    x=x,
    denoised=jnp.stack([denoised, denoised_last]),
    sigmas=jnp.stack([sigma, sigma_last]),
    count=history.count + 1,
  )
  return ddim_update(x, extrapolated, sigma, sigma_next), history


def unipc_correct(
  denoised: Latents, sigma: Scalar, history: HistoryUniPC
) -> Float[Array, 'b h w c']:
  """Returns x at sigma once more, from the net's result at that sigma."""
  first, second = history.denoised
  sigmas, count = history.sigmas, history.count
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
  return ddim_update(history.x, first, sigmas[0], sigma) - b * change
