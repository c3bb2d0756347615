"""Nets that predict eps, v or x0, seen as denoisers: (x, sigma) -> denoised.

A sampler knows x = x0 + sigma * eps and asks for x0; the net knows its input
at unit variance, a timestep, and predicts eps, v or x0. All arithmetic
between the two is float32. One run reads:

  net = denoiser.guide(net, guidance_scale, guidance_rescale)
  denoise = denoiser.make_denoiser(net, levels)
  x = samplers.sample(denoise, x, levels, sampler)
"""

import jax
import jax.numpy as jnp


# Scalings (c_skip, c_out, c_in) of Karras et al. 2022, equation 7.
def eps_scalings(sigma):
  """denoised = x - sigma * eps."""
  return 1.0, -sigma, 1 / jnp.sqrt(1 + sigma**2)


def v_scalings(sigma):
  """denoised = sqrt(a) x_in - sqrt(1 - a) v; Salimans & Ho 2022."""
  c_in = 1 / jnp.sqrt(1 + sigma**2)
  return c_in**2, -sigma * c_in, c_in


def x0_scalings(sigma):
  """denoised = x0, as Li & He 2025 (Back to Basics) ask of nets on pixels."""
  return 0.0, 1.0, 1 / jnp.sqrt(1 + sigma**2)


SCALINGS = {'eps': eps_scalings, 'v': v_scalings, 'x0': x0_scalings}


def timestep_of(sigma, levels):
  """The run's own timestep at its sigmas, log-interpolated between them."""
  nearest = jnp.argmin(jnp.abs(levels.sigmas[:-1] - sigma))
  trained = jnp.log(levels.trained_sigmas)
  between = jnp.interp(jnp.log(sigma), trained, jnp.arange(len(trained)))
  return jnp.where(
    levels.sigmas[nearest] == sigma, levels.timesteps[nearest], between
  )


def make_denoiser(net, levels):
  """Makes denoise(x, sigma) -> denoised of net(x_in, timestep) -> eps, v, x0.

  Args:
    net: takes x_in float32 [b, h, w, c] of about unit variance and timestep
      float32 [b]; gives levels.prediction in any float type.
    levels: noise_levels.Levels of the run; its arrays may be traced.

  Returns:
    denoise: takes x float32 [b, h, w, c] and a scalar sigma.
  """
  levels = jax.tree.map(jnp.asarray, levels)
  scalings = SCALINGS[levels.prediction]

  def denoise(x, sigma):
    c_skip, c_out, c_in = scalings(sigma)
    timestep = jnp.broadcast_to(timestep_of(sigma, levels), x.shape[:1])
    prediction = net(c_in * x, timestep).astype(jnp.float32)
    return c_skip * x + c_out * prediction

  return denoise


def concat_channels(net, channels):
  """Makes a net of more channels one of x alone: (x, timestep) -> prediction.

  Args:
    net: takes x and after it the `channels`, in one array.
    channels: [b, h, w, k], not made noisy nor scaled, as inpainting nets ask.
  """
  return lambda x, timestep: net(jnp.concatenate([x, channels], -1), timestep)
