"""Images <> latents, few at a time, since pixels take much memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.diffusion import samplers
from sdxl_jax.distributed import batch_padding, multihost
from sdxl_jax.models import latent_scaling, tiled_decoding

# What an image's key draws for its encoding, beside the numbers of its steps.
ENCODING = 2**30


def encode_all(pipeline, image, keys, number=ENCODING):
  """Images [b, h, w, 3] > latents, of a draw by each one's key and a number."""
  vae = pipeline.on_device('vae')
  rows = batch_padding.Rows(pipeline.mesh, len(image))
  parts = [
    multihost.fetch(encode(pipeline.nets, vae, *map(rows.place, part), number))
    for part in in_parts(rows, image, keys)
  ]
  return rows.place(np.concatenate(parts))


def decode_all(pipeline, latents, tile=None):
  """Latents [b, h, w, c] > images [b, 8 h, 8 w, 3] in [-1, 1], numpy.

  `tile` as tiling.decode takes it; None: whole.
  """
  vae = pipeline.on_device('vae')
  rows = batch_padding.Rows(pipeline.mesh, len(latents))
  parts = [
    multihost.fetch(decode(pipeline.nets, vae, rows.place(part), tile))
    for (part,) in in_parts(rows, multihost.fetch(latents))
  ]
  return np.concatenate(parts)


def in_parts(rows, *arrays):
  """One row for each device at a time."""
  for i in range(0, rows.count, rows.parts):
    yield [array[i : i + rows.parts] for array in arrays]


@functools.partial(jax.jit, static_argnames='nets')
def encode(nets, params, image, keys, number=ENCODING):
  moments = nets.encode(params, image)
  shape = *moments.shape[:-1], nets.vae.latent_channels
  noise = samplers.draw_noise(keys, number, shape)
  return latent_scaling.sample(nets.vae, moments, noise)


@functools.partial(jax.jit, static_argnames=('nets', 'tile'))
def decode(nets, params, latents, tile=None):
  if tile is None:
    image = nets.decode(params, latents)
  else:
    image = tiled_decoding.decode(nets.vae, params['vae'], latents, tile)
  return jnp.clip(image, -1, 1)
