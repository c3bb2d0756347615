"""Layers that UNet, autoencoder and text towers share; NHWC throughout.

Each net's frozen config carries `dtype` (compute), `param_dtype` (storage),
`attention` (implementation) and `remat`; layers take the config whole and read
only these. Norm statistics and softmax are float32 whatever the dtype.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdxl_jax.models import attention

# Uniform in +-1/sqrt(fan_in), PyTorch's default for Linear and Conv2d.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
zeros = nn.initializers.zeros


def is_product(primitive, *_, **params):
  """Whether a primitive is a convolution, or a matmul but for attention's."""
  if primitive is jax.lax.dot_general_p:
    _, (batch, _) = params['dimension_numbers']
    return not batch
  return primitive is jax.lax.conv_general_dilated_p


# What the backward pass keeps of a block; the rest is computed again. Norms and
# activations cost little to compute, and much to keep.
REMAT_POLICIES = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    is_product,
    jax.checkpoint_policies.save_only_these_names(attention.SAVED),
  ),
}


def sinusoid(scalars, width):
  """[...] > [..., width] float32: cos(s f_i), sin(s f_i), f_i = 10000^(-2i/w).

  Cosines first, and the divisor is width / 2 and not width / 2 - 1, as in
  timestep_embedding of the reference (sgm, diffusionmodules/util.py).
  """
  half = width // 2
  f = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = jnp.asarray(scalars, jnp.float32)[..., None] * f
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def dense(config, features, name, use_bias=True, kernel_init=fan_in_uniform):
  return nn.Dense(
    features,
    use_bias,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    kernel_init=kernel_init,
    name=name,
  )


def conv(
  config,
  features,
  name,
  size=3,
  stride=1,
  padding=1,
  kernel_init=fan_in_uniform,
  use_bias=True,
):
  return nn.Conv(
    features,
    (size, size),
    stride,
    padding,
    use_bias=use_bias,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    kernel_init=kernel_init,
    name=name,
  )


def group_norm(config, epsilon, name):
  return nn.GroupNorm(
    config.norm_num_groups,
    epsilon=epsilon,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels for large means
    name=name,
  )


def layer_norm(config, name):
  return nn.LayerNorm(
    epsilon=1e-5,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    use_fast_variance=False,
    name=name,
  )


def maybe_remat(module, policy, **kwargs):
  """The module class, its activations recomputed as the policy says."""
  if policy == 'none':
    return module
  return nn.remat(module, policy=REMAT_POLICIES[policy], **kwargs)


def scan_blocks(block, config, depth):
  """The block class `depth` times, as one scan: parameters gain a leading axis.

  The block maps (x, *broadcast) to (x, y). One copy is compiled, not `depth`.
  """
  block = maybe_remat(block, config.remat, prevent_cse=False)
  return nn.scan(
    block,
    variable_axes={'params': 0, 'context': 0, 'lora': 0},
    split_rngs={'params': True},
    in_axes=nn.broadcast,
    length=depth,
  )


class ResnetBlock2D(nn.Module):
  """GroupNorm, SiLU, conv, twice; `temb` shifts the channels in between."""

  config: object
  features: int
  epsilon: float

  @nn.compact
  def __call__(self, x, temb=None):
    h = nn.silu(group_norm(self.config, self.epsilon, 'norm1')(x))
    h = conv(self.config, self.features, 'conv1')(h)
    if temb is not None:
      shift = dense(self.config, self.features, 'time_emb_proj')(nn.silu(temb))
      h = h + shift[:, None, None]
    h = nn.silu(group_norm(self.config, self.epsilon, 'norm2')(h))
    h = conv(self.config, self.features, 'conv2', kernel_init=zeros)(h)
    if x.shape[-1] != self.features:
      x = conv(self.config, self.features, 'conv_shortcut', 1, padding=0)(x)
    return x + h


class Downsample2D(nn.Module):
  """Halves height and width; padding as the caller's net pads."""

  config: object
  padding: tuple[tuple[int, int], ...]

  @nn.compact
  def __call__(self, x):
    return conv(self.config, x.shape[-1], 'conv', 3, 2, self.padding)(x)


class Upsample2D(nn.Module):
  """Nearest neighbour to twice the size, or to `size` = one less, then conv."""

  config: object

  @nn.compact
  def __call__(self, x, size=None):
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    if size is not None:
      x = x[:, : size[0], : size[1]]
    return conv(self.config, x.shape[-1], 'conv')(x)


def gelu(x):
  """x Phi(x) by erf, as the reference has it, which is faster than by erfc."""
  wide = x.astype(jnp.float32)  # bfloat16 has too few digits for 1 + erf
  return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x):
  return x * jax.nn.sigmoid(1.702 * x)
