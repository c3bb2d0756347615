"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv 1801.03924)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.models import layers

# VGG16 up to relu5_3: torchvision's numbers of the convolutions in each block.
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = (64, 128, 256, 512, 512)
# From [-1, 1] to the inputs of VGG training: (image - SHIFT) / SCALE.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
  """Configures the VGG16 variant, version 0.1, of the autoencoder's loss."""

  dtype: str = 'float32'
  param_dtype: str = 'float32'


class LPIPS(nn.Module):
  """Distance of two images, 0 where they are equal, without upper limit."""

  config: LPIPSConfig = LPIPSConfig()

  def setup(self) -> None:
    self.features = {
      str(number): layers.conv(self.config, channels, None)
      for block, channels in zip(BLOCKS, CHANNELS)
      for number in block
    }
    self.lin = [
      layers.conv(self.config, 1, None, 1, padding=0, use_bias=False)
      for _ in CHANNELS
    ]

  def __call__(
    self, x: Float[ArrayLike, 'b h w 3'], y: Float[ArrayLike, 'b h w 3']
  ) -> Float[Array, ' b']:
    """Compares images in [-1, 1], of 16 px or more."""
    distance = jnp.zeros(len(x))
    pairs = zip(self.lin, self.feature_maps(x), self.feature_maps(y))
    for lin, a, b in pairs:
      weighted = lin(jnp.square(normalize(a) - normalize(b)))
      distance += weighted.mean((1, 2, 3), dtype=jnp.float32)
    return distance

  def feature_maps(
    self, image: Float[ArrayLike, 'b height width 3']
  ) -> list[Float[Array, 'b _ _ _']]:
    """Returns relu1_2, 2_2, 3_3, 4_3 and 5_3, float32."""
    # VGG16, with max pooling between its blocks.
    x, maps = (image - jnp.array(SHIFT)) / jnp.array(SCALE), []
    for block in BLOCKS:
      if maps:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for number in block:
        x = nn.relu(self.features[str(number)](x))
      maps.append(x.astype(jnp.float32))
    return maps


def normalize(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  """Divides the channels of each pixel by their length."""
  length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
  return x / (length + 1e-10)
