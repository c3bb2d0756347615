"""The two text encoders: CLIP ViT-L and OpenCLIP ViT-bigG (SDXL, 2.1)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from sdxl_jax.models import attention, layers, written_gradients


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
  """The defaults are the text encoder of CLIP ViT-L/14."""

  vocab_size: int = 49408
  max_position_embeddings: int = 77
  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  hidden_act: str = 'quick_gelu'  # or 'gelu', exact
  projection_dim: int | None = None  # None: pooled is not projected
  eos_token_id: int = 2  # where the text is pooled, see `end_of_text`
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  weights_dtype: str | None = None  # of kernels, see unet.UNetConfig
  attention: str = 'xla'
  remat: str = 'none'


VIT_L = CLIPTextConfig()
VIT_BIGG = CLIPTextConfig(
  hidden_size=1280,
  intermediate_size=5120,
  num_hidden_layers=32,
  num_attention_heads=20,
  hidden_act='gelu',
  projection_dim=1280,
)
LARGEST_ID = 2  # as eos_token_id
ACTIVATIONS = {'quick_gelu': layers.quick_gelu, 'gelu': written_gradients.gelu}


def end_of_text(
  config: CLIPTextConfig, ids: Int[ArrayLike, 'b n']
) -> Int[Array, ' b']:
  """Returns the position at which each text is pooled.

  It is the first one of `eos_token_id`. The id 2 stands for the first one of
  the largest id: OpenAI's and OpenCLIP's code have it so, and their config.json
  names 2. Both are the end of the text as long as the vocabulary ends with it;
  tokens that were added later have larger ids.
  """
  if config.eos_token_id == LARGEST_ID:
    return jnp.argmax(ids, axis=-1)
  return jnp.argmax(ids == config.eos_token_id, axis=-1)


def pooling(config: CLIPTextConfig) -> int:
  """Returns the same id of configs that pool every text at the same place."""
  is_last = config.eos_token_id == config.vocab_size - 1
  return LARGEST_ID if is_last else config.eos_token_id


def normal(scale: float) -> nn.initializers.Initializer:
  """Returns an initialiser N(0, scale^2)."""
  return nn.initializers.normal(scale)


def embedding(config: Any, rows: int, scale: float, name: str) -> nn.Embed:
  """Makes a table of `rows` embeddings."""
  return nn.Embed(
    rows,
    config.hidden_size,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    embedding_init=normal(scale),
    name=name,
  )


class Embeddings(nn.Module):
  """Adds the embeddings of tokens and of positions."""

  config: CLIPTextConfig

  @nn.compact
  def __call__(self, ids: Int[ArrayLike, 'b n']) -> Float[Array, 'b n c']:
    config = self.config
    tokens = embedding(config, config.vocab_size, 0.02, 'token_embedding')
    positions = embedding(
      config, config.max_position_embeddings, 0.01, 'position_embedding'
    )
    return tokens(ids) + positions(jnp.arange(ids.shape[-1]))


class SelfAttention(nn.Module):
  """Self-attention with biases and without a mask of the padding.

  SDXL was trained on the outputs at padding tokens too. It is causal of texts,
  and not of images.
  """

  config: Any  # CLIPTextConfig, or clip_image.CLIPImageConfig
  causal: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    config, c = self.config, x.shape[-1]
    q, k, v = (
      layers.keep(
        layers.dense(config, c, f'{n}_proj', kernel_init=normal(c**-0.5))(x)
      )
      for n in 'qkv'
    )
    x = attention.attention(
      q, k, v, config.num_attention_heads, config.attention, self.causal
    )
    scale = c**-0.5 * (2 * config.num_hidden_layers) ** -0.5
    out = layers.dense(config, c, 'out_proj', kernel_init=normal(scale))(x)
    return layers.keep(out)


class MLP(nn.Module):
  """Two linear layers with the activation between them."""

  config: Any  # CLIPTextConfig, or clip_image.CLIPImageConfig

  @nn.compact
  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    config, c = self.config, x.shape[-1]
    # OpenAI's initialisation, by width and depth.
    init_1 = normal((2 * c) ** -0.5)
    init_2 = normal(c**-0.5 * (2 * config.num_hidden_layers) ** -0.5)
    width = config.intermediate_size
    x = layers.keep(layers.dense(config, width, 'fc1', kernel_init=init_1)(x))
    x = ACTIVATIONS[config.hidden_act](x)
    return layers.keep(layers.dense(config, c, 'fc2', kernel_init=init_2)(x))


class EncoderLayer(nn.Module):
  """Returns the hidden state after the block and, to collect, before it."""

  config: Any  # CLIPTextConfig, or clip_image.CLIPImageConfig
  causal: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b n c']
  ) -> tuple[Float[Array, 'b n c'], Float[Array, 'b n c']]:
    before = x
    h = layers.LayerNorm(self.config, name='layer_norm1')(x)
    x = x + SelfAttention(self.config, self.causal, name='self_attn')(h)
    h = layers.LayerNorm(self.config, name='layer_norm2')(x)
    x = x + MLP(self.config, name='mlp')(h)
    return x, before


class Encoder(nn.Module):
  """Applies all blocks and returns every hidden state, the input first."""

  config: Any  # CLIPTextConfig, or clip_image.CLIPImageConfig
  causal: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'states b n c']:
    # Each block also returns its input, which the scan stacks.
    depth = self.config.num_hidden_layers
    stack = layers.scan_blocks(EncoderLayer, self.config, depth)
    x, before = stack(self.config, self.causal, name='layers')(x)
    return jnp.concatenate([before, x[None]])


class TextModel(nn.Module):
  """Returns every hidden state, and the last one at the end of the text."""

  config: CLIPTextConfig

  @nn.compact
  def __call__(
    self, ids: Int[ArrayLike, 'b n']
  ) -> tuple[Float[Array, 'states b n c'], Float[Array, 'b c']]:
    x = Embeddings(self.config, name='embeddings')(ids)
    hidden_states = Encoder(self.config, name='encoder')(x)
    norm = layers.LayerNorm(self.config, name='final_layer_norm')
    last = norm(hidden_states[-1])
    end = end_of_text(self.config, ids)
    return hidden_states, last[jnp.arange(len(ids)), end]


class CLIPText(nn.Module):
  """Encodes token ids to (hidden_states, pooled).

  hidden_states[k] is the input of block k; the last one is the output of the
  last block, before the final norm. SDXL's context is hidden_states[-2].
  """

  config: CLIPTextConfig

  @nn.compact
  def __call__(
    self, ids: Int[ArrayLike, 'b n']
  ) -> tuple[Float[Array, 'states b n c'], Float[Array, 'b p']]:
    hidden_states, pooled = TextModel(self.config, name='text_model')(ids)
    if self.config.projection_dim:
      pooled = layers.dense(
        self.config,
        self.config.projection_dim,
        'text_projection',
        use_bias=False,
        kernel_init=normal(self.config.hidden_size**-0.5),
      )(pooled)
    return hidden_states, pooled
