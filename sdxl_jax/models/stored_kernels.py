"""Kernels that are stored in 8 bits, and multiplied in the type of a net.

A kernel W [..., out] is stored as q, of 8 bits, and a float32 scale of each
output channel, W = q * scale, by which products with q are multiplied. Both lie
in the parameters of its layer, as `kernel` and `kernel_scale`. Biases, norms
and embeddings stay as they are, and so do the first and the last layer of the
UNet and its embeddings, which are few.

  int8           whole numbers up to 127, symmetric about 0
  float8_e4m3fn  floats up to 448 with 3 binary digits

Such kernels are frozen: gradients flow through their layers to the inputs, and
to what is trained beside a kernel (Dettmers et al. 2023, QLoRA, arXiv
2305.14314, section 3), and there is none by a kernel or its scale.
"""

from collections.abc import Callable
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

  @nn.nowrap
  def apply_kernel(
    self, x: ArrayLike, shape: tuple[int, ...], multiply: Callable
  ) -> Array:
    """Returns the output of the layer.

    Args:
      x: input of the layer.
      shape: of the kernel but for its output channels.
      multiply: see `multiply_stored`.
    """
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    shape = (*shape, self.features)
    q = self.param('kernel', zeros, shape, jnp.dtype(self.stored))
    scale = self.param(SCALE, ones, (self.features,), jnp.float32)
    x = jnp.asarray(x).astype(self.dtype)
    y = multiply_stored(multiply, x, jnp.asarray(q), jnp.asarray(scale))
    if not self.use_bias:
      return y
    bias = self.param('bias', zeros, (self.features,), self.param_dtype)
    return y + bias.astype(self.dtype)

  @nn.nowrap
  def dequantized(self) -> Float[Array, '*inputs out']:
    """Returns the kernel W = q * scale, float32."""
    q = self.get_variable('params', 'kernel')
    return dequantize(q, self.get_variable('params', SCALE))


def dequantize(
  q: Array, scale: Float[ArrayLike, '*stack out']
) -> Float[Array, '*inputs out']:
  """Returns a kernel W = q * scale, or a stack of them, float32."""
  scale = jnp.asarray(scale)
  ones = (1,) * (q.ndim - scale.ndim)
  scale = scale.reshape(*scale.shape[:-1], *ones, scale.shape[-1])
  return q.astype(jnp.float32) * scale


def multiply_stored(
  multiply: Callable, x: Array, q: Array, scale: Float[Array, ' out']
) -> Float[Array, '*rows out']:
  """Multiplies x by the kernel q * scale, in the type of x.

  For the backward pass nothing is stored but q and scale, which the parameters
  hold anyway: JAX would store each kernel in the type of x. There is no
  gradient by them, and no forward mode (jax.jvp).

  Args:
    multiply: (x, kernel, preferred_element_type=None) -> their product.
    x: input, of the type of products.
    q: stored kernel.
    scale: of each output channel.
  """
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)

  @jax.custom_vjp
  def product(x, q, scale):
    x, q = wait(x, q)
    y = multiply(x, q.astype(x.dtype), preferred_element_type=jnp.float32)
    return (y * scale).astype(x.dtype)

  def forward(x, q, scale):
    return product(x, q, scale), (q, scale)

  def backward(residuals, gradient):
    q, scale = residuals
    gradient, q = wait(gradient, q)
    # As a whole: in float16, gradients times a scale alone might vanish.
    kernel = dequantize(q, scale).astype(shape.dtype)
    transposed = jax.linear_transpose(lambda x: multiply(x, kernel), shape)
    return *transposed(gradient), None, None

  product.defvjp(forward, backward)
  frozen = jax.lax.stop_gradient((q, scale))
  return product(x, *frozen)


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
    return self.apply_kernel(x, (x.shape[-1],), jnp.dot)

  @nn.nowrap
  def unstored(self, features: int) -> nn.Module:
    """Returns nn.Dense of the same kind with other features, without bias."""
    return nn.Dense(features, use_bias=False, dtype=self.dtype, parent=None)


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
    def multiply(x, kernel, preferred_element_type=None):
      return jax.lax.conv_general_dilated(
        x,
        kernel,
        (self.stride, self.stride),
        self.pairs_of_padding(),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        preferred_element_type=preferred_element_type,
      )

    shape = self.size, self.size, x.shape[-1]
    return self.apply_kernel(x, shape, multiply)

  @nn.nowrap
  def pairs_of_padding(self) -> list[tuple[int, int]]:
    """Returns the padding before and after each axis."""
    if isinstance(self.padding, int):
      return [(self.padding, self.padding)] * 2
    return list(self.padding)

  @nn.nowrap
  def unstored(self, features: int) -> nn.Module:
    """Returns nn.Conv of the same kind with other features, without bias."""
    return nn.Conv(
      features,
      (self.size, self.size),
      self.stride,
      self.pairs_of_padding(),
      use_bias=False,
      dtype=self.dtype,
      parent=None,
    )


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
