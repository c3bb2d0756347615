"""Statistics of group norms that are gathered tile by tile."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

GroupStatistics = Float[Array, 'b groups']


class TileStatistics(NamedTuple):
  """What one tile adds to the statistics of a norm."""

  count: Array  # []
  mean: Array  # [b, groups]
  squares: Array  # [b, groups], sum of squares about the mean


def normalize(
  norm: nn.GroupNorm,
  x: Float[Array, 'b h w c'],
  mean: GroupStatistics,
  variance: GroupStatistics,
) -> Float[Array, 'b h w c']:
  """Normalises like nn.GroupNorm, with the statistics passed in."""
  # From groups to channels.
  size = x.shape[-1] // norm.num_groups
  mean, variance = (
    s.repeat(size, axis=-1)[:, None, None] for s in (mean, variance)
  )
  gain = jax.lax.rsqrt(variance + norm.epsilon)
  gain *= norm.get_variable('params', 'scale')
  y = (x - mean) * gain + norm.get_variable('params', 'bias')
  return y.astype(norm.dtype)


def measure(
  x: Float[ArrayLike, 'b h w c'], groups: int, inside: Bool[ArrayLike, 'h w']
) -> TileStatistics:
  """Returns the statistics per group of the pixels that are inside."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, groups, c // groups).astype(jnp.float32)
  inside = inside[:, :, None, None]

  def total(x):
    return jnp.where(inside, x, 0).sum((1, 2, 4))

  count = inside.sum(dtype=jnp.float32) * (c // groups)
  mean = total(x) / count
  squares = total((x - mean[:, None, None, :, None]) ** 2)
  return TileStatistics(count, mean, squares)


# Chan, Golub, LeVeque 1979, equation 2.1.
def merge(
  count: Float[Array, ' tiles'],
  mean: Float[Array, 'tiles b groups'],
  squares: Float[Array, 'tiles b groups'],
) -> tuple[GroupStatistics, GroupStatistics]:
  """Returns mean and variance over all tiles; adds the means' differences."""
  # Tiles at the border have fewer pixels.
  share = (count / count.sum())[:, None, None]
  total_mean = (share * mean).sum(0)
  variance = squares.sum(0) / count.sum()
  variance += (share * (mean - total_mean) ** 2).sum(0)
  return total_mean, variance
