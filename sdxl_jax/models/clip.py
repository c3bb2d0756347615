"""The two text towers: CLIP ViT-L and OpenCLIP ViT-bigG (SDXL section 2.1)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from sdxl_jax.models import attention, layers


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
  """Defaults are CLIP ViT-L/14's text tower."""

  vocab_size: int = 49408
  max_position_embeddings: int = 77
  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  hidden_act: str = 'quick_gelu'  # or 'gelu', exact
  projection_dim: int | None = None  # None: pooled is not projected
  dtype: str = 'float32'
  param_dtype: str = 'float32'
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
ACTIVATIONS = {'quick_gelu': layers.quick_gelu, 'gelu': layers.gelu}


def normal(scale):
  return nn.initializers.normal(scale)


class Embeddings(nn.Module):
  config: CLIPTextConfig

  @nn.compact
  def __call__(self, ids):
    embed = lambda rows, scale, name: nn.Embed(
      rows,
      self.config.hidden_size,
      dtype=self.config.dtype,
      param_dtype=self.config.param_dtype,
      embedding_init=normal(scale),
      name=name,
    )
    tokens = embed(self.config.vocab_size, 0.02, 'token_embedding')(ids)
    rows = self.config.max_position_embeddings
    positions = embed(rows, 0.01, 'position_embedding')
    return tokens + positions(jnp.arange(ids.shape[-1]))


class SelfAttention(nn.Module):
  """Causal, with biases, and without a padding mask: what pads say matters."""

  config: CLIPTextConfig

  @nn.compact
  def __call__(self, x):
    config, c = self.config, x.shape[-1]
    q, k, v = (
      layers.dense(config, c, f'{n}_proj', kernel_init=normal(c**-0.5))(x)
      for n in 'qkv'
    )
    x = attention.attention(
      q, k, v, config.num_attention_heads, config.attention, causal=True
    )
    scale = c**-0.5 * (2 * config.num_hidden_layers) ** -0.5
    return layers.dense(config, c, 'out_proj', kernel_init=normal(scale))(x)


class MLP(nn.Module):
  config: CLIPTextConfig

  @nn.compact
  def __call__(self, x):
    config, c = self.config, x.shape[-1]
    fc1 = normal((2 * c) ** -0.5)
    fc2 = normal(c**-0.5 * (2 * config.num_hidden_layers) ** -0.5)
    x = layers.dense(config, config.intermediate_size, 'fc1', kernel_init=fc1)(
      x
    )
    x = ACTIVATIONS[config.hidden_act](x)
    return layers.dense(config, c, 'fc2', kernel_init=fc2)(x)


class EncoderLayer(nn.Module):
  """Returns the hidden state after the block and, to collect, before it."""

  config: CLIPTextConfig

  @nn.compact
  def __call__(self, x):
    before = x
    h = layers.layer_norm(self.config, 'layer_norm1')(x)
    x = x + SelfAttention(self.config, name='self_attn')(h)
    h = layers.layer_norm(self.config, 'layer_norm2')(x)
    x = x + MLP(self.config, name='mlp')(h)
    return x, before


class Encoder(nn.Module):
  config: CLIPTextConfig

  @nn.compact
  def __call__(self, x):
    depth = self.config.num_hidden_layers
    stack = layers.scan_blocks(EncoderLayer, self.config, depth)
    x, before = stack(self.config, name='layers')(x)
    return jnp.concatenate([before, x[None]])


class TextModel(nn.Module):
  config: CLIPTextConfig

  @nn.compact
  def __call__(self, ids):
    x = Embeddings(self.config, name='embeddings')(ids)
    hidden_states = Encoder(self.config, name='encoder')(x)
    last = layers.layer_norm(self.config, 'final_layer_norm')(hidden_states[-1])
    # EOS has the largest id; the first one ends the prompt.
    eos = jnp.argmax(ids, axis=-1)
    return hidden_states, last[jnp.arange(len(ids)), eos]


class CLIPText(nn.Module):
  """ids [b, 77] > hidden_states [layers + 1, b, 77, c], pooled [b, c or proj].

  hidden_states[k] enters block k; the last one leaves the last block, before
  the final norm. SDXL's context is hidden_states[-2].
  """

  config: CLIPTextConfig

  @nn.compact
  def __call__(self, ids):
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
