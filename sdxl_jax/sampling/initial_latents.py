"""Where a run of sampling begins: in noise, or in a picture."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdxl_jax.diffusion import img2img, samplers
from sdxl_jax.sampling import vae_batches, validation

# What an image's key draws, beside the numbers of its steps and the encoding of
# a picture: the noise laid on that, that on what a refiner goes over, and the
# encoding of what a mask leaves.
NOISING, REFINING, LEAVING = (vae_batches.ENCODING + i for i in (1, 2, 3))


class Start(NamedTuple):
  """x at the noise level of a run's step `first`."""

  x: jax.Array
  first: int
  kept: img2img.KnownRegion | None = None
  beside: jax.Array | None = None  # what nets that see the mask get beside x


def make_start(
  pipeline, levels, keys, size, *, image, latents, mask, strength, noise
):
  """The Start of noise, of a picture, or of one part of it.

  Args:
    pipeline: pipelines.Pipeline.
    levels: noise_levels.Levels of the run.
    keys: [b], one per image.
    size: (height, width) in px.
    image, latents, mask, strength: see sample.generate, with all rows.
    noise: N(0, 1) in place of the keys' own, or None.
  """
  shape = len(keys), *latent_shape(pipeline.nets, size)
  if image is None and latents is None:
    noise = samplers.draw_noise(keys, 0, shape) if noise is None else noise
    return Start(levels.init_scale * noise, 0)
  if noise is None:
    noise = samplers.draw_noise(keys, NOISING, shape)
  if latents is None:
    latents = vae_batches.encode_all(pipeline, image, keys)
  first = img2img.first_step(len(levels.timesteps), strength)
  x = img2img.from_latents(latents, noise, levels, first)
  if mask is None:
    return Start(x, first)
  if strength == 1:  # nothing is known of what is under the mask
    x = levels.init_scale * noise
  picked = img2img.to_latent_mask(mask, pipeline.nets.vae.downscale)
  kept = img2img.KnownRegion(latents, noise, picked, levels.sigmas[first])
  if not validation.is_inpainting_unet(pipeline.nets):
    return Start(x, first, kept)
  left = vae_batches.encode_all(
    pipeline, image * (mask < 0.5)[..., None], keys, LEAVING
  )
  return Start(x, first, kept, jnp.concatenate([picked, left], -1))


def latent_shape(nets, size):
  f = nets.vae.downscale
  return size[0] // f, size[1] // f, nets.vae.latent_channels
