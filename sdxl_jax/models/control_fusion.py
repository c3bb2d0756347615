"""Fuses the images of several types that a union ControlNet takes.

ControlNetPlus (controlnet-union-sdxl-1.0), as ControlNetUnionModel of diffusers
computes it. Each image has a token, the mean of its features plus an embedding
of its type, which a transformer maps to a shift of the features' channels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from sdxl_jax.models import layers, unet_embedding

Features = Float[ArrayLike, 'b h w c']
Tokens = Float[ArrayLike, '*rows c']


def embed_types(
  config: Any, types: Int[ArrayLike, ' k']
) -> Float[Array, '1 width']:
  """Embeds which types are given, within a module; see unet_embedding.embed."""
  given = jnp.zeros(config.control_types).at[jnp.asarray(types)].set(1)
  sinusoids = layers.sinusoid(given, config.size_embed_dim).reshape(1, -1)
  embedding = unet_embedding.embedding_config(config)
  return unet_embedding.Embedding(embedding, name='control_add_embedding')(
    sinusoids
  )


def fuse(
  config: Any,
  embeddings: Float[ArrayLike, 'types c'],
  features: Sequence[Features],
  types: Int[ArrayLike, ' k'],
  scales: Float[ArrayLike, ' k'],
) -> Float[Array, 'b h w c']:
  """Returns the sum of the images' features, shifted, within a module.

  Args:
    config: of the net.
    embeddings: of all types.
    features: of each image.
    types: of each image.
    scales: of each image, where there are several.
  """
  config = dataclasses.replace(config, weights_dtype=None)
  embeddings = jnp.asarray(embeddings)[jnp.asarray(types)].astype(config.dtype)
  features = [jnp.asarray(x, config.dtype) for x in features]
  scales = jnp.asarray(scales, config.dtype)
  if len(features) == 1:  # its scale is that of the residuals
    scales = jnp.ones_like(scales)
  tokens = jnp.stack(
    [
      (x.mean((1, 2)) + e) * scale
      for x, e, scale in zip(features, embeddings, scales)
    ]
  )
  for i in range(config.fusion_layers):
    tokens = ResidualAttentionBlock(config, name=f'transformer_layes_{i}')(
      tokens
    )
  shifts = layers.dense(
    config, tokens.shape[-1], 'spatial_ch_projs', kernel_init=layers.zeros
  )(tokens)
  return sum(
    (x + shift[:, None, None]) * scale
    for x, shift, scale in zip(features, shifts, scales)
  )


class TokenAttention(nn.Module):
  """Attention in which each token attends to itself only.

  The parameters are those of torch.nn.MultiheadAttention. diffusers attends
  over the rows of the batch, not over the images of a row. If all rows have the
  same control image, their tokens are equal and attention returns the value,
  whatever queries and keys are, as here. With different images in a batch,
  diffusers would mix them.
  """

  config: Any  # controlnet.ControlNetConfig

  @nn.compact
  def __call__(self, x: Tokens) -> Float[Array, '*rows c']:
    config, c = self.config, x.shape[-1]
    types = config.param_dtype
    # Rows of queries, keys and values, output channels first.
    kernel = self.param(
      'in_proj_weight', nn.initializers.xavier_uniform(), (3 * c, c), types
    )
    bias = self.param('in_proj_bias', layers.zeros, (3 * c,), types)
    kernel, bias = kernel.astype(config.dtype), bias.astype(config.dtype)
    x = x.astype(config.dtype) @ kernel[2 * c :].T + bias[2 * c :]
    return layers.dense(config, c, 'out_proj')(x)


class Mlp(nn.Module):
  """Linear to four times the width, quick GELU, linear back."""

  config: Any

  @nn.compact
  def __call__(self, x: Tokens) -> Float[Array, '*rows c']:
    c = x.shape[-1]
    x = layers.quick_gelu(layers.dense(self.config, 4 * c, 'c_fc')(x))
    return layers.dense(self.config, c, 'c_proj')(x)


class ResidualAttentionBlock(nn.Module):
  """Attention and MLP; norm before, add after."""

  config: Any

  @nn.compact
  def __call__(self, x: Tokens) -> Float[Array, '*rows c']:
    h = layers.LayerNorm(self.config, name='ln_1')(x)
    x = x + TokenAttention(self.config, name='attn')(h)
    h = layers.LayerNorm(self.config, name='ln_2')(x)
    return x + Mlp(self.config, name='mlp')(h)
