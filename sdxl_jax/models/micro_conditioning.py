"""Sizes, crop and score > the UNet's second input (SDXL sections 2.2, 2.3).

Sizes are in pixels and remain integers until the float32 sinusoid: bfloat16
rounds most integers above 256.
"""

import jax.numpy as jnp

from sdxl_jax.models import layers


def base_vector(pooled, original_size, crop_top_left, target_size, width=256):
  """Pooled [b, p] and three int32 [b, 2] > vector [b, p + 6 width], float32.

  Sizes are (height, width) and the crop (top, left), each scalar embedded with
  `width` numbers: 2816 = 1280 + 6 * 256, as the base reads them.
  """
  sizes = original_size, crop_top_left, target_size
  return embed(pooled, jnp.concatenate(sizes, axis=-1), width)


def refiner_vector(
  pooled, original_size, crop_top_left, aesthetic_score, width=256
):
  """As base_vector, with aesthetic_score [b] (2..7) for the target size.

  The vector is [b, p + 5 width]: 2560 = 1280 + 5 * 256.
  """
  scalars = original_size, crop_top_left, aesthetic_score[:, None]
  return embed(pooled, jnp.concatenate(scalars, axis=-1), width)


def embed(pooled, scalars, width):
  sinusoids = layers.sinusoid(scalars, width).reshape(len(pooled), -1)
  return jnp.concatenate([pooled.astype(jnp.float32), sinusoids], axis=-1)
