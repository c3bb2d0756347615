"""The steps of samplers that go on from the results of earlier steps.

They have the form of those in `sampler_steps`; what they keep of earlier steps
is their history. A run may begin anywhere, so the first steps that find no
earlier results are of lower order.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdxl_jax.diffusion.sampler_steps import Latents, Scalar, Step, ddim_update

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
  second_order = (step.sigma_next > 0) & (step.order > 1)
  weight = jnp.where(second_order, h / (2 * h_last), 0)
  extrapolated = denoised + weight * (denoised - denoised_last)
  x = ddim_update(x, extrapolated, step.sigma, step.sigma_down)
  return x, (denoised, h)


class History3M(NamedTuple):
  """What DPM-Solver++(3M) keeps of the two steps before, last first."""

  denoised: jax.Array  # [2, b, h, w, c]
  h: jax.Array  # [2], their lengths in log(sigma)


def init_3m(x: Latents) -> History3M:
  """Returns the history before the first step of DPM-Solver++(3M)."""
  far = jnp.float32(jnp.inf)
  return History3M(jnp.zeros((2, *x.shape)), jnp.stack([far, far]))


# Lu et al. 2022, DPM-Solver++, appendix B, for the multistep case: the integral
# of exp(lambda) times the polynomial through three results.
def dpmpp_3m_step(
  x: Latents,
  denoised: Latents,
  step: Step,
  history: History3M,
  denoise: Callable,
  midpoint: bool = False,
) -> tuple[Float[Array, 'b h w c'], History3M]:
  """Third order from one call of the net and the results of two steps.

  With fresh noise it is SDE-DPM-Solver++(3M). Steps of second order integrate
  the straight line exactly ("heun" in diffusers), or with `midpoint` as
  dpmpp_2m_step does.
  """
  del denoise
  h = jnp.log(step.sigma / step.sigma_next)
  h_1, h_2 = history.h
  last, before = history.denoised
  # Slopes per step; zero where an infinitely long step stands for none.
  slope_1 = (denoised - last) * (h / h_1)
  slope_2 = (last - before) * (h / h_2)
  change = slope_1 - slope_2
  third_order = (step.order > 2) & jnp.isfinite(h_2) & (step.sigma_next > 0)
  second_order = (step.order > 1) & jnp.isfinite(h_1) & (step.sigma_next > 0)
  # Both lengths are of the exponential decay of x, which noise makes faster.
  decay = jnp.log(step.sigma / step.sigma_down)
  phi_1 = -jnp.expm1(-decay)
  phi_2 = jnp.where(decay > 0, 1 - phi_1 / decay, 0)
  phi_3 = jnp.where(decay > 0, phi_2 / decay - 0.5, 0)
  linear = jnp.where(third_order | (not midpoint), phi_2, phi_1 / 2)
  slope = slope_1 + jnp.where(third_order, h_1 / (h_1 + h_2), 0) * change
  curve = jnp.where(third_order, h / (h_1 + h_2), 0) * change
  correction = linear * slope - phi_3 * curve
  x = ddim_update(x, denoised, step.sigma, step.sigma_down)
  x = jnp.where(second_order, x + correction, x)
  return x, History3M(jnp.stack([denoised, last]), jnp.stack([h, h_1]))


class HistoryPair(NamedTuple):
  """The first step of a pair of DPM-Solver++(2S); sigma is infinite in none."""

  x: jax.Array  # [b, h, w, c]
  denoised: jax.Array  # [b, h, w, c]
  sigma: jax.Array  # []


def init_pair(x: Latents) -> HistoryPair:
  """Returns the history before the first step of DPM-Solver++(2S)."""
  return HistoryPair(x, jnp.zeros_like(x), jnp.float32(jnp.inf))


# Lu et al. 2022, DPM-Solver++, algorithm 1, as diffusers counts its steps: the
# middle of a step is a step of its own, so each step calls the net once.
def dpmpp_2s_step(
  x: Latents,
  denoised: Latents,
  step: Step,
  history: HistoryPair,
  denoise: Callable,
) -> tuple[Float[Array, 'b h w c'], HistoryPair]:
  """Second order in each second step, which starts anew from the first's x."""
  del denoise
  sigma, sigma_next = step.sigma, step.sigma_next
  far = jnp.full_like(history.sigma, jnp.inf)
  second = jnp.isfinite(history.sigma) & (step.order > 1) & (sigma_next > 0)
  # Extrapolate the pair's first result by the slope between both.
  start = jnp.where(second, history.sigma, sigma)
  weight = jnp.log(start / sigma_next) / jnp.log(start / sigma) / 2
  extrapolated = history.denoised + weight * (denoised - history.denoised)
  x_2 = ddim_update(history.x, extrapolated, start, sigma_next)
  x_1 = ddim_update(x, denoised, sigma, sigma_next)
  pair = HistoryPair(x, denoised, jnp.where(second, far, sigma))
  return jnp.where(second, x_2, x_1), pair


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
  sigma, sigma_next = step.sigma, step.sigma_next
  # The newest slope comes first.
  slopes, sigmas = history
  slope = (x - denoised) / sigma
  slopes = jnp.concatenate([slope[None], slopes])
  sigmas = jnp.concatenate([sigma[None], sigmas])
  # Two Gauss points integrate each Lagrange polynomial, a cubic.
  # From sigma on: the difference of two near sigmas is exact, and a point
  # between them is not.
  nodes, half = sigmas - sigma, (sigma_next - sigma) / 2
  weights = half * (
    lagrange(nodes, half - GAUSS * half) + lagrange(nodes, half + GAUSS * half)
  )
  x = x + jnp.tensordot(weights, slopes, 1)
  return x, (slopes[:-1], sigmas[:-1])


