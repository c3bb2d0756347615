"""The autoencoder of SDXL: f8, four channels (SDXL paper, section 2.4)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.models import attention, latent_scaling, layers, tiny_vae


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """The defaults are SDXL's; one channel count per resolution level."""

  in_channels: int = 3
  latent_channels: int = 4
  block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
  layers_per_block: int = 2  # one more in the decoder
  norm_num_groups: int = 32
  scaling_factor: float = 0.13025  # these three: see latent_scaling
  latents_mean: tuple[float, ...] | None = None
  latents_std: tuple[float, ...] | None = None
  # float16 is for autoencoders that were made for it: SDXL's own overflows.
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  attention: str = 'xla'
  remat: str = 'none'

  def __post_init__(self):
    counts = {len(x or ()) for x in (self.latents_mean, self.latents_std)}
    if counts not in ({0}, {self.latent_channels}):
      raise ValueError(
        f'latents_mean is {self.latents_mean} and latents_std '
        f'{self.latents_std}: set both, one value for each of '
        f'{self.latent_channels} latent_channels, or neither'
      )

  @property
  def downscale(self) -> int:
    """Pixels per latent along each side."""
    return 2 ** (len(self.block_out_channels) - 1)


Pixels = Float[ArrayLike, 'b h w c']


class Attention(nn.Module):
  """Single-head self-attention over all pixels, with its residual."""

  config: VAEConfig

  @nn.compact
  def __call__(self, x: Pixels) -> Pixels:
    b, h, w, c = x.shape
    y = layers.group_norm(self.config, 1e-6, 'group_norm')(x)
    y = y.reshape(b, h * w, c)
    q, k, v = (layers.dense(self.config, c, f'to_{n}')(y) for n in 'qkv')
    y = attention.attention(q, k, v, 1, self.config.attention)
    y = layers.dense(self.config, c, 'to_out_0')(y)
    return x + y.reshape(b, h, w, c)


class MidBlock(nn.Module):
  """Residual, attention, residual at the lowest resolution."""

  config: VAEConfig

  @nn.compact
  def __call__(self, x: Pixels) -> Pixels:
    resnet = layers.maybe_remat(layers.ResnetBlock2D, self.config.remat)
    features = x.shape[-1]
    x = resnet(self.config, features, 1e-6, name='resnets_0')(x)
    x = Attention(self.config, name='attentions_0')(x)
    return resnet(self.config, features, 1e-6, name='resnets_1')(x)


class Level(nn.Module):
  """Residual blocks at one resolution, then up, down or neither."""

  config: VAEConfig
  features: int
  resample: str | None

  @nn.compact
  def __call__(self, x: Pixels, depth: int) -> Float[Array, 'b _ _ _']:
    resnet = layers.maybe_remat(layers.ResnetBlock2D, self.config.remat)
    for i in range(depth):
      x = resnet(self.config, self.features, 1e-6, name=f'resnets_{i}')(x)
    if self.resample == 'up':
      x = layers.Upsample2D(self.config, name='upsamplers_0')(x)
    elif self.resample == 'down':
      # Pads at the bottom and the right only, unlike the UNet.
      pad = ((0, 1), (0, 1))
      x = layers.Downsample2D(self.config, pad, name='downsamplers_0')(x)
    return x


class Encoder(nn.Module):
  """Maps an image to the input of quant_conv."""

  config: VAEConfig

  @nn.compact
  def __call__(
    self, x: Float[ArrayLike, 'b height width image']
  ) -> Float[Array, 'b h w c']:
    config, channels = self.config, self.config.block_out_channels
    x = layers.conv(config, channels[0], 'conv_in')(x)
    # Down, then mid, then out.
    for i, features in enumerate(channels):
      down = 'down' if i < len(channels) - 1 else None
      level = Level(config, features, down, name=f'down_blocks_{i}')
      x = level(x, config.layers_per_block)
    x = MidBlock(config, name='mid_block')(x)
    x = nn.silu(layers.group_norm(config, 1e-6, 'conv_norm_out')(x))
    return layers.conv(config, 2 * config.latent_channels, 'conv_out')(x)


