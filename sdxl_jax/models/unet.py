"""The denoising UNet, base and refiner (SDXL paper, section 2.1, Table 1)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from sdxl_jax.models import attention, layers


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """Defaults are the base; tuples have one entry per resolution level."""

  in_channels: int = 4
  out_channels: int = 4
  block_out_channels: tuple[int, ...] = (320, 640, 1280)
  layers_per_block: int = 2
  transformer_depth: tuple[int, ...] = (0, 2, 10)  # 0: no attention
  mid_transformer_depth: int = 10
  num_heads: tuple[int, ...] = (5, 10, 20)
  context_dim: int = 2048
  vector_dim: int = 2816  # pooled text and size sinusoids
  size_embed_dim: int = 256  # width of each size sinusoid
  # Width of the guidance scale's sinusoid, of nets distilled with guidance.
  guidance_embed_dim: int | None = None
  norm_num_groups: int = 32
  dtype: str = 'float32'  # compute
  param_dtype: str = 'float32'  # storage
  attention: str = 'xla'  # or 'cudnn'
  remat: str = 'none'  # or 'full', 'dots': see layers.REMAT_POLICIES
  scan_blocks: bool = True  # one compiled transformer block per stack


BASE = UNetConfig()
REFINER = UNetConfig(
  block_out_channels=(384, 768, 1536, 1536),
  transformer_depth=(0, 4, 4, 0),
  mid_transformer_depth=4,
  num_heads=(6, 12, 24, 24),
  context_dim=1280,
  vector_dim=2560,
)


class Embedding(nn.Module):
  """Linear, SiLU, Linear: for timestep (with guidance) and for the vector."""

  config: UNetConfig

  @nn.compact
  def __call__(self, x, guidance=None):
    width = 4 * self.config.block_out_channels[0]
    if guidance is not None:
      project = layers.dense(self.config, x.shape[-1], 'cond_proj', False)
      x = x + project(guidance)
    x = nn.silu(layers.dense(self.config, width, 'linear_1')(x))
    return layers.dense(self.config, width, 'linear_2')(x)


# Meng et al. 2022, On Distillation of Guided Diffusion Models, as Luo et al.
# 2023, Latent Consistency Models, embed w.
def guidance_sinusoid(guidance_scale, width):
  """[b] > [b, width] float32, of w = guidance_scale - 1.

  sin(1000 w f_i), cos(1000 w f_i), f_i = 10000^(-2i / (width - 2)): sines first
  and another divisor, unlike the timestep's.
  """
  f = np.float32(np.logspace(0, -4, width // 2))
  angles = 1000 * (jnp.float32(guidance_scale) - 1)[..., None] * f
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Attention(nn.Module):
  """Multi-head attention of x to context; q, k, v have no bias.

  Of a context that stays the same over calls, k and v are kept in the
  collection `context`, if that is mutable, and come from there for None.
  """

  config: UNetConfig
  num_heads: int
  keep: bool = False  # k and v

  @nn.compact
  def __call__(self, x, context):
    c = x.shape[-1]
    q = layers.dense(self.config, c, 'to_q', use_bias=False)(x)
    if context is None:
      k, v = (self.get_variable('context', name) for name in 'kv')
    else:
      k = layers.dense(self.config, c, 'to_k', use_bias=False)(context)
      v = layers.dense(self.config, c, 'to_v', use_bias=False)(context)
    if self.keep and self.is_mutable_collection('context'):
      self.put_variable('context', 'k', k)
      self.put_variable('context', 'v', v)
    x = attention.attention(q, k, v, self.num_heads, self.config.attention)
    return layers.dense(self.config, c, 'to_out_0')(x)


class GEGLU(nn.Module):
  """value * gelu(gate), both linear in x (Shazeer 2020, arXiv 2002.05202)."""

  config: UNetConfig
  features: int

  @nn.compact
  def __call__(self, x):
    x = layers.dense(self.config, 2 * self.features, 'proj')(x)
    value, gate = jnp.split(x, 2, axis=-1)
    return value * layers.gelu(gate)


class FeedForward(nn.Module):
  config: UNetConfig

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    x = GEGLU(self.config, 4 * c, name='net_0')(x)
    return layers.dense(self.config, c, 'net_2')(x)


class BasicTransformerBlock(nn.Module):
  """Self-attention, cross-attention, feed-forward; norm before, add after."""

  config: UNetConfig
  num_heads: int

  @nn.compact
  def __call__(self, x, context):
    h = layers.layer_norm(self.config, 'norm1')(x)
    x = x + Attention(self.config, self.num_heads, name='attn1')(h, h)
    h = layers.layer_norm(self.config, 'norm2')(x)
    cross = Attention(self.config, self.num_heads, keep=True, name='attn2')
    x = x + cross(h, context)
    h = layers.layer_norm(self.config, 'norm3')(x)
    x = x + FeedForward(self.config, name='ff')(h)
    return x, None


class Transformer2D(nn.Module):
  """A stack of transformer blocks over the pixels as tokens, row by row."""

  config: UNetConfig
  num_heads: int
  depth: int

  @nn.compact
  def __call__(self, x, context):
    b, h, w, c = x.shape
    tokens = layers.group_norm(self.config, 1e-6, 'norm')(x)
    tokens = tokens.reshape(b, h * w, c)
    tokens = layers.dense(self.config, c, 'proj_in')(tokens)
    tokens = self.blocks(tokens, context)
    tokens = layers.dense(self.config, c, 'proj_out', kernel_init=layers.zeros)(
      tokens
    )
    return x + tokens.reshape(b, h, w, c)

  def blocks(self, x, context):
    block = BasicTransformerBlock
    if self.config.scan_blocks:
      block = layers.scan_blocks(block, self.config, self.depth)
      x, _ = block(self.config, self.num_heads, name='transformer_blocks')(
        x, context
      )
      return x
    block = layers.maybe_remat(block, self.config.remat)
    for i in range(self.depth):
      name = f'transformer_blocks_{i}'
      x, _ = block(self.config, self.num_heads, name=name)(x, context)
    return x


class Level(nn.Module):
  """Residual and transformer blocks at one resolution, down or up.

  A level going up takes the skips of the level that it mirrors, last first; a
  level going down returns its own.
  """

  config: UNetConfig
  level: int
  up: bool
  resample: bool

  @nn.compact
  def __call__(self, x, temb, context, skips=(), size=None):
    config, outputs, skips = self.config, [], list(skips)
    depth = config.transformer_depth[self.level]
    resnet = layers.maybe_remat(layers.ResnetBlock2D, config.remat)
    for i in range(config.layers_per_block + self.up):
      if self.up:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      features = config.block_out_channels[self.level]
      x = resnet(config, features, 1e-5, name=f'resnets_{i}')(x, temb)
      if depth:
        heads = config.num_heads[self.level]
        name = f'attentions_{i}'
        x = Transformer2D(config, heads, depth, name=name)(x, context)
      outputs.append(x)
    if self.resample and self.up:
      x = layers.Upsample2D(config, name='upsamplers_0')(x, size)
    elif self.resample:
      pad = ((1, 1), (1, 1))
      x = layers.Downsample2D(config, pad, name='downsamplers_0')(x)
      outputs.append(x)
    return x, outputs


class MidBlock(nn.Module):
  """Residual, transformer, residual at the lowest resolution."""

  config: UNetConfig

  @nn.compact
  def __call__(self, x, temb, context):
    config, features = self.config, x.shape[-1]
    resnet = layers.maybe_remat(layers.ResnetBlock2D, config.remat)
    x = resnet(config, features, 1e-5, name='resnets_0')(x, temb)
    x = Transformer2D(
      config,
      config.num_heads[-1],
      config.mid_transformer_depth,
      name='attentions_0',
    )(x, context)
    return resnet(config, features, 1e-5, name='resnets_1')(x, temb)


class UNet(nn.Module):
  """Predicts eps, v or x0 from noisy latents.

  Takes latents [b, h, w, in_channels] scaled by c_in, timestep [b] (0..999, may
  be fractional), context [b, n, context_dim] and vector [b, vector_dim]; gives
  [b, h, w, out_channels] in float32. Nets with guidance_embed_dim are told the
  guidance scale, one for all, and predict what others do when guided by it.

  Keys and values of the context stand in the collection `context` after a call
  where it is mutable; with it, the next calls take None for the context.
  """

  config: UNetConfig

  @nn.compact
  def __call__(self, latents, timestep, context, vector, guidance_scale=1.0):
    config = self.config
    levels = len(config.block_out_channels)

    # Embed: the timestep and the vector meet as a sum.
    t = layers.sinusoid(timestep, config.block_out_channels[0])
    if config.guidance_embed_dim:
      scale = jnp.broadcast_to(guidance_scale, timestep.shape)
      guidance = guidance_sinusoid(scale, config.guidance_embed_dim)
    else:
      guidance = None
    temb = Embedding(config, name='time_embedding')(t, guidance)
    temb = temb + Embedding(config, name='add_embedding')(vector)
    channels = config.block_out_channels[0]
    x = layers.conv(config, channels, 'conv_in')(latents)

    # Down, keeping every output for the way up.
    skips = [x]
    for i in range(levels):
      level = Level(config, i, False, i < levels - 1, name=f'down_blocks_{i}')
      x, outputs = level(x, temb, context)
      skips += outputs

    x = MidBlock(config, name='mid_block')(x, temb, context)

    # Up; an odd size was rounded up on the way down, so the skip tells it.
    for i in range(levels):
      n = config.layers_per_block + 1
      taken, skips = skips[-n:], skips[:-n]
      size = skips[-1].shape[1:3] if skips else None
      last = i == levels - 1
      level = Level(
        config, levels - 1 - i, True, not last, name=f'up_blocks_{i}'
      )
      x, _ = level(x, temb, context, taken, size)

    x = nn.silu(layers.group_norm(config, 1e-5, 'conv_norm_out')(x))
    x = layers.conv(
      config, config.out_channels, 'conv_out', kernel_init=layers.zeros
    )(x)
    return x.astype(jnp.float32)
