"""The denoising UNet, base and refiner (SDXL paper, section 2.1, Table 1)."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from sdxl_jax.models import layers, transformer, unet_embedding

# One number for all blocks of a level, or one for each, in their order.
Depth = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """The defaults are the base; tuples have one entry per resolution level."""

  in_channels: int = 4
  out_channels: int = 4
  block_out_channels: tuple[int, ...] = (320, 640, 1280)
  # Residual blocks of a level on the way down; one more on the way up.
  layers_per_block: int | tuple[int, ...] = 2
  transformer_depth: tuple[Depth, ...] = (0, 2, 10)  # 0: no attention
  # On the way up, by level too; None: as on the way down.
  up_transformer_depth: tuple[Depth, ...] | None = None
  # 0: one residual block alone; None: no mid block.
  mid_transformer_depth: int | None = 10
  num_heads: tuple[int, ...] = (5, 10, 20)
  context_dim: int = 2048
  vector_dim: int = 2816  # pooled text and size sinusoids
  size_embed_dim: int = 256  # width of each size sinusoid
  # Width of the guidance scale's sinusoid in nets distilled with guidance.
  guidance_embed_dim: int | None = None
  norm_num_groups: int = 32
  dtype: str = 'float32'  # compute
  param_dtype: str = 'float32'  # storage
  # Of frozen kernels: 'int8' or 'float8_e4m3fn'; None: param_dtype.
  weights_dtype: str | None = None
  attention: str = 'xla'  # or 'cudnn', 'splash'; see models/attention.py
  remat: str = 'none'  # or 'full', 'dots': see layers.REMAT_POLICIES
  scan_blocks: bool = True  # transformer blocks of a stack as a loop
  scan_unroll: int = 1  # blocks that are compiled for each round of it

  def layers(self, level: int) -> int:
    """Residual blocks of a level on the way down."""
    return per_block(self.layers_per_block, len(self.block_out_channels))[level]

  def depths(self, level: int, up: bool) -> tuple[int, ...]:
    """Transformer blocks after each residual block of a level."""
    depths = self.transformer_depth
    if up and self.up_transformer_depth is not None:
      depths = self.up_transformer_depth
    return per_block(depths[level], self.layers(level) + up)


def per_block(value: Depth, count: int) -> tuple[int, ...]:
  """Returns one number for each of `count` blocks or levels."""
  return value if isinstance(value, tuple) else (value,) * count


def shorten(values: Sequence[int]) -> Depth:
  """Returns the one number of a list of equal ones, or else the tuple."""
  return values[0] if len(set(values)) == 1 else tuple(values)


def shorten_up(
  down: Sequence[Depth], up: Sequence[Depth]
) -> tuple[Depth, ...] | None:
  """Returns None for an up_transformer_depth that only mirrors the way down."""
  # Lists within levels are never the same, for the way up has a block more.
  return None if tuple(up) == tuple(down) else tuple(up)


BASE = UNetConfig()
REFINER = UNetConfig(
  block_out_channels=(384, 768, 1536, 1536),
  transformer_depth=(0, 4, 4, 0),
  mid_transformer_depth=4,
  num_heads=(6, 12, 24, 24),
  context_dim=1280,
  vector_dim=2560,
)
# Pruned bases: Gupta et al. 2024 (SSD-1B, Segmind Vega), Lee et al. 2023.
SSD_1B = dataclasses.replace(
  BASE,
  transformer_depth=(0, 2, 4),
  up_transformer_depth=(0, (2, 1, 1), (4, 4, 10)),
  mid_transformer_depth=0,
)
VEGA = dataclasses.replace(
  BASE, transformer_depth=(0, 1, 2), mid_transformer_depth=0
)
KOALA_700M = dataclasses.replace(
  BASE,
  layers_per_block=1,
  transformer_depth=(0, 2, 5),
  mid_transformer_depth=None,
)
KOALA_1B = dataclasses.replace(
  BASE,
  layers_per_block=1,
  transformer_depth=(0, 2, 6),
  mid_transformer_depth=6,
)
PRUNED = SSD_1B, VEGA, KOALA_700M, KOALA_1B


Pixels = Float[ArrayLike, 'b h w c']
Context = Float[ArrayLike, 'b m context'] | None


class Level(nn.Module):
  """Residual and transformer blocks at one resolution, down or up.

  A level of the down path returns its outputs as skips; a level of the up path
  takes the skips of the level that it mirrors, last first.
  """

  config: UNetConfig
  level: int
  up: bool
  resample: bool

  @nn.compact
  def __call__(
    self,
    x: Pixels,
    temb: Float[Array, 'b width'],
    context: Context,
    skips: Sequence[Float[Array, 'b h w _']] = (),
    size: tuple[int, int] | None = None,
  ) -> tuple[Float[Array, 'b _ _ _'], list[Array]]:
    config, outputs, skips = self.config, [], list(skips)
    # Blocks; the up path has one more, for the skip of the downsampler.
    resnet = layers.maybe_remat(layers.ResnetBlock2D, config.remat)
    for i, depth in enumerate(config.depths(self.level, self.up)):
      if self.up:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      features = config.block_out_channels[self.level]
      x = resnet(config, features, 1e-5, name=f'resnets_{i}')(x, temb)
      if depth:
        heads = config.num_heads[self.level]
        name = f'attentions_{i}'
        x = transformer.Transformer2D(config, heads, depth, name=name)(
          x, context
        )
      outputs.append(x)
    # Resample to the next level.
    if self.resample and self.up:
      x = layers.Upsample2D(config, name='upsamplers_0')(x, size)
    elif self.resample:
      pad = ((1, 1), (1, 1))
      x = layers.Downsample2D(config, pad, name='downsamplers_0')(x)
      outputs.append(x)
    return x, outputs


class MidBlock(nn.Module):
  """Residual, transformer, residual at the lowest resolution.

  Pruned nets have the first residual block alone.
  """

  config: UNetConfig

  @nn.compact
  def __call__(
    self, x: Pixels, temb: Float[ArrayLike, 'b width'], context: Context
  ) -> Pixels:
    config, features = self.config, x.shape[-1]
    resnet = layers.maybe_remat(layers.ResnetBlock2D, config.remat)
    x = resnet(config, features, 1e-5, name='resnets_0')(x, temb)
    if not config.mid_transformer_depth:
      return x
    x = transformer.Transformer2D(
      config,
      config.num_heads[-1],
      config.mid_transformer_depth,
      name='attentions_0',
    )(x, context)
    return resnet(config, features, 1e-5, name='resnets_1')(x, temb)


def down(
  config: UNetConfig,
  x: Float[Array, 'b h w c'],
  temb: Float[Array, 'b width'],
  context: Context,
) -> tuple[Float[Array, 'b _ _ _'], list[Float[Array, 'b _ _ _']]]:
  """Applies the levels of the way down, within a module.

  Returns:
    The last output; and all that the way up takes, x first.
  """
  skips, last = [x], len(config.block_out_channels) - 1
  for i in range(last + 1):
    level = Level(config, i, False, i < last, name=f'down_blocks_{i}')
    x, outputs = level(x, temb, context)
    skips += outputs
  return x, skips


class UNet(nn.Module):
  """Predicts eps, v or x0 from noisy latents, in float32.

  The latents are scaled by c_in; the timestep (0..999) may be fractional. In
  nets distilled with guidance (guidance_embed_dim) the guidance scale is an
  input, one for all images, and the prediction is guided by it.

  If the collection `context` is mutable, a call stores the keys and values of
  the context in it; later calls with this collection take None for the context.

  Residuals, those of a ControlNet, are added to the output of conv_in, to all
  outputs of the way down and to the mid block's, in this order.
  """

  config: UNetConfig

  @nn.compact
  def __call__(
    self,
    latents: Float[ArrayLike, 'b h w {self.config.in_channels}'],
    timestep: Num[ArrayLike, ' b'],
    context: Float[ArrayLike, 'b n {self.config.context_dim}'] | None,
    vector: Float[ArrayLike, 'b {self.config.vector_dim}'],
    guidance_scale: Float[ArrayLike, ''] = 1.0,
    residuals: Sequence[Float[ArrayLike, 'b _ _ _']] | None = None,
  ) -> Float[Array, 'b h w {self.config.out_channels}']:
    config = self.config
    levels = len(config.block_out_channels)

    # Embed: the timestep and the vector meet as a sum.
    ends = dataclasses.replace(config, weights_dtype=None)
    temb = unet_embedding.embed(config, timestep, vector, guidance_scale)
    channels = config.block_out_channels[0]
    x = layers.conv(ends, channels, 'conv_in')(latents)

    # Down, with every output kept for the way up, and mid.
    x, skips = down(config, x, temb, context)
    if config.mid_transformer_depth is not None:
      x = MidBlock(config, name='mid_block')(x, temb, context)
    if residuals is not None:
      *of_skips, of_mid = residuals
      skips = [skip + r for skip, r in zip(skips, of_skips, strict=True)]
      x = x + of_mid

    # Up; the way down rounds odd sizes up, so the next skip has the size.
    for i, number in enumerate(reversed(range(levels))):
      n = config.layers(number) + 1
      level_skips, skips = skips[-n:], skips[:-n]
      size = skips[-1].shape[1:3] if skips else None
      level = Level(config, number, True, number > 0, name=f'up_blocks_{i}')
      x, _ = level(x, temb, context, level_skips, size)

    # Out.
    x = nn.silu(layers.group_norm(config, 1e-5, 'conv_norm_out')(x))
    x = layers.conv(
      ends, config.out_channels, 'conv_out', kernel_init=layers.zeros
    )(x)
    return x.astype(jnp.float32)
