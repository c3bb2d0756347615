"""Scaling between the autoencoder's output and the UNet's input.

z is the autoencoder's own; latents are (z - mean) scaling_factor / std, of
about unit variance. Only some autoencoders have mean and std, one of each
channel.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

# `config` is a vae.VAEConfig or a vae.PatchConfig.

# Fields of an autoencoder's config that scale its latents.
FIELDS = ('scaling_factor', 'latents_mean', 'latents_std')


def scale(
  config: Any, z: Float[ArrayLike, '*b h w c']
) -> Float[ArrayLike, '*b h w c']:
  """Converts z to latents."""
  if config.latents_mean is None:
    return config.scaling_factor * z
  mean, std = jnp.array(config.latents_mean), jnp.array(config.latents_std)
  return (z - mean) * (config.scaling_factor / std)


def unscale(
  config: Any, latents: Float[ArrayLike, '*b h w c']
) -> Float[ArrayLike, '*b h w c']:
  """Converts latents to z."""
  z = latents / config.scaling_factor
  if config.latents_mean is None:
    return z
  return z * jnp.array(config.latents_std) + jnp.array(config.latents_mean)


def to_pixels(
  decoded: Float[ArrayLike, '*b H W c'],
) -> Float[Array, '*b H W c']:
  """Clips a decoded image to [-1, 1]; infinity becomes NaN, and is not hidden.

  A decoder that overflows would otherwise give black or white.
  """
  return jnp.where(jnp.isfinite(decoded), jnp.clip(decoded, -1, 1), jnp.nan)


def split(
  moments: Float[ArrayLike, '*b h w c2'],
) -> tuple[Float[Array, '*b h w c'], Float[Array, '*b h w c']]:
  """Splits moments into mean and logvar, which is clamped to [-30, 20]."""
  mean, logvar = jnp.split(moments, 2, axis=-1)
  return mean, jnp.clip(logvar, -30.0, 20.0)


def sample(
  config: Any,
  moments: Float[ArrayLike, '*b h w c2'],
  noise: Float[ArrayLike, '*b h w c'],
) -> Float[ArrayLike, '*b h w c']:
  """Returns latents of z = mean + std eps."""
  mean, logvar = split(moments)
  return scale(config, mean + jnp.exp(0.5 * logvar) * noise)


def statistics(
  moments: Float[ArrayLike, '*b h w c2'],
) -> tuple[Float[Array, '*b c'], Float[Array, '*b c']]:
  """Returns the mean and the mean square of z over the pixels."""
  mean, logvar = split(moments)
  square = mean**2 + jnp.exp(logvar)
  return mean.mean((-3, -2)), square.mean((-3, -2))


def standard(
  mean: Float[ArrayLike, ' c'], square: Float[ArrayLike, ' c']
) -> tuple[float, tuple[float, ...]]:
  """Returns the scaling that gives latents zero mean and unit variance.

  Args:
    mean, square: of z, see `statistics`.

  Returns:
    (scaling_factor, latents_mean): one factor for all channels, as SDXL has
    it, and the mean of each channel.
  """
  variance = square - mean**2
  return float(variance.mean() ** -0.5), tuple(float(x) for x in mean)
