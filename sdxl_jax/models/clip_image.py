"""CLIP's image encoder, a ViT (Radford et al. 2021, arXiv 2103.00020).

Its blocks are those of the text encoder without the causal mask. Modules have
the names of transformers' CLIPVisionModelWithProjection.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.models import clip, layers

# Of the three channels in [0, 1], by which images are normalised.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class CLIPImageConfig:
  """The defaults are CLIP ViT-B/32."""

  image_size: int = 224  # px
  patch_size: int = 32  # px
  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  hidden_act: str = 'quick_gelu'  # or 'gelu', exact
  projection_dim: int = 512
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  attention: str = 'xla'
  remat: str = 'none'

  @property
  def tokens(self) -> int:
    """Tokens of an image: one of the class, and one of each patch."""
    return 1 + (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class CLIP:
  """A pair of encoders with one space of embeddings."""

  image: CLIPImageConfig
  text: clip.CLIPTextConfig

  def embed_images(
    self, params: dict[str, Any], image: Float[ArrayLike, 'b h w 3']
  ) -> Float[Array, 'b p']:
    """Embeds images in [0, 1]; each embedding has length 1.

    Args:
      params: {'image': parameters}.
      image: of the encoder's size.
    """
    shift, scale = jnp.array(MEAN), jnp.array(STD)
    image = (jnp.asarray(image) - shift) / scale
    net = CLIPImage(self.image)
    return unit(net.apply({'params': params['image']}, image))

  def embed_texts(
    self, params: dict[str, Any], ids: Any
  ) -> Float[Array, 'b p']:
    """Embeds token ids [b, 77]; each embedding has length 1.

    Args:
      params: {'text': parameters}.
      ids: int32, one row per text.
    """
    net = clip.CLIPText(self.text)
    _, pooled = net.apply({'params': params['text']}, ids)
    return unit(pooled)

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Returns fresh parameters, {'image': parameters, 'text': parameters}."""
    size = self.image.image_size
    image, ids = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 77), jnp.int32)
    return {
      'image': CLIPImage(self.image).init(key, image)['params'],
      'text': clip.CLIPText(self.text).init(key, ids)['params'],
    }


class Embeddings(nn.Module):
  """Embeds patches, puts the class before them, and adds positions."""

  config: CLIPImageConfig

  @nn.compact
  def __call__(
    self, image: Float[ArrayLike, 'b h w 3']
  ) -> Float[Array, 'b n c']:
    config, c, size = self.config, self.config.hidden_size, image.shape[1:3]
    if size != (config.image_size, config.image_size):
      raise ValueError(
        f'the image encoder takes {config.image_size} x {config.image_size} '
        f'px, not {size[0]} x {size[1]}'
      )
    patches = nn.Conv(
      c,
      (config.patch_size, config.patch_size),
      config.patch_size,
      'VALID',
      use_bias=False,
      kernel_init=clip.normal(0.02),
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      name='patch_embedding',
    )(jnp.asarray(image, config.dtype))
    of_class = self.param(
      'class_embedding', clip.normal(c**-0.5), (c,), config.param_dtype
    )
    first = jnp.broadcast_to(of_class, (len(image), 1, c))
    x = jnp.concatenate(
      [first.astype(patches.dtype), patches.reshape(len(image), -1, c)], axis=1
    )
    positions = clip.embedding(
      config, config.tokens, 0.02, 'position_embedding'
    )
    return x + positions(jnp.arange(config.tokens))


class ImageModel(nn.Module):
  """Returns the last state of the class token, normalised."""

  config: CLIPImageConfig

  @nn.compact
  def __call__(self, image: Float[ArrayLike, 'b h w 3']) -> Float[Array, 'b c']:
    x = Embeddings(self.config, name='embeddings')(image)
    # transformers' name has this spelling.
    x = layers.LayerNorm(self.config, name='pre_layrnorm')(x)
    states = clip.Encoder(self.config, causal=False, name='encoder')(x)
    norm = layers.LayerNorm(self.config, name='post_layernorm')
    return norm(states[-1][:, 0])


class CLIPImage(nn.Module):
  """Embeds images, normalised by MEAN and STD, as [b, projection_dim]."""

  config: CLIPImageConfig

  @nn.compact
  def __call__(self, image: Float[ArrayLike, 'b h w 3']) -> Float[Array, 'b p']:
    pooled = ImageModel(self.config, name='vision_model')(image)
    return layers.dense(
      self.config,
      self.config.projection_dim,
      'visual_projection',
      use_bias=False,
      kernel_init=clip.normal(self.config.hidden_size**-0.5),
    )(pooled)


def unit(x: Float[Array, 'b p']) -> Float[Array, 'b p']:
  """Divides each row by its length, in float32."""
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def make_pair(
  image: CLIPImageConfig, width: int, depth: int, heads: int
) -> CLIP:
  """Makes a pair whose text encoder has the image encoder's other fields."""
  text = clip.CLIPTextConfig(
    hidden_size=width,
    intermediate_size=4 * width,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    hidden_act=image.hidden_act,
    projection_dim=image.projection_dim,
  )
  return CLIP(image, text)


_VIT_L = CLIPImageConfig(
  patch_size=14,
  hidden_size=1024,
  intermediate_size=4096,
  num_hidden_layers=24,
  num_attention_heads=16,
  projection_dim=768,
)
_VIT_H = CLIPImageConfig(
  patch_size=14,
  hidden_size=1280,
  intermediate_size=5120,
  num_hidden_layers=32,
  num_attention_heads=16,
  hidden_act='gelu',
  projection_dim=1024,
)
# OpenAI's, and OpenCLIP's ViT-H (Ilharco et al. 2021) of LAION-2B.
PAIRS = {
  'ViT-B/32': make_pair(CLIPImageConfig(), 512, 12, 8),
  'ViT-L/14': make_pair(_VIT_L, 768, 12, 12),
  'ViT-L/14@336': make_pair(
    dataclasses.replace(_VIT_L, image_size=336), 768, 12, 12
  ),
  'ViT-H-14': make_pair(_VIT_H, 1024, 24, 16),
}
