"""Inception v3 as FID defines it (Szegedy et al. 2015, arXiv 1512.00567).

The net and its weights are those of pytorch-fid, which took them from
TensorFlow's inception-2015-12-05. It differs from torchvision's: average pools
leave their padding out of the mean, and the last block pools by the maximum.
Modules have torchvision's names, so that weights are mapped by rule.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.models import layers

SIZE = 299  # px, of height and width
FEATURES = 2048
EPSILON = 1e-3  # of the batch norms
Pixels = Float[Array, 'b h w c']
Branch = Float[Array, 'b height width channels']


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
  """Configures the types; the architecture is fixed."""

  dtype: str = 'float32'
  param_dtype: str = 'float32'


class BatchNorm(nn.Module):
  """Normalises channels by the mean and variance of training, which are fixed.

  They are parameters here: nothing trains this net.
  """

  config: InceptionConfig

  @nn.compact
  def __call__(self, x: Pixels) -> Pixels:
    config, c = self.config, x.shape[-1:]
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    scale = self.param('scale', ones, c, config.param_dtype)
    bias = self.param('bias', zeros, c, config.param_dtype)
    mean = self.param('running_mean', zeros, c, config.param_dtype)
    variance = self.param('running_var', ones, c, config.param_dtype)
    factor = scale / jnp.sqrt(variance + EPSILON)
    return (x * factor + (bias - mean * factor)).astype(config.dtype)


class BasicConv2d(nn.Module):
  """Applies a convolution without bias, batch norm and ReLU."""

  config: InceptionConfig
  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: tuple[int, int] = (0, 0)

  @nn.compact
  def __call__(self, x: Pixels) -> Branch:
    (top, left), config = self.padding, self.config
    x = nn.Conv(
      self.features,
      self.kernel,
      self.stride,
      ((top, top), (left, left)),
      use_bias=False,
      kernel_init=layers.fan_in_uniform,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      name='conv',
    )(x)
    return nn.relu(BatchNorm(config, name='bn')(x))


class Block(nn.Module):
  """A module of several branches, of which each adds channels."""

  config: InceptionConfig

  def conv(
    self,
    name: str,
    features: int,
    kernel: tuple[int, int] = (1, 1),
    stride: int = 1,
  ) -> BasicConv2d:
    """Makes a convolution; without a stride it keeps height and width."""
    height, width = kernel
    padding = ((height - 1) // 2, (width - 1) // 2) if stride == 1 else (0, 0)
    return BasicConv2d(
      self.config, features, kernel, stride, padding, name=name
    )

  def chain(
    self,
    x: Pixels,
    name: str,
    steps: Sequence[tuple[int, tuple[int, int]]],
    stride: int = 1,
  ) -> Branch:
    """Applies name_1, name_2, ... of (features, kernel), the last strided."""
    for i, (features, kernel) in enumerate(steps, 1):
      is_last = i == len(steps)
      step = self.conv(
        f'{name}_{i}', features, kernel, stride if is_last else 1
      )
      x = step(x)
    return x


class InceptionA(Block):
  """Kernels of 1, 5 and twice 3 px, and a pool of `pool_features` channels."""

  pool_features: int = 64

  @nn.compact
  def __call__(self, x: Pixels) -> Branch:
    double = ((64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
    branches = [
      self.conv('branch1x1', 64)(x),
      self.chain(x, 'branch5x5', ((48, (1, 1)), (64, (5, 5)))),
      self.chain(x, 'branch3x3dbl', double),
      self.conv('branch_pool', self.pool_features)(average(x)),
    ]
    return jnp.concatenate(branches, axis=-1)


class InceptionB(Block):
  """Halves height and width, from 35 to 17 px."""

  @nn.compact
  def __call__(self, x: Pixels) -> Branch:
    double = ((64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
    branches = [
      self.conv('branch3x3', 384, (3, 3), 2)(x),
      self.chain(x, 'branch3x3dbl', double, stride=2),
      shrink(x),
    ]
    return jnp.concatenate(branches, axis=-1)


class InceptionC(Block):
  """Kernels of 7 px, as a row and a column, with `width` channels inside."""

  width: int = 128

  @nn.compact
  def __call__(self, x: Pixels) -> Branch:
    c, row, column = self.width, (1, 7), (7, 1)
    double = ((c, (1, 1)), (c, column), (c, row), (c, column), (192, row))
    branches = [
      self.conv('branch1x1', 192)(x),
      self.chain(x, 'branch7x7', ((c, (1, 1)), (c, row), (192, column))),
      self.chain(x, 'branch7x7dbl', double),
      self.conv('branch_pool', 192)(average(x)),
    ]
    return jnp.concatenate(branches, axis=-1)


class InceptionD(Block):
  """Halves height and width, from 17 to 8 px."""

  @nn.compact
  def __call__(self, x: Pixels) -> Branch:
    seven = ((192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)))
    branches = [
      self.chain(x, 'branch3x3', ((192, (1, 1)), (320, (3, 3))), stride=2),
      self.chain(x, 'branch7x7x3', seven, stride=2),
      shrink(x),
    ]
    return jnp.concatenate(branches, axis=-1)


class InceptionE(Block):
  """Kernels of 3 px, each as a row beside a column."""

  max_pool: bool = False

  @nn.compact
  def __call__(self, x: Pixels) -> Branch:
    pool = nn.max_pool if self.max_pool else average
    pooled = pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
    three = self.conv('branch3x3_1', 384)(x)
    double = self.chain(x, 'branch3x3dbl', ((448, (1, 1)), (384, (3, 3))))
    branches = [
      self.conv('branch1x1', 320)(x),
      self.conv('branch3x3_2a', 384, (1, 3))(three),
      self.conv('branch3x3_2b', 384, (3, 1))(three),
      self.conv('branch3x3dbl_3a', 384, (1, 3))(double),
      self.conv('branch3x3dbl_3b', 384, (3, 1))(double),
      self.conv('branch_pool', 192)(pooled),
    ]
    return jnp.concatenate(branches, axis=-1)


class Inception(nn.Module):
  """Maps images in [0, 1] of 299 x 299 px to 2,048 features, float32."""

  config: InceptionConfig = InceptionConfig()

  @nn.compact
  def __call__(
    self, image: Float[ArrayLike, 'b height width 3']
  ) -> Float[Array, 'b features']:
    config = self.config
    x = (2 * jnp.asarray(image) - 1).astype(config.dtype)
    # 299 to 35 px.
    x = BasicConv2d(config, 32, (3, 3), 2, name='Conv2d_1a_3x3')(x)
    x = BasicConv2d(config, 32, (3, 3), name='Conv2d_2a_3x3')(x)
    x = BasicConv2d(config, 64, (3, 3), 1, (1, 1), name='Conv2d_2b_3x3')(x)
    x = BasicConv2d(config, 80, name='Conv2d_3b_1x1')(shrink(x))
    x = BasicConv2d(config, 192, (3, 3), name='Conv2d_4a_3x3')(x)
    x = shrink(x)
    # 35, 17 and 8 px.
    x = InceptionA(config, 32, name='Mixed_5b')(x)
    x = InceptionA(config, 64, name='Mixed_5c')(x)
    x = InceptionA(config, 64, name='Mixed_5d')(x)
    x = InceptionB(config, name='Mixed_6a')(x)
    for name, width in zip('bcde', (128, 160, 160, 192)):
      x = InceptionC(config, width, name=f'Mixed_6{name}')(x)
    x = InceptionD(config, name='Mixed_7a')(x)
    x = InceptionE(config, name='Mixed_7b')(x)
    x = InceptionE(config, max_pool=True, name='Mixed_7c')(x)
    return x.mean((1, 2), dtype=jnp.float32)


def average(
  x: Pixels,
  window: tuple[int, int] = (3, 3),
  strides: tuple[int, int] = (1, 1),
  padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
) -> Pixels:
  """Averages 3 x 3 px, of which the padding is no part."""
  return nn.avg_pool(x, window, strides, padding, count_include_pad=False)


def shrink(x: Pixels) -> Branch:
  """Takes the maximum of 3 x 3 px, every second one."""
  return nn.max_pool(x, (3, 3), (2, 2))
