"""Layers that UNet, autoencoder and text encoders share; NHWC throughout.

Each net's frozen config has `dtype` (compute), `param_dtype` (storage),
`attention` (implementation) and `remat`, and some `weights_dtype` (storage of
kernels, see stored_kernels.py); layers take the config and read only these
fields. Norm statistics and softmax are always float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike, Float, Num

from sdxl_jax.models import attention, stored_kernels, written_gradients

# Uniform in +-1/sqrt(fan_in), PyTorch's default for Linear and Conv2d.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
zeros = nn.initializers.zeros


PRODUCT = 'product'


def keep(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Names a product with its bias, so that the policy 'dots' stores it.

  A policy that stores the results of matmuls would store them without the bias,
  which the backward pass would have to add again.
  """
  return checkpoint_name(x, PRODUCT)


def is_convolution(primitive: Any, *_: Any, **params: Any) -> bool:
  """Returns whether a primitive is a convolution."""
  return primitive is jax.lax.conv_general_dilated_p


# What of a block is stored for the backward pass; the rest is computed again.
# Norms and activations cost little to compute, and much to store.
REMAT_POLICIES = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    is_convolution,
    jax.checkpoint_policies.save_only_these_names(PRODUCT, attention.SAVED),
  ),
}


def sinusoid(
  scalars: Num[ArrayLike, '*dims'], width: int
) -> Float[Array, '*dims {width}']:
  """Embeds scalars s as cos(s f_i), sin(s f_i), f_i = 10000^(-2i/width).

  Cosines first, and the divisor is width / 2 and not width / 2 - 1, as in
  timestep_embedding of the reference (sgm, diffusionmodules/util.py).
  """
  half = width // 2
  f = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = jnp.asarray(scalars, jnp.float32)[..., None] * f
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def dense(
  config: Any,
  features: int,
  name: str | None,
  use_bias: bool = True,
  kernel_init: Callable = fan_in_uniform,
) -> nn.Module:
  """Makes a linear layer."""
  types = dict(dtype=config.dtype, param_dtype=config.param_dtype, name=name)
  if stored := stored_kernels.type_of(config):
    return stored_kernels.StoredDense(
      features, use_bias=use_bias, stored=stored, **types
    )
  return nn.Dense(features, use_bias, kernel_init=kernel_init, **types)


def conv(
  config: Any,
  features: int,
  name: str | None,
  size: int = 3,
  stride: int = 1,
  padding: int | Sequence[tuple[int, int]] = 1,
  kernel_init: Callable = fan_in_uniform,
  use_bias: bool = True,
) -> nn.Module:
  """Makes a convolution with a square kernel."""
  types = dict(dtype=config.dtype, param_dtype=config.param_dtype, name=name)
  if stored := stored_kernels.type_of(config):
    return stored_kernels.StoredConv(
      features,
      use_bias=use_bias,
      stored=stored,
      size=size,
      stride=stride,
      padding=padding,
      **types,
    )
  return nn.Conv(
    features,
    (size, size),
    stride,
    padding,
    use_bias=use_bias,
    kernel_init=kernel_init,
    **types,
  )


def group_norm(config: Any, epsilon: float, name: str | None) -> nn.GroupNorm:
  """Makes a group norm over config.norm_num_groups."""
  return nn.GroupNorm(
    config.norm_num_groups,
    epsilon=epsilon,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels for large means
    name=name,
  )


class LayerNorm(nn.Module):
  """Normalises each pixel or token over its channels."""

  config: Any

  @nn.compact
  def __call__(self, x: Float[ArrayLike, '*rows c']) -> Float[Array, '*rows c']:
    config, c = self.config, x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, c, config.param_dtype)
    bias = self.param('bias', zeros, c, config.param_dtype)
    return written_gradients.layer_norm(x, scale, bias, 1e-5, config.dtype)


def maybe_remat(
  module: type[nn.Module], policy: str, **kwargs: Any
) -> type[nn.Module]:
  """Returns the module class with the remat policy; 'none' for no remat."""
  if policy == 'none':
    return module
  return nn.remat(module, policy=REMAT_POLICIES[policy], **kwargs)


def maybe_checkpoint(
  function: Callable, policy: str, unroll: int = 1
) -> Callable:
  """Returns a function with the remat policy, for the body of a loop.

  Args:
    function: the body.
    policy: as of maybe_remat.
    unroll: bodies that are compiled for each round of the loop.
  """
  if policy == 'none':
    return function
  # XLA merges the recomputation with the first computation where no loop keeps
  # them apart, as in a stack that is wholly unrolled.
  return jax.checkpoint(
    function, policy=REMAT_POLICIES[policy], prevent_cse=unroll > 1
  )


def scan_blocks(
  block: type[nn.Module], config: Any, depth: int, unroll: int = 1
) -> type[nn.Module]:
  """Returns a class that applies `depth` blocks as one scan.

  The block maps (x, *broadcast) to (x, y). Parameters gain a leading axis, and
  `unroll` copies of the block are compiled instead of `depth`.
  """
  unroll = min(depth, unroll)
  # XLA undoes the rematerialisation of blocks that stand side by side.
  block = maybe_remat(block, config.remat, prevent_cse=unroll > 1)
  return nn.scan(
    block,
    variable_axes={'params': 0, 'context': 0, 'lora': 0},
    split_rngs={'params': True},
    in_axes=nn.broadcast,
    length=depth,
    unroll=unroll,
  )


class ResnetBlock2D(nn.Module):
  """Applies GroupNorm, SiLU, conv twice; `temb` shifts the channels between."""

  config: Any
  features: int
  epsilon: float

  @nn.compact
  def __call__(
    self,
    x: Float[ArrayLike, 'b h w c'],
    temb: Float[ArrayLike, 'b width'] | None = None,
  ) -> Float[Array, 'b h w {self.features}']:
    h = nn.silu(group_norm(self.config, self.epsilon, 'norm1')(x))
    h = conv(self.config, self.features, 'conv1')(h)
    # One shift for each channel, the same at all pixels.
    if temb is not None:
      shift = dense(self.config, self.features, 'time_emb_proj')(nn.silu(temb))
      h = h + shift[:, None, None]
    h = nn.silu(group_norm(self.config, self.epsilon, 'norm2')(h))
    h = conv(self.config, self.features, 'conv2', kernel_init=zeros)(h)
    # The residual needs the new number of channels.
    if x.shape[-1] != self.features:
      x = conv(self.config, self.features, 'conv_shortcut', 1, padding=0)(x)
    return x + h


class Downsample2D(nn.Module):
  """Halves height and width by a strided convolution."""

  config: Any
  padding: tuple[tuple[int, int], ...]

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b height width c']
  ) -> Float[Array, 'b h w c']:
    return conv(self.config, x.shape[-1], 'conv', 3, 2, self.padding)(x)


class Upsample2D(nn.Module):
  """Doubles the size by nearest neighbour, then applies a convolution.

  `size` cuts the doubled size by up to one row and one column.
  """

  config: Any

  @nn.compact
  def __call__(
    self, x: Float[ArrayLike, 'b h w c'], size: tuple[int, int] | None = None
  ) -> Float[Array, 'b height width c']:
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    if size is not None:
      x = x[:, : size[0], : size[1]]
    return conv(self.config, x.shape[-1], 'conv')(x)


def quick_gelu(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Returns x sigmoid(1.702 x), the activation of CLIP-L."""
  return x * jax.nn.sigmoid(1.702 * x)
