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


def beside(net, channels):
  """Makes a net of more channels one of x alone: (x, timestep) -> prediction.

  Args:
    net: takes x and after it the `channels`, in one array.
    channels: [b, h, w, k], not made noisy nor scaled, as inpainting nets ask.
  """
  return lambda x, timestep: net(jnp.concatenate([x, channels], -1), timestep)


def guide(net, guidance_scale, guidance_rescale=0.0):
  """Makes an unconditional and conditional net one net, guided.

  Ho & Salimans 2022, in the weights of Imagen: 1 means no guidance, for which
  a caller better hands the conditional net alone to `make_denoiser`.

  Args:
    net: (x, timestep) -> prediction over 2 b rows, of each image the one
      without prompt and the one with it, see `in_pairs`.
    guidance_scale: how far to go from uncond towards cond; may be traced.
    guidance_rescale: see `rescale_guidance`; 0 for none; may be traced.

  Returns:
    net: (x, timestep) -> prediction over b rows, float32.
  """

  def guided(x, timestep):
    both = net(in_pairs(x, x), in_pairs(timestep, timestep))
    uncond, cond = apart(both.astype(jnp.float32))
    prediction = uncond + guidance_scale * (cond - uncond)
    return rescale_guidance(prediction, cond, guidance_rescale)

  return guided


def in_pairs(uncond, cond):
  """[b, ...] twice > [2 b, ...], an image's rows side by side.

  So both stay on one device where a batch is shared out by its rows.
  """
  return jnp.stack([uncond, cond], 1).reshape(-1, *uncond.shape[1:])


def apart(both):
  """[2 b, ...] > (uncond, cond), [b, ...] each."""
  both = both.reshape(-1, 2, *both.shape[1:])
  return both[:, 0], both[:, 1]


# Lin et al. 2023, Common Diffusion Noise Schedules, equations 15 and 16.
def rescale_guidance(prediction, cond, phi):
  """Moves each image's standard deviation a share phi back to cond's."""
  axes = tuple(range(1, cond.ndim))
  std_cond = jnp.std(cond, axes, ddof=1, keepdims=True)
  std = jnp.std(prediction, axes, ddof=1, keepdims=True)
  # A net that is still zero everywhere must not become NaN.
  rescaled = prediction * (std_cond / jnp.maximum(std, 1e-20))
  return phi * rescaled + (1 - phi) * prediction
