"""The step of UniPC, which corrects the last step before it predicts the next.

It has the form of those in `sampler_steps`, with a history as in `multistep`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdxl_jax.diffusion.sampler_steps import Latents, Scalar, Step, ddim_update


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
  sigma, sigma_next = step.sigma, step.sigma_next
  sigma_last, denoised_last = history.sigmas[0], history.denoised[0]
  x = jnp.where(history.count > 0, unipc_correct(denoised, sigma, history), x)
  # Predict x at sigma_next by a denoised half a step ahead.
  h = jnp.log(sigma / sigma_next)
  # First order where there is no step before, and on the step to 0.
  second_order = (history.count > 0) & (step.order > 1) & (sigma_next > 0)
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
