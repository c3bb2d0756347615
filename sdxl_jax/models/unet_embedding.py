"""Embeds what a UNet takes for all pixels: timestep, vector, guidance scale.

Configs are unet.UNetConfig.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from sdxl_jax.models import layers


def embed(
  config: Any,
  timestep: Num[ArrayLike, ' b'],
  vector: Float[ArrayLike, 'b v'],
  guidance_scale: Float[ArrayLike, ''] = 1.0,
) -> Float[Array, 'b width']:
  """Embeds timestep and vector, which meet as a sum, within a module.

  Args:
    config: of the net.
    timestep: 0..999, may be fractional.
    vector: of micro_conditioning.
    guidance_scale: read by nets with guidance_embed_dim alone.
  """
  t = layers.sinusoid(timestep, config.block_out_channels[0])
  if config.guidance_embed_dim:
    scale = jnp.broadcast_to(guidance_scale, timestep.shape)
    guidance = guidance_sinusoid(scale, config.guidance_embed_dim)
  else:
    guidance = None
  embedding = embedding_config(config)
  temb = Embedding(embedding, name='time_embedding')(t, guidance)
  return temb + Embedding(embedding, name='add_embedding')(vector)


def embedding_config(config: Any) -> Any:
  """Returns the config of the embeddings of timestep and vector.

  They are float32 in a UNet of float16, and in none stored in 8 bits: every
  block depends on them, and they are four small matmuls.
  """
  config = dataclasses.replace(config, weights_dtype=None)
  if config.dtype != 'float16':
    return config
  return dataclasses.replace(config, dtype='float32')


class Embedding(nn.Module):
  """Linear, SiLU, Linear: for timestep (with guidance) and for the vector."""

  config: Any

  @nn.compact
  def __call__(
    self,
    x: Float[ArrayLike, 'b c'],
    guidance: Float[Array, 'b g'] | None = None,
  ) -> Float[Array, 'b width']:
    width = 4 * self.config.block_out_channels[0]
    if guidance is not None:
      project = layers.dense(self.config, x.shape[-1], 'cond_proj', False)
      x = x + project(guidance)
    x = nn.silu(layers.dense(self.config, width, 'linear_1')(x))
    return layers.dense(self.config, width, 'linear_2')(x)


# Meng et al. 2022, On Distillation of Guided Diffusion Models, with w embedded
# as in Luo et al. 2023, Latent Consistency Models.
def guidance_sinusoid(
  guidance_scale: Num[ArrayLike, ' b'], width: int
) -> Float[Array, 'b {width}']:
  """Embeds w = guidance_scale - 1, float32.

  sin(1000 w f_i), cos(1000 w f_i), f_i = 10000^(-2i / (width - 2)): sines first
  and another divisor, unlike the timestep's.
  """
  f = np.float32(np.logspace(0, -4, width // 2))
  angles = 1000 * (jnp.float32(guidance_scale) - 1)[..., None] * f
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
