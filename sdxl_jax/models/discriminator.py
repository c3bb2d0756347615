"""The autoencoder's discriminator: PatchGAN (Isola et al. 2017, 3.2.2)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from sdxl_jax.models import layers


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """The defaults are those of the reference's NLayerDiscriminator."""

  features: int = 64  # of the first layer; doubled up to eight times that
  layers: int = 3  # with batch norm
  dtype: str = 'float32'
  param_dtype: str = 'float32'


kernel_init = nn.initializers.normal(0.02)


def scale_init(
  key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any
) -> Float[Array, ' c']:
  """Initialises the scale of a norm: N(1, 0.02^2)."""
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class BatchNorm(nn.Module):
  """Normalises with the statistics of this batch, over all devices.

  There are no running averages, since the discriminator is applied to training
  batches only.
  """

  config: DiscriminatorConfig

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    shape, dtype = x.shape[-1:], self.config.param_dtype
    scale = self.param('scale', scale_init, shape, dtype)
    bias = self.param('bias', layers.zeros, shape, dtype)
    x = x.astype(jnp.float32)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias
    return x.astype(self.config.dtype)


class Discriminator(nn.Module):
  """Maps an image to logits of its patches, high where a patch is real.

  A patch is 70 x 70 px with the default three layers. Module names are those of
  the reference, an nn.Sequential `main`.
  """

  config: DiscriminatorConfig = DiscriminatorConfig()

  @nn.compact
  def __call__(
    self, x: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w 1']:
    config = self.config
    conv = functools.partial(
      layers.conv, config, size=4, padding=1, kernel_init=kernel_init
    )
    # The first layer has no norm.
    x = conv(config.features, 'main_0', stride=2)(x)
    x = nn.leaky_relu(x, 0.2)
    # All but the last of these halve the size.
    for i in range(1, config.layers + 1):
      features = config.features * min(2**i, 8)
      stride = 2 if i < config.layers else 1
      name = f'main_{3 * i - 1}'
      x = conv(features, name, stride=stride, use_bias=False)(x)
      x = BatchNorm(config, name=f'main_{3 * i}')(x)
      x = nn.leaky_relu(x, 0.2)
    # One logit for each patch.
    x = conv(1, f'main_{3 * config.layers + 2}', stride=1)(x)
    return x.astype(jnp.float32)