def lagrange(nodes: Float[Array, ' n'], at: Scalar) -> Float[Array, ' n']:
  """Returns the values of the nodes' Lagrange polynomials at a point."""
  # prod_(j != i) (at - x_j) / (x_i - x_j).
  others = ~jnp.eye(len(nodes), dtype=bool)
  differences = jnp.where(others, nodes[:, None] - nodes, 1)
  return jnp.where(others, (at - nodes) / differences, 1).prod(axis=1)


class HistoryDEIS(NamedTuple):
  """What DEIS keeps of the two steps before, last first."""

  slopes: jax.Array  # [2, b, h, w, c]
  log_sigmas: jax.Array  # [2]
  count: jax.Array  # int32 [], steps done


def init_deis(x: Latents) -> HistoryDEIS:
  """Returns the history before the first step of DEIS."""
  far = jnp.array([1e2, 1e3], jnp.float32)  # unused, but not equal
  return HistoryDEIS(jnp.zeros((2, *x.shape)), far, jnp.int32(0))


# Zhang & Chen 2023, Fast Sampling of Diffusion Models with Exponential
# Integrator: DEIS with polynomials in log(rho), where rho is sigma ("logrho").
def deis_step(
  x: Latents,
  denoised: Latents,
  step: Step,
  history: HistoryDEIS,
  denoise: Callable,
) -> tuple[Float[Array, 'b h w c'], HistoryDEIS]:
  """Up to third order: integrates a polynomial in log(sigma) over sigma."""
  del denoise
  sigma, sigma_next, now = step.sigma, step.sigma_next, jnp.log(step.sigma)
  slope = (x - denoised) / sigma
  order = jnp.minimum(step.order, history.count + 1)
  order = jnp.where(sigma_next > 0, order, 1)
  # Newton's form of the polynomial in u = log(sigma') - log(sigma).
  u_1, u_2 = history.log_sigmas - now
  first, second = history.slopes
  change_1 = (first - slope) / u_1
  change_2 = (second - first) / (u_2 - u_1)
  curve = (change_2 - change_1) / u_2
  # The integrals of u and of u^2 over sigma'.
  end = jnp.where(sigma_next > 0, sigma_next, sigma)
  length = jnp.log(end / sigma)
  of_u = end * length - (end - sigma)
  of_u_2 = end * length**2 - 2 * of_u
  x = ddim_update(x, denoised, sigma, sigma_next)
  x = jnp.where(order > 1, x + of_u * change_1, x)
  x = jnp.where(order > 2, x + (of_u_2 - u_1 * of_u) * curve, x)
  history = HistoryDEIS(
    slopes=jnp.stack([slope, first]),
    log_sigmas=jnp.stack([now, history.log_sigmas[0]]),
    count=history.count + 1,
  )
  return x, history
