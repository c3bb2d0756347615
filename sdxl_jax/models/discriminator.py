"""The autoencoder's adversary: PatchGAN (Isola et al. 2017, section 3.2.2)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdxl_jax.models import layers


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """Defaults are those of the reference's NLayerDiscriminator."""

  features: int = 64  # of the first layer; doubled up to eight times that
  layers: int = 3  # with batch norm
  dtype: str = 'float32'
  param_dtype: str = 'float32'


kernel_init = nn.initializers.normal(0.02)


def scale_init(key, shape, dtype):
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class BatchNorm(nn.Module):
  """Normalises with the statistics of this batch, over all devices.

  It keeps no running averages: a discriminator never sees anything but training
  batches.
  """

  config: DiscriminatorConfig

  @nn.compact
  def __call__(self, x):
    shape, dtype = x.shape[-1:], self.config.param_dtype
    scale = self.param('scale', scale_init, shape, dtype)
    bias = self.param('bias', layers.zeros, shape, dtype)
    x = x.astype(jnp.float32)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias
    return x.astype(self.config.dtype)


class Discriminator(nn.Module):
  """Image [b, h, w, 3] > logits [b, h', w', 1] float32, high where it is real.

  Each logit judges a patch: of 70 x 70 px with the default three layers. Module
  names are those of the reference, an nn.Sequential `main`.
  """

  config: DiscriminatorConfig = DiscriminatorConfig()

  @nn.compact
  def __call__(self, x):
    config = self.config
    conv = lambda features, number, stride, **kw: layers.conv(
      *(config, features, f'main_{number}', 4, stride, 1, kernel_init), **kw
    )
    x = nn.leaky_relu(conv(config.features, 0, 2)(x), 0.2)
    for i in range(1, config.layers + 1):
      features = config.features * min(2**i, 8)
      stride = 2 if i < config.layers else 1
      x = conv(features, 3 * i - 1, stride, use_bias=False)(x)
      x = BatchNorm(config, name=f'main_{3 * i}')(x)
      x = nn.leaky_relu(x, 0.2)
    return conv(1, 3 * config.layers + 2, 1)(x).astype(jnp.float32)
