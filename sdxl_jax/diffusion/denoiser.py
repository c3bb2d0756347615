"""Turns a net that predicts eps, v, x0 or a flow into a denoiser.

A sampler works on x = x0 + sigma * eps and needs an estimate of x0, `denoised`.
A net takes its input at unit variance, together with a timestep, and predicts
one of them. All arithmetic between the two is float32. A run reads:

  net = guidance.classifier_free_guidance(net, guidance_scale, guidance_rescale)
  denoise = denoiser.make_denoiser(net, schedule)
  state = samplers.init_state(sampler, schedule.init_scale * noise)
  state = samplers.run_steps(denoise, state, schedule, sampler, 0, steps)
  latents = schedule.final_scale * state.x
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.diffusion import sampling_schedule

Scalar = Float[ArrayLike, '']


# Scalings (c_skip, c_out, c_in) of Karras et al. 2022, equation 7.
def eps_scalings(sigma: Scalar) -> tuple[Scalar, Scalar, Scalar]:
  """denoised = x - sigma * eps."""
  return 1.0, -sigma, 1 / jnp.sqrt(1 + sigma**2)


def v_scalings(sigma: Scalar) -> tuple[Scalar, Scalar, Scalar]:
  """denoised = sqrt(a) x_in - sqrt(1 - a) v; Salimans & Ho 2022."""
  c_in = 1 / jnp.sqrt(1 + sigma**2)
  return c_in**2, -sigma * c_in, c_in


def x0_scalings(sigma: Scalar) -> tuple[Scalar, Scalar, Scalar]:
  """denoised = x0, recommended by Li & He 2025 (Back to Basics) for pixels."""
  return 0.0, 1.0, 1 / jnp.sqrt(1 + sigma**2)


# Karras et al. 2022, table 1, EDM; with 'v' as in CosXL, whose net predicts the
# opposite.
def edm_scalings(
  sigma: Scalar, sigma_data: float, prediction: str
) -> tuple[Scalar, Scalar, Scalar]:
  """denoised is a mean of x and the net's output, weighted by their noise."""
  variance = sigma**2 + sigma_data**2
  sign = {'eps': 1, 'v': -1}[prediction]
  c_out = sign * sigma * sigma_data / jnp.sqrt(variance)
  return sigma_data**2 / variance, c_out, 1 / jnp.sqrt(variance)


# Esser et al. 2024, Scaling Rectified Flow Transformers for High-Resolution
# Image Synthesis, equation 13: x_in = (1 - t) x with 1 - t = 1 / (1 + sigma).
def flow_scalings(sigma: Scalar) -> tuple[Scalar, Scalar, Scalar]:
  """denoised = x_in - t (eps - x0)."""
  c_in = 1 / (1 + sigma)
  return c_in, -sigma * c_in, c_in


SCALINGS = {
  'eps': eps_scalings,
  'v': v_scalings,
  'x0': x0_scalings,
  'flow': flow_scalings,
}


def scalings_of(schedule: sampling_schedule.SamplingSchedule) -> Callable:
  """Returns sigma -> (c_skip, c_out, c_in) of the net of a schedule."""
  if schedule.sigma_data is None:
    return SCALINGS[schedule.prediction]
  return functools.partial(
    edm_scalings,
    sigma_data=schedule.sigma_data,
    prediction=schedule.prediction,
  )


def timestep_of(
  sigma: Scalar, schedule: sampling_schedule.SamplingSchedule
) -> Float[Array, '']:
  """Returns the timestep of a sigma.

  It is the run's own timestep at the sigmas of the run, and is interpolated
  over log(sigma) between the trained timesteps elsewhere. Nets of continuous
  noise levels take c_noise of Karras et al. 2022, table 1, and those of
  rectified flow their time.
  """
  if schedule.sigma_data is not None:
    return jnp.log(sigma) / 4
  # A run's own timesteps may be rounded, so interpolation is not exact there.
  nearest = jnp.argmin(jnp.abs(schedule.sigmas[:-1] - sigma))
  if schedule.prediction == 'flow':  # 1000 t
    between = len(schedule.trained_sigmas) * sigma / (1 + sigma)
    is_own = schedule.sigmas[nearest] == sigma
    return jnp.where(is_own, schedule.timesteps[nearest], between)
  log_sigmas = jnp.log(schedule.trained_sigmas)
  interpolated = jnp.interp(
    jnp.log(sigma), log_sigmas, jnp.arange(len(log_sigmas))
  )
  return jnp.where(
    schedule.sigmas[nearest] == sigma, schedule.timesteps[nearest], interpolated
  )


def make_denoiser(
  net: Callable, schedule: sampling_schedule.SamplingSchedule
) -> Callable:
  """Makes denoise(x, sigma) -> denoised from a net.

  Args:
    net: takes x_in float32 [b, h, w, c] of about unit variance and timestep
      float32 [b]; returns schedule.prediction in any float type.
    schedule: of the run; its arrays may be traced.

  Returns:
    denoise: takes x float32 [b, h, w, c] and a scalar sigma.
  """
  schedule = jax.tree.map(jnp.asarray, schedule)
  scalings = scalings_of(schedule)

  def denoise(
    x: Float[ArrayLike, 'b h w c'], sigma: Scalar
  ) -> Float[ArrayLike, 'b h w c']:
    c_skip, c_out, c_in = scalings(sigma)
    timestep = jnp.broadcast_to(timestep_of(sigma, schedule), x.shape[:1])
    prediction = net(c_in * x, timestep).astype(jnp.float32)
    return c_skip * x + c_out * prediction

  return denoise


def concat_channels(
  net: Callable, channels: Float[ArrayLike, 'b h w k']
) -> Callable:
  """Makes a net of x alone from a net that takes more channels.

  Args:
    net: (x, timestep) -> prediction, where x is followed by the `channels` in
      one array.
    channels: neither noised nor scaled: the mask and the masked image of an
      inpainting net.
  """
  return lambda x, timestep: net(jnp.concatenate([x, channels], -1), timestep)
