"""Noise of training beside plain white noise, which is eps here.

Names and formulas are those of kohya's sd-scripts. Every number is of one
example alone, where sd-scripts draws or measures some for a whole batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Noise:
  """Describes what is added to white noise; by default nothing."""

  # Standard deviation of the noise that is added to all pixels of a channel
  # alike; 0.05 in SDXL's last stage.
  offset_noise: float = 0.0
  adaptive_noise_scale: float = 0.0  # see `offset_strength`
  multires_noise_iterations: int = 0  # 0: none; 6 to 10 are usual
  multires_noise_discount: float = 0.3  # of the strength, by octave
  ip_noise_gamma: float = 0.0  # see `perturb_input`; 0: none, 0.1 is usual


def offset_strength(
  noise: Noise, x0: Float[ArrayLike, 'h w c']
) -> Float[ArrayLike, '*ones']:
  """Returns the standard deviation of the offset, at least 0.

  With an adaptive_noise_scale s it is offset_noise + s |mean| of each channel
  [1, 1, c]: images that are dark or bright as a whole get more.
  """
  if not noise.adaptive_noise_scale:
    return noise.offset_noise
  mean = jnp.abs(x0.mean(axis=(0, 1), keepdims=True))
  return jnp.maximum(noise.offset_noise + noise.adaptive_noise_scale * mean, 0)


# Whitaker 2023, Multi-Resolution Noise for Diffusion Model Training.
def add_octaves(
  noise: Noise, key: PRNGKeyArray, eps: Float[Array, 'h w c']
) -> Float[Array, 'h w c']:
  """Adds white noise of lower and lower resolution, at unit variance.

  Octave i = 0, 1, ... is enlarged from sides of 1 / r^i with r uniform in 2..4
  and has the strength discount^i; one with a side of 1 is the last.

  Args:
    noise: with its number of octaves and their discount.
    key: of this example.
    eps: white noise.

  Returns:
    The sum divided by its standard deviation.
  """
  h, w, _ = eps.shape
  total, goes_on = eps, True
  for i in range(noise.multires_noise_iterations):
    ratio_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
    ratio = jax.random.uniform(ratio_key, minval=2.0, maxval=4.0) ** i
    rows, columns = (jnp.maximum(1, jnp.int32(n / ratio)) for n in (h, w))
    octave = enlarge(jax.random.normal(noise_key, eps.shape), rows, columns)
    strength = noise.multires_noise_discount**i
    total = total + jnp.where(goes_on, strength * octave, 0.0)
    goes_on &= (rows > 1) & (columns > 1)
  return total / total.std(ddof=1)


def enlarge(
  image: Float[Array, 'h w c'], rows: ArrayLike, columns: ArrayLike
) -> Float[Array, 'h w c']:
  """Enlarges the first rows and columns to all of them, bilinearly.

  The sizes may be traced, since the shape of the result is that of the image.
  """
  h, w, _ = image.shape
  # TPUs would round the factors of these products to bfloat16.
  return jnp.einsum(
    'yi,xj,ijc->yxc',
    interpolation(h, rows),
    interpolation(w, columns),
    image,
    precision='highest',
  )


def interpolation(size: int, given: ArrayLike) -> Float[Array, 'size size']:
  """Returns the matrix that interpolates `given` values to `size`, linearly.

  Pixels are squares: their centres lie at halves, and beyond the outermost ones
  values are constant.
  """
  at = jnp.maximum((jnp.arange(size) + 0.5) * given / size - 0.5, 0)
  first = jnp.floor(at)
  second = jnp.minimum(first + 1, given - 1)
  share, index = (at - first)[:, None], jnp.arange(size)
  return (1 - share) * (index == first[:, None]) + share * (
    index == second[:, None]
  )


# Ning et al. 2023, Input Perturbation Reduces Exposure Bias in Diffusion
# Models, algorithm 1.
def perturb_input(
  noise: Noise, key: PRNGKeyArray, eps: Float[Array, 'h w c']
) -> Float[Array, 'h w c']:
  """Returns eps + gamma xi, which noises the input; the target keeps eps."""
  return eps + noise.ip_noise_gamma * jax.random.normal(key, eps.shape)
