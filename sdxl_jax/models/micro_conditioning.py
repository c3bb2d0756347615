"""Micro-conditioning: embeds sizes, crop and score (SDXL sections 2.2, 2.3).

Sizes are in pixels and remain integers until the float32 sinusoid: bfloat16
rounds most integers above 256.
"""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from sdxl_jax.models import layers

Pairs = Num[ArrayLike, 'b 2']


def base_vector(
  pooled: Float[ArrayLike, 'b p'],
  original_size: Pairs,
  crop_top_left: Pairs,
  target_size: Pairs,
  width: int = 256,
) -> Float[Array, 'b p+6*{width}']:
  """Returns the second input of the base UNet, float32.

  Sizes are (height, width) and the crop (top, left), each scalar embedded with
  `width` numbers: the base's vector_dim is 2816 = 1280 + 6 * 256.
  """
  sizes = original_size, crop_top_left, target_size
  return embed(pooled, jnp.concatenate(sizes, axis=-1), width)


def refiner_vector(
  pooled: Float[ArrayLike, 'b p'],
  original_size: Pairs,
  crop_top_left: Pairs,
  aesthetic_score: Num[ArrayLike, ' b'],
  width: int = 256,
) -> Float[Array, 'b p+5*{width}']:
  """Returns the second input of the refiner's UNet, float32.

  The aesthetic score (2..7) takes the place of base_vector's target size: the
  refiner's vector_dim is 2560 = 1280 + 5 * 256.
  """
  scalars = original_size, crop_top_left, aesthetic_score[:, None]
  return embed(pooled, jnp.concatenate(scalars, axis=-1), width)


def embed(
  pooled: Float[ArrayLike, 'b p'], scalars: Num[ArrayLike, 'b n'], width: int
) -> Float[Array, 'b p+n*{width}']:
  """Joins pooled text and the sinusoids of the scalars."""
  # [b, n, width], then side by side.
  sinusoids = layers.sinusoid(scalars, width).reshape(len(pooled), -1)
  return jnp.concatenate([pooled.astype(jnp.float32), sinusoids], axis=-1)
