"""Encodes and decodes one image per device at a time, to bound memory."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from sdxl_jax.diffusion import samplers
from sdxl_jax.distributed import batch_padding, multihost
from sdxl_jax.models import latent_scaling, sdxl, tiled_decoding
from sdxl_jax.programs import compile_progress
from sdxl_jax.sampling import pipelines
from sdxl_jax.sampling.noise_streams import NoiseStream


def encode_all(
  pipeline: pipelines.Pipeline,
  image: Float[Array | np.ndarray, 'b H W 3'],
  keys: Key[Array, ' b'],
  stream: int = NoiseStream.IMAGE_ENCODING,
) -> Float[Array, 'b h w c']:
  """Encodes images into sampled, scaled latents.

  Args:
    pipeline: has the autoencoder.
    image: in [-1, 1].
    keys: one per image.
    stream: of the key, for the sample from the encoder's distribution.
  """
  vae = pipeline.on_device('vae')
  rows = batch_padding.Rows(pipeline.mesh, len(image))
  with compile_progress.naming('the encoder of images'):
    latents = [
      multihost.fetch(
        encode(pipeline.model, vae, rows.place(image), rows.place(keys), stream)
      )
      for image, keys in slices(rows, image, keys)
    ]
  return rows.place(np.concatenate(latents))


def decode_all(
  pipeline: pipelines.Pipeline,
  latents: Float[Array | np.ndarray, 'b h w c'],
  tile: int | None = None,
) -> Float[np.ndarray, 'b H W 3']:
  """Decodes latents into images in [-1, 1].

  Args:
    pipeline: has the autoencoder.
    latents: scaled.
    tile: px, see tiled_decoding.decode; None: without tiles.
  """
  vae = pipeline.on_device('vae')
  rows = batch_padding.Rows(pipeline.mesh, len(latents))
  with compile_progress.naming('the decoder of images'):
    images = [
      multihost.fetch(decode(pipeline.model, vae, rows.place(z), tile))
      for (z,) in slices(rows, multihost.fetch(latents))
    ]
  return np.concatenate(images)


def slices(rows: batch_padding.Rows, *arrays: Any) -> Iterator[list[Any]]:
  """Yields slices of the arrays with one row for each device."""
  for i in range(0, rows.count, rows.parts):
    yield [array[i : i + rows.parts] for array in arrays]


@functools.partial(jax.jit, static_argnames='model')
def encode(
  model: sdxl.SDXL,
  params: dict[str, Any],
  image: Float[Array, 'b H W 3'],
  keys: Key[Array, ' b'],
  stream: Any = NoiseStream.IMAGE_ENCODING,
) -> Float[Array, 'b h w c']:
  """Encodes one image per device."""
  moments = model.encode(params, image)
  shape = *moments.shape[:-1], model.vae.latent_channels
  noise = samplers.draw_noise(keys, stream, shape)
  return latent_scaling.sample(model.vae, moments, noise)


@functools.partial(jax.jit, static_argnames=('model', 'tile'))
def decode(
  model: sdxl.SDXL,
  params: dict[str, Any],
  latents: Float[Array, 'b h w c'],
  tile: int | None = None,
) -> Float[Array, 'b H W 3']:
  """Decodes one image per device."""
  if tile is None:
    image = model.decode(params, latents)
  else:
    image = tiled_decoding.decode(model.vae, params['vae'], latents, tile)
  return latent_scaling.to_pixels(image)
