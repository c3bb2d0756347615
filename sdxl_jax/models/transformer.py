"""The transformer blocks of the UNet."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.models import (
  attention,
  block_stack,
  layers,
  written_gradients,
)

STACK = 'transformer_blocks'
Pixels = Float[ArrayLike, 'b h w c']
Tokens = Float[Array, 'b n c']
Context = Float[ArrayLike, 'b m context'] | None


def project(
  config: Any, name: str, features: int, x: Float[ArrayLike, 'b n inputs']
) -> Float[Array, 'b n {features}']:
  """Applies a linear layer without bias."""
  dense = layers.dense(config, features, name, use_bias=False)
  return layers.keep(dense(x))


class Attention(nn.Module):
  """Multi-head attention of x to context; q, k, v have no bias.

  With `cache_kv`, k and v of a context are stored in the collection `context`
  if it is mutable, and are read from there if the context is None.
  """

  config: Any  # unet.UNetConfig
  num_heads: int
  cache_kv: bool = False

  @nn.compact
  def __call__(self, x: Tokens, context: Context) -> Tokens:
    c = x.shape[-1]
    q = project(self.config, 'to_q', c, x)
    # Keys and values of a constant context are computed once.
    if context is None:
      k, v = (self.get_variable('context', name) for name in 'kv')
    else:
      k, v = (project(self.config, f'to_{n}', c, context) for n in 'kv')
    if self.cache_kv and self.is_mutable_collection('context'):
      self.put_variable('context', 'k', k)
      self.put_variable('context', 'v', v)
    x = attention.attention(q, k, v, self.num_heads, self.config.attention)
    return layers.keep(layers.dense(self.config, c, 'to_out_0')(x))


class GEGLU(nn.Module):
  """value * gelu(gate), both linear in x (Shazeer 2020, arXiv 2002.05202)."""

  config: Any  # unet.UNetConfig
  features: int

  @nn.compact
  def __call__(self, x: Tokens) -> Float[Array, 'b n {self.features}']:
    x = layers.dense(self.config, 2 * self.features, 'proj')(x)
    return written_gradients.geglu(layers.keep(x))


class FeedForward(nn.Module):
  """GEGLU to four times the width, and back."""

  config: Any  # unet.UNetConfig

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    c = x.shape[-1]
    x = GEGLU(self.config, 4 * c, name='net_0')(x)
    return layers.keep(layers.dense(self.config, c, 'net_2')(x))


class BasicTransformerBlock(nn.Module):
  """Self-attention, cross-attention, feed-forward; norm before, add after."""

  config: Any  # unet.UNetConfig
  num_heads: int

  @nn.compact
  def __call__(self, x: Tokens, context: Context) -> tuple[Tokens, None]:
    h = layers.LayerNorm(self.config, name='norm1')(x)
    x = x + Attention(self.config, self.num_heads, name='attn1')(h, h)
    h = layers.LayerNorm(self.config, name='norm2')(x)
    cross = Attention(self.config, self.num_heads, cache_kv=True, name='attn2')
    x = x + cross(h, context)
    h = layers.LayerNorm(self.config, name='norm3')(x)
    x = x + FeedForward(self.config, name='ff')(h)
    return x, None


class Transformer2D(nn.Module):
  """Applies transformer blocks to the pixels as tokens, row by row."""

  config: Any  # unet.UNetConfig
  num_heads: int
  depth: int

  @nn.compact
  def __call__(self, x: Pixels, context: Context) -> Pixels:
    b, h, w, c = x.shape
    # Image to tokens.
    tokens = layers.group_norm(self.config, 1e-6, 'norm')(x)
    tokens = tokens.reshape(b, h * w, c)
    tokens = layers.dense(self.config, c, 'proj_in')(tokens)
    # The stack, then tokens to image; proj_out starts at zero.
    tokens = self.blocks(tokens, context)
    tokens = layers.dense(self.config, c, 'proj_out', kernel_init=layers.zeros)(
      tokens
    )
    return x + tokens.reshape(b, h, w, c)

  def blocks(self, x: Tokens, context: Context) -> Tokens:
    """Applies the stack, as one loop or block by block."""
    block = BasicTransformerBlock
    # A loop compiles one block instead of `depth`.
    if self.config.scan_blocks and is_plain_call(self, context):
      return self.loop(x, context)
    if self.config.scan_blocks:
      block = layers.scan_blocks(
        block, self.config, self.depth, self.config.scan_unroll
      )
      x, _ = block(self.config, self.num_heads, name=STACK)(x, context)
      return x
    block = layers.maybe_remat(block, self.config.remat)
    for i in range(self.depth):
      x, _ = block(self.config, self.num_heads, name=f'{STACK}_{i}')(x, context)
    return x

  def loop(self, x: Tokens, context: Context) -> Tokens:
    """Applies the stack as a loop with a backward pass of its own."""
    block = BasicTransformerBlock(
      self.config, self.num_heads, parent=None, name=STACK
    )

    def apply(variables, x, context):
      return block.apply(variables, x, context)[0]

    variables = {
      collection: tree[STACK]
      for collection, tree in self.variables.items()
      if STACK in tree
    }
    unroll = min(self.depth, self.config.scan_unroll)
    apply = layers.maybe_checkpoint(apply, self.config.remat, unroll)
    return block_stack.apply(apply, variables, x, context, unroll)


def is_plain_call(module: Transformer2D, context: Context) -> bool:
  """Returns whether a call reads parameters, and no stored context, only."""
  makes = module.is_initializing() or module.is_mutable_collection('context')
  return not makes and context is not None
