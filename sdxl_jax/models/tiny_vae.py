"""TAESD, a tiny autoencoder distilled from another one (Bohan 2023).

TAESDXL has the latents of SDXL, scaled already, and a posterior without
variance. It decodes in a fraction of the time and memory, with less detail.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.models import latent_scaling, layers

LIMIT = 3.0  # of what the decoder takes, by a tanh
NO_VARIANCE = -30.0  # as logvar, see latent_scaling.split


@dataclasses.dataclass(frozen=True)
class TinyConfig:
  """The defaults are TAESDXL's; one count of blocks per resolution level."""

  in_channels: int = 3
  latent_channels: int = 4
  features: int = 64
  encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)  # (): there is no encoder
  decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
  scaling_factor: float = 1.0
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  attention: str = 'xla'  # has no effect, as there is none
  remat: str = 'none'  # has no effect
  # Not fields: the latents are scaled already.
  latents_mean = latents_std = None

  @property
  def downscale(self) -> int:
    """Pixels per latent along each side."""
    return 2 ** (len(self.decoder_blocks) - 1)


Pixels = Float[ArrayLike, 'b h w c']


class Block(nn.Module):
  """Three convolutions, added to their input."""

  config: TinyConfig

  @nn.compact
  def __call__(self, x: Pixels) -> Pixels:
    y, config = x, self.config
    # The names count activations too.
    for i in (0, 2, 4):
      y = nn.relu(y) if i else y
      y = layers.conv(config, config.features, f'conv_{i}')(y)
    return nn.relu(x + y)


def apply_blocks(
  config: TinyConfig, x: Pixels, number: int, count: int
) -> tuple[Float[Array, 'b h w c'], int]:
  """Applies blocks within a module; returns the number of the next layer."""
  for i in range(count):
    x = Block(config, name=f'layers_{number + i}')(x)
  return x, number + count


class Encoder(nn.Module):
  """Maps an image in [-1, 1] to latents."""

  config: TinyConfig

  @nn.compact
  def __call__(self, image: Pixels) -> Float[Array, 'b _ _ latents']:
    config, x, number = self.config, (image + 1) / 2, 0
    for level, count in enumerate(config.encoder_blocks):
      # Each level but the first begins by halving the size.
      x = layers.conv(
        config,
        config.features,
        f'layers_{number}',
        stride=2 if level else 1,
        use_bias=not level,
      )(x)
      x, number = apply_blocks(config, x, number + 1, count)
    return layers.conv(config, config.latent_channels, f'layers_{number}')(x)


class Decoder(nn.Module):
  """Maps latents to an image in about [-1, 1]."""

  config: TinyConfig

  @nn.compact
  def __call__(self, latents: Pixels) -> Float[Array, 'b _ _ image']:
    config, last = self.config, len(self.config.decoder_blocks) - 1
    x = LIMIT * jnp.tanh(latents / LIMIT)
    # The names count the activation and the doublings of the size too.
    x, number = nn.relu(layers.conv(config, config.features, 'layers_0')(x)), 2
    for level, count in enumerate(config.decoder_blocks):
      x, number = apply_blocks(config, x, number, count)
      if level < last:
        x, number = x.repeat(2, axis=1).repeat(2, axis=2), number + 1
      features = config.features if level < last else config.in_channels
      x = layers.conv(
        config, features, f'layers_{number}', use_bias=level == last
      )(x)
      number += 1
    return 2 * x - 1


class TinyVAE(nn.Module):
  """Takes the place of VAE."""

  config: TinyConfig

  def setup(self) -> None:
    if self.config.encoder_blocks:
      self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def encode(
    self, image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w moments']:
    """Returns the latents and their logvar, float32, unscaled."""
    if not self.config.encoder_blocks:
      raise ValueError(
        'the autoencoder has a decoder only, and an image cannot be encoded: '
        'use one with both'
      )
    mean = self.encoder(image).astype(jnp.float32)
    return jnp.concatenate([mean, jnp.full_like(mean, NO_VARIANCE)], axis=-1)

  def decode(
    self, x: Float[ArrayLike, 'b h w latents']
  ) -> Float[Array, 'b height width c']:
    """Decodes latents to an image, float32."""
    z = latent_scaling.unscale(self.config, x)
    return self.decoder(z).astype(jnp.float32)

  def __call__(
    self, image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b height width c']:
    """Encodes and decodes an image; initialises every parameter."""
    if self.config.encoder_blocks:
      mean, _ = latent_scaling.split(self.encode(image))
      return self.decode(latent_scaling.scale(self.config, mean))
    factor = self.config.downscale
    b, h, w, _ = image.shape
    shape = b, h // factor, w // factor, self.config.latent_channels
    return self.decode(jnp.zeros(shape))
