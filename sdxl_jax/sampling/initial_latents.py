"""Makes the latents that the denoising loop starts from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sdxl_jax.diffusion import img2img, samplers, sampling_schedule
from sdxl_jax.models import sdxl
from sdxl_jax.sampling import pipelines, vae_batches, validation
from sdxl_jax.sampling.noise_streams import NoiseStream


class InitImage(NamedTuple):
  """An image, or its latents, to start from; all rows of the batch."""

  image: Float[Array, 'b H W 3'] | None  # in [-1, 1]
  latents: Float[Array, 'b h w c'] | None  # scaled, in place of an image
  mask: Float[Array, 'b H W'] | None  # repaint from the threshold on
  strength: float | None  # 0..1, share of the steps to take
  mask_threshold: float = 0.5


class InitialLatents(NamedTuple):
  """x at the noise level of the step that the loop starts with."""

  x: Float[Array, 'b h w c']
  first_step: int
  known: img2img.KnownRegion | None = None  # what a mask leaves unchanged
  # The mask and the masked image's latents, for inpainting UNets.
  concat_channels: Float[Array, 'b h w k'] | None = None


def make_initial_latents(
  pipeline: pipelines.Pipeline,
  schedule: sampling_schedule.SamplingSchedule,
  keys: Key[Array, ' b'],
  size: tuple[int, int],
  init: InitImage,
  noise: Float[Array, 'b h w c'] | None = None,
) -> InitialLatents:
  """Makes initial latents from noise, from an image, or from part of one.

  Args:
    pipeline: base or refiner that takes the first step.
    schedule: noise levels of the loop.
    keys: one per image.
    size: (height, width) of the images in px.
    init: what to start from; without image and latents, noise alone.
    noise: N(0, 1) in place of the keys' own.
  """
  shape = len(keys), *latent_shape(pipeline.model, size)
  latents = init.latents
  if init.image is None and latents is None:
    if noise is None:
      noise = samplers.draw_noise(keys, 0, shape)
    return InitialLatents(schedule.init_scale * noise, 0)
  if noise is None:
    noise = samplers.draw_noise(keys, NoiseStream.IMAGE_NOISE, shape)
  if latents is None:
    latents = vae_batches.encode_all(pipeline, init.image, keys)
  strength = img2img.strength_of(init.strength, init.mask)
  first = img2img.first_step(len(schedule.timesteps), strength)
  x = img2img.from_latents(latents, noise, schedule, first)
  if init.mask is None:
    return InitialLatents(x, first)

  # Inpainting: with strength 1 nothing under the mask is known.
  if strength == 1:
    x = schedule.init_scale * noise
  mask = img2img.to_latent_mask(
    init.mask, pipeline.model.vae.downscale, init.mask_threshold
  )
  known = img2img.KnownRegion(latents, noise, mask, schedule.sigmas[first])
  if not validation.is_inpainting_unet(pipeline.model):
    return InitialLatents(x, first, known)
  masked_latents = vae_batches.encode_all(
    pipeline,
    init.image * (init.mask < init.mask_threshold)[..., None],
    keys,
    NoiseStream.MASKED_IMAGE_ENCODING,
  )
  concat = jnp.concatenate([mask, masked_latents], -1)
  return InitialLatents(x, first, known, concat)


def latent_shape(
  model: sdxl.SDXL, size: tuple[int, int]
) -> tuple[int, int, int]:
  """Returns the shape of the latents of an image of (height, width) px."""
  f = model.vae.downscale
  return size[0] // f, size[1] // f, model.vae.latent_channels


def image_size(array: Any, px: int) -> tuple[int, int] | None:
  """Returns (height, width) in px of [..., h, w, c] of elements of `px` px."""
  if array is None:
    return None
  h, w = jax.numpy.shape(array)[-3:-1]
  return px * h, px * w
