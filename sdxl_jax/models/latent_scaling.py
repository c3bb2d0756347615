"""Between what the autoencoder encodes and what the UNet sees.

z is the autoencoder's own; latents are (z - mean) scaling_factor / std, of
about unit variance. Only some autoencoders have mean and std, one of each
channel.
"""

import jax.numpy as jnp

# Fields of an autoencoder's config that scale its latents.
FIELDS = ('scaling_factor', 'latents_mean', 'latents_std')


def scale(config, z):
  """z > latents, by what the autoencoder's config says."""
  if config.latents_mean is None:
    return config.scaling_factor * z
  mean, std = jnp.array(config.latents_mean), jnp.array(config.latents_std)
  return (z - mean) * (config.scaling_factor / std)


def unscale(config, latents):
  """Latents > z."""
  z = latents / config.scaling_factor
  if config.latents_mean is None:
    return z
  return z * jnp.array(config.latents_std) + jnp.array(config.latents_mean)


def split(moments):
  """Moments > mean and logvar, clamped to [-30, 20], of the posterior of z."""
  mean, logvar = jnp.split(moments, 2, axis=-1)
  return mean, jnp.clip(logvar, -30.0, 20.0)


def sample(config, moments, noise):
  """Latents of z = mean + std eps."""
  mean, logvar = split(moments)
  return scale(config, mean + jnp.exp(0.5 * logvar) * noise)


def statistics(moments):
  """Mean and mean square of z over all but the channels of [..., h, w, 2 c].

  Returns:
    two of [..., c].
  """
  mean, logvar = split(moments)
  square = mean**2 + jnp.exp(logvar)
  return mean.mean((-3, -2)), square.mean((-3, -2))


def standard(mean, square):
  """What gives latents zero mean and unit variance.

  Args:
    mean, square: [c], of z, see `statistics`.

  Returns:
    One factor for all channels, as SDXL has it, and the mean of each.
  """
  variance = square - mean**2
  return float(variance.mean() ** -0.5), tuple(float(x) for x in mean)
