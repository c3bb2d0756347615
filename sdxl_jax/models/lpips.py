"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv 1801.03924)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from sdxl_jax.models import layers

# VGG16 up to relu5_3: torchvision's numbers of the convolutions of each block.
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = (64, 128, 256, 512, 512)
# From [-1, 1] to what the VGG was trained on: (image - SHIFT) / SCALE.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
  """The VGG16 variant, version 0.1, which the autoencoder's loss uses."""

  dtype: str = 'float32'
  param_dtype: str = 'float32'


class LPIPS(nn.Module):
  """Distance of two images, 0 where they are alike; grows without limit."""

  config: LPIPSConfig = LPIPSConfig()

  def setup(self):
    self.features = {
      str(number): layers.conv(self.config, channels, None)
      for block, channels in zip(BLOCKS, CHANNELS)
      for number in block
    }
    self.lin = [
      layers.conv(self.config, 1, None, 1, padding=0, use_bias=False)
      for _ in CHANNELS
    ]

  def __call__(self, x, y):
    """Images [b, h, w, 3] in [-1, 1], of 16 px or more > float32 [b]."""
    distance = jnp.zeros(len(x))
    for lin, a, b in zip(self.lin, self.maps(x), self.maps(y)):
      weighed = lin(jnp.square(unit(a) - unit(b)))
      distance += weighed.mean((1, 2, 3), dtype=jnp.float32)
    return distance

  def maps(self, image):
    """The features relu1_2, 2_2, 3_3, 4_3 and 5_3, float32."""
    x, maps = (image - jnp.array(SHIFT)) / jnp.array(SCALE), []
    for block in BLOCKS:
      if maps:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for number in block:
        x = nn.relu(self.features[str(number)](x))
      maps.append(x.astype(jnp.float32))
    return maps


def unit(x):
  """Channels divided by their length."""
  length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
  return x / (length + 1e-10)