class Decoder(nn.Module):
  """Maps the output of post_quant_conv to an image."""

  config: VAEConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c']
  ) -> Float[Array, 'b height width image']:
    config, channels = self.config, self.config.block_out_channels[::-1]
    x = layers.conv(config, channels[0], 'conv_in')(x)
    # Mid, then up, then out.
    x = MidBlock(config, name='mid_block')(x)
    for i, features in enumerate(channels):
      up = 'up' if i < len(channels) - 1 else None
      level = Level(config, features, up, name=f'up_blocks_{i}')
      x = level(x, config.layers_per_block + 1)
    x = nn.silu(layers.group_norm(config, 1e-6, 'conv_norm_out')(x))
    return layers.conv(config, config.in_channels, 'conv_out')(x)


class VAE(nn.Module):
  """Encodes an image in [-1, 1] to moments and decodes latents to an image."""

  config: VAEConfig

  def setup(self) -> None:
    config = self.config
    self.encoder = Encoder(config)
    self.decoder = Decoder(config)
    # 1 x 1 convolutions between the halves and the latents.
    self.quant_conv = layers.conv(
      config, 2 * config.latent_channels, None, 1, padding=0
    )
    self.post_quant_conv = layers.conv(
      config, config.latent_channels, None, 1, padding=0
    )

  def encode(
    self, image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w moments']:
    """Returns the posterior's mean and logvar, float32, unscaled."""
    return self.quant_conv(self.encoder(image)).astype(jnp.float32)

  def decode(
    self, x: Float[ArrayLike, 'b h w latents']
  ) -> Float[Array, 'b height width c']:
    """Decodes scaled latents, the UNet's input, to an image, float32."""
    z = latent_scaling.unscale(self.config, x)
    return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

  def __call__(
    self, image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b height width c']:
    """Reconstructs an image from the mean; initialises every parameter."""
    mean, _ = latent_scaling.split(self.encode(image))
    return self.decode(latent_scaling.scale(self.config, mean))


@dataclasses.dataclass(frozen=True)
class PatchConfig:
  """The identity autoencoder: patches of pixels folded into channels."""

  in_channels: int = 3
  patch: int = 4
  # Gain of the difference from the patch's mean colour. Images have little of
  # it; decoding divides by the gain, and so reduces the noise a net leaves.
  detail: float = 1.0
  scaling_factor: float = 1.0
  # Not fields: without an encoder there is no mean to measure.
  latents_mean = latents_std = None

  @property
  def latent_channels(self) -> int:
    """Channels of a latent: those of all pixels of a patch."""
    return self.in_channels * self.patch**2

  @property
  def downscale(self) -> int:
    """Pixels per latent along each side."""
    return self.patch


class PatchVAE(nn.Module):
  """Takes the place of VAE for nets on pixels; it has no parameters."""

  config: PatchConfig

  def encode(
    self, image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w moments']:
    """Folds p x p patches into channels; the posterior has no variance."""
    b, h, w, c = image.shape
    p = self.config.patch
    # [b, h/p, w/p, p, p, c], one patch per latent.
    x = image.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
    x = weigh_detail(x, self.config.detail)
    mean = x.reshape(b, h // p, w // p, -1)
    # logvar -30 is no variance, see latent_scaling.split.
    return jnp.concatenate([mean, jnp.full_like(mean, -30.0)], axis=-1)

  def decode(
    self, x: Float[ArrayLike, 'b h w latents']
  ) -> Float[ArrayLike, 'b height width c']:
    """Unfolds channels into p x p patches."""
    b, h, w, _ = x.shape
    p = self.config.patch
    x = latent_scaling.unscale(self.config, x).reshape(b, h, w, p, p, -1)
    x = weigh_detail(x, 1 / self.config.detail)
    return x.swapaxes(2, 3).reshape(b, h * p, w * p, -1)

  def __call__(
    self, image: Float[ArrayLike, 'b height width c']
  ) -> Float[ArrayLike, 'b height width c']:
    """Encodes and decodes an image."""
    mean, _ = latent_scaling.split(self.encode(image))
    return self.decode(latent_scaling.scale(self.config, mean))


def weigh_detail(
  x: Float[ArrayLike, '*b p p c'], gain: float
) -> Float[ArrayLike, '*b p p c']:
  """Multiplies the difference of each pixel from its patch's mean colour."""
  mean = x.mean(axis=(-3, -2), keepdims=True)
  return x + (gain - 1) * (x - mean)


AnyConfig = VAEConfig | PatchConfig | tiny_vae.TinyConfig


def make_vae(config: AnyConfig) -> VAE | PatchVAE | tiny_vae.TinyVAE:
  """Makes the module that the config describes."""
  modules = {PatchConfig: PatchVAE, tiny_vae.TinyConfig: tiny_vae.TinyVAE}
  return modules.get(type(config), VAE)(config)
