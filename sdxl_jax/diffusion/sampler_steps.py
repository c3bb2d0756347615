"""The steps of single-step samplers, from one sigma down to the next.

Each step, those of `multistep` too, calls the net only as
denoise(x, sigma) -> denoised, where x = x0 + sigma * eps, and returns x at
step.sigma_down together with the history that later steps need.
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
  order: jax.Array  # int32, the highest that the step may have
  middle_noise: jax.Array | None = None  # [b, h, w, c], see dpmpp_sde_step


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
  sigma, sigma_next = step.sigma, step.sigma_next
  euler = ddim_update(x, denoised, sigma, sigma_next)

  def correct():
    slope = (x - denoised) / sigma
    slope_next = (euler - denoise(euler, sigma_next)) / sigma_next
    return euler + (sigma_next - sigma) * (slope_next - slope) / 2

  second_order = (sigma_next > 0) & (step.order > 1)
  return jax.lax.cond(second_order, correct, lambda: euler), history


# Lu et al. 2022, DPM-Solver, algorithm 1, applied to the ODE of Karras et al.
def midpoint_step(
  x: Latents, denoised: Latents, step: Step, history: tuple, denoise: Callable
) -> tuple[Float[Array, 'b h w c'], tuple]:
  """Second order: takes the slope half way down in log(sigma)."""
  sigma, sigma_down = step.sigma, step.sigma_down

  def correct():
    # With the noise of eta 1 the middle is the next sigma. A hair above it the
    # net gets its interpolated timestep, as in the references, not the run's.
    middle = jnp.sqrt(sigma * sigma_down) * (1 + 1e-6)
    halfway = ddim_update(x, denoised, sigma, middle)
    slope = (halfway - denoise(halfway, middle)) / middle
    return x + (sigma_down - sigma) * slope

  def euler():
    return ddim_update(x, denoised, sigma, sigma_down)

  second_order = (sigma_down > 0) & (step.order > 1)
  return jax.lax.cond(second_order, correct, euler), history


# Lu et al. 2022, DPM-Solver++, algorithm 1, as sgm's ancestral sampler uses it.
def dpmpp_2s_ancestral_step(
  x: Latents, denoised: Latents, step: Step, history: tuple, denoise: Callable
) -> tuple[Float[Array, 'b h w c'], tuple]:
  """Second order: calls the net once more, half way down in log(sigma)."""

  def correct():
    middle = jnp.sqrt(step.sigma * step.sigma_down)
    halfway = ddim_update(x, denoised, step.sigma, middle)
    return ddim_update(x, denoise(halfway, middle), step.sigma, step.sigma_down)

  return jax.lax.cond(step.sigma_down > 0, correct, lambda: denoised), history


# Lu et al. 2022, DPM-Solver++, algorithm 1 for the reverse SDE, as k-diffusion
# has it: r = 1/2, so that the first call serves the way to the middle alone.
def dpmpp_sde_step(
  x: Latents, denoised: Latents, step: Step, history: tuple, denoise: Callable
) -> tuple[Float[Array, 'b h w c'], tuple]:
  """Second order: dpmpp_2s_ancestral_step with noise half way down too."""

  def correct():
    middle = jnp.sqrt(step.sigma * step.sigma_next)
    down, up = split_noise(step, middle)
    halfway = ddim_update(x, denoised, step.sigma, down)
    denoised_2 = denoise(halfway + up * step.middle_noise, middle)
    return ddim_update(x, denoised_2, step.sigma, step.sigma_down)

  return jax.lax.cond(step.sigma_next > 0, correct, lambda: denoised), history


def split_noise(step: Step, middle: Scalar) -> tuple[Scalar, Scalar]:
  """Returns (sigma_down, sigma_up) of the way to the middle of a step.

  It replaces the same share eta^2 of the noise as the whole step does.
  """
  whole = 1 - (step.sigma_next / step.sigma) ** 2
  share = (1 - (step.sigma_down / step.sigma_next) ** 2) / whole
  up = middle * jnp.sqrt(share * (1 - (middle / step.sigma) ** 2))
  return jnp.sqrt(middle**2 - up**2), up
