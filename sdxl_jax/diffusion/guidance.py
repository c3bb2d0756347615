"""Classifier-free guidance: two predictions, with and without the prompt."""

import jax.numpy as jnp


def classifier_free_guidance(net, guidance_scale, guidance_rescale=0.0):
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
    both = net(interleave_pairs(x, x), interleave_pairs(timestep, timestep))
    uncond, cond = split_pairs(both.astype(jnp.float32))
    prediction = uncond + guidance_scale * (cond - uncond)
    return rescale_guidance(prediction, cond, guidance_rescale)

  return guided


def interleave_pairs(uncond, cond):
  """[b, ...] twice > [2 b, ...], an image's rows side by side.

  So both stay on one device where a batch is shared out by its rows.
  """
  return jnp.stack([uncond, cond], 1).reshape(-1, *uncond.shape[1:])


def split_pairs(both):
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
