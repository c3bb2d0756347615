"""Kernels that are stored in 8 bits, and multiplied in the type of a net.

A kernel W [..., out] is stored as q, of 8 bits, and a float32 scale of each
output channel, W = q * scale, by which products with q are multiplied. Both lie
in the parameters of its layer, as `kernel` and `kernel_scale`. Biases, norms
and embeddings stay as they are, and so do the first and the last layer of the
UNet and its embeddings, which are few.

  int8           whole numbers up to 127, symmetric about 0
  float8_e4m3fn  floats up to 448 with 3 binary digits
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

# The largest number of each type.
LARGEST = {'int8': 127, 'float8_e4m3fn': 448}
SCALE = 'kernel_scale'


class StoredLayer(nn.Module):
  """A layer whose kernel is stored in 8 bits; its subclasses apply it.

  Attributes:
    features: output channels.
    use_bias: whether a bias is added.
    dtype: of products.
    param_dtype: of the bias.
    stored: type of the kernel, one of LARGEST.
  """

  features: int
  use_bias: bool
  dtype: Any
  param_dtype: Any
  stored: str

  def stored_kernel(
    self, x: Array, shape: tuple[int, ...]
  ) -> tuple[Array, Array, Array]:
    """Returns input and stored kernel in the type of products, and the scale.

    Args:
      x: input of the layer.
      shape: of the kernel but for its output channels.
    """
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    shape = (*shape, self.features)
    q = self.param('kernel', zeros, shape, jnp.dtype(self.stored))
    scale = self.param(SCALE, ones, (self.features,), jnp.float32)
    x, q = wait(x, jnp.asarray(q))
    scale = jnp.asarray(scale)
    return x.astype(self.dtype), q.astype(self.dtype), scale

  def finish(self, product: Array, scale: Array) -> Array:
    """Returns the output of a product, float32, with the stored kernel."""
    y = (product * scale).astype(self.dtype)
    if not self.use_bias:
      return y
    zeros = nn.initializers.zeros
    bias = self.param('bias', zeros, (self.features,), self.param_dtype)
    return y + bias.astype(self.dtype)


def wait(x: Array, q: Array) -> tuple[Array, Array]:
  """Makes a kernel wait for the input of its layer, but on TPUs.

  All steps of a sampler share the kernels, and compilers of other devices would
  convert those of all layers before the first step. A TPU's converts a kernel
  within its product, unless it has to wait.
  """
  return jax.lax.platform_dependent(
    x,
    q,
    tpu=lambda x, q: (x, q),
    default=lambda x, q: tuple(jax.lax.optimization_barrier((x, q))),
  )


class StoredDense(StoredLayer):
  """A linear layer, as nn.Dense."""

  @nn.compact
  def __call__(self, x: Float[ArrayLike, '*b c']) -> Float[Array, '*b f']:
    x, q, scale = self.stored_kernel(jnp.asarray(x), (x.shape[-1],))
    product = jnp.dot(x, q, preferred_element_type=jnp.float32)
    return self.finish(product, scale)


class StoredConv(StoredLayer):
  """A convolution of [b, h, w, c] with a square kernel, as nn.Conv.

  Attributes:
    size, stride: of the kernel.
    padding: before and after both axes, or pairs of them.
  """

  size: int = 3
  stride: int = 1
  padding: Any = 1

  @nn.compact
  def __call__(
    self, x: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w f']:
    shape = self.size, self.size, x.shape[-1]
    x, q, scale = self.stored_kernel(jnp.asarray(x), shape)
    padding = self.padding
    if isinstance(padding, int):
      padding = [(padding, padding)] * 2
    product = jax.lax.conv_general_dilated(
      x,
      q,
      (self.stride, self.stride),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      preferred_element_type=jnp.float32,
    )
    return self.finish(product, scale)


def type_of(config: Any) -> str | None:
  """Returns the type that a net's kernels are stored in; None: its own."""
  return getattr(config, 'weights_dtype', None)


def check(name: str, dtype: str | None) -> None:
  """Raises ValueError for a type that no kernel is stored in.

  Args:
    name: of the option, for the error.
    dtype: its value; None: as all other parameters.
  """
  if dtype is not None and dtype not in LARGEST:
    raise ValueError(f'{name} is {dtype!r}; pass {" or ".join(LARGEST)}')
