"""ControlNet: steers a UNet by an image, such as edges or a depth map.

Zhang et al. 2023, Adding Conditional Control to Text-to-Image Diffusion Models
(arXiv 2302.05543): a copy of the UNet's way down and mid block, whose outputs
pass 1 x 1 convolutions that start at zero and are added to those of the UNet.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num

from sdxl_jax.models import control_fusion, layers, unet, unet_embedding

Image = Float[ArrayLike, 'b height width rgb']
Features = Float[ArrayLike, 'b h w c']


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(unet.UNetConfig):
  """The defaults are of SDXL's base; what is of the way up has no effect.

  A union net (control_types > 0) takes several images, each of one of several
  types, as edges and depth.
  """

  conditioning_channels: int = 3  # of the control image
  conditioning_features: tuple[int, ...] = (16, 32, 96, 256)
  channel_order: str = 'rgb'  # of the control image; or 'bgr'
  control_types: int = 0  # that a union net has been trained on
  fusion_heads: int = 8  # of the union net's transformer
  fusion_layers: int = 1


BASE = ControlNetConfig()


class ConditioningEmbedding(nn.Module):
  """Maps a control image to features of the size of the latents."""

  config: ControlNetConfig

  @nn.compact
  def __call__(self, image: Image) -> Float[Array, 'b h w {self.width}']:
    config = dataclasses.replace(self.config, weights_dtype=None)
    x = jnp.asarray(image)
    if config.channel_order == 'bgr':
      x = x[..., ::-1]
    first, *rest = config.conditioning_features
    x = nn.silu(layers.conv(config, first, 'conv_in')(x))
    before = first
    for i, after in enumerate(rest):
      x = nn.silu(layers.conv(config, before, f'blocks_{2 * i}')(x))
      x = layers.conv(config, after, f'blocks_{2 * i + 1}', stride=2)(x)
      x, before = nn.silu(x), after
    return layers.conv(
      config, self.width, 'conv_out', kernel_init=layers.zeros
    )(x)

  @property
  def width(self) -> int:
    """Channels of the features, those of the UNet's first level."""
    return self.config.block_out_channels[0]


class ControlNet(nn.Module):
  """Returns what is added to a UNet: see the residuals of unet.UNet.

  If the collection `context` is mutable, a call stores the keys and values of
  the context in it; later calls with this collection take None for the context.
  """

  config: ControlNetConfig

  def setup(self) -> None:
    self.controlnet_cond_embedding = ConditioningEmbedding(self.config)

  def embed(self, image: Image) -> Float[Array, 'b h w c']:
    """Embeds a control image, RGB in [0, 1]; the same at every step."""
    return self.controlnet_cond_embedding(image)

  @nn.compact
  def __call__(
    self,
    latents: Float[ArrayLike, 'b h w {self.config.in_channels}'],
    timestep: Num[ArrayLike, ' b'],
    context: Float[ArrayLike, 'b n {self.config.context_dim}'] | None,
    vector: Float[ArrayLike, 'b {self.config.vector_dim}'],
    features: Sequence[Features],
    scales: Num[ArrayLike, ' k'],
    types: Int[ArrayLike, ' k'] | None = None,
    guess: bool = False,
  ) -> list[Float[Array, 'b _ _ _']]:
    """Applies the net to one image, or a union net to several.

    Args:
      latents: scaled by c_in.
      timestep: 0..999.
      context, vector: as the UNet takes them.
      features: k results of `embed`.
      scales: of the residuals; of several images, of their features.
      types: of a union net, the type of each image.
      guess: whether the residuals of higher resolutions count for less, by 0.1
        to 1, so that the net works without a prompt (`guess mode`).
    """
    config, scales = self.config, jnp.asarray(scales, jnp.float32)
    ends = dataclasses.replace(config, weights_dtype=None)
    temb = unet_embedding.embed(config, timestep, vector)
    channels = config.block_out_channels[0]
    x = layers.conv(ends, channels, 'conv_in')(latents)
    if config.control_types:
      temb = temb + control_fusion.embed_types(config, types)
      embeddings = self.param(
        'task_embedding',
        nn.initializers.normal(channels**0.5),
        (config.control_types, channels),
        config.param_dtype,
      )
      x = x + control_fusion.fuse(config, embeddings, features, types, scales)
    else:
      (feature,) = features
      x = x + jnp.asarray(feature, x.dtype)

    # Down and mid, as the UNet, then zero convolutions.
    x, outputs = unet.down(config, x, temb, context)
    outputs.append(unet.MidBlock(config, name='mid_block')(x, temb, context))
    names = [f'controlnet_down_blocks_{i}' for i in range(len(outputs) - 1)]
    residuals = []
    for name, y in zip([*names, 'controlnet_mid_block'], outputs):
      residuals.append(
        layers.conv(
          ends, y.shape[-1], name, 1, padding=0, kernel_init=layers.zeros
        )(y)
      )

    # Several images were scaled one by one before.
    scale = scales[0] if len(features) == 1 else jnp.float32(1)
    return scaled(residuals, scale, guess)


def scaled(
  residuals: Sequence[Float[Array, 'b _ _ _']],
  scale: Float[ArrayLike, ''],
  guess: bool,
) -> list[Float[Array, 'b _ _ _']]:
  """Multiplies residuals; see ControlNet."""
  shares = np.ones(len(residuals))
  if guess:
    shares = np.logspace(-1, 0, len(residuals))
  return [
    (scale * np.float32(share) * y.astype(jnp.float32)).astype(y.dtype)
    for share, y in zip(shares, residuals)
  ]


def init_inputs(config: ControlNetConfig) -> tuple:
  """Returns inputs of the least size, for `init_with_image`."""
  side = 2 ** (len(config.conditioning_features) - 1)
  size = 2 ** len(config.block_out_channels)
  return (
    jnp.zeros((1, size, size, config.in_channels)),
    jnp.zeros(1),
    jnp.zeros((1, 1, config.context_dim)),
    jnp.zeros((1, config.vector_dim)),
    jnp.zeros((1, side * size, side * size, config.conditioning_channels)),
  )


def apply_to_images(
  net: ControlNet,
  latents: Float[ArrayLike, 'b h w c'],
  timestep: Num[ArrayLike, ' b'],
  context: Float[ArrayLike, 'b n d'] | None,
  vector: Float[ArrayLike, 'b v'],
  *images: Image,
  scales: Num[ArrayLike, ' k'] | None = None,
  types: Int[ArrayLike, ' k'] | None = None,
  guess: bool = False,
) -> list[Float[Array, 'b _ _ _']]:
  """Embeds control images and applies the net: a method for init and apply.

  As in net.init(key, *init_inputs(config), method=apply_to_images).
  """
  features = [net.embed(image) for image in images]
  scales = jnp.ones(len(images)) if scales is None else scales
  if net.config.control_types and types is None:
    types = jnp.zeros(len(images), jnp.int32)
  return net(latents, timestep, context, vector, features, scales, types, guess)
