"""Kernels that are stored in 8 bits, and multiplied in the type of a net.

A kernel W [..., out] is stored as q, of 8 bits, and a float32 scale of each
output channel, W = q * scale, by which products with q are multiplied. Both lie
in the parameters of its layer, as `kernel` and `kernel_scale`. Biases, norms
and embeddings stay as they are, and so do the first and the last layer of the
UNet and its embeddings, which are few.

  int8           whole numbers up to 127, symmetric about 0
  float8_e4m3fn  floats up to 448 with 3 binary digits
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Float

# The largest number of each type.
LARGEST = {'int8': 127, 'float8_e4m3fn': 448}
SCALE = 'kernel_scale'
BLOCK = 2**18  # numbers that are quantised at once: they stay in the cache
Path = tuple[str, ...]


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


def pair(path: Path) -> tuple[Path, Path]:
  """Returns the paths of a kernel and of its scale, by that of the kernel."""
  return path, (*path[:-1], SCALE)


def quantize(
  kernel: np.ndarray, of_kernel: Any, of_scale: Any
) -> tuple[np.ndarray, Float[np.ndarray, '*stack out']]:
  """Quantises a kernel, each output channel by its largest number.

  Args:
    kernel: float [in, out], [h, w, in, out], or a stack of these.
    of_kernel: shape and dtype of the result, one of LARGEST.
    of_scale: the same of the scale: [out], or [depth, out] for a stack.

  Returns:
    (q, scale).
  """
  stored = jnp.dtype(of_kernel.dtype)
  *stack, out = of_scale.shape
  rows = kernel.reshape(*stack, -1, out)
  q = np.empty(rows.shape, stored)
  scale = np.empty((*stack, out), np.float32)
  for index in np.ndindex(*stack):
    blocks = list(blocks_of(*rows[index].shape))
    largest = np.zeros(out, np.float32)
    for block in blocks:
      found = np.abs(np.float32(rows[index][block])).max(0)
      np.maximum(largest, found, out=largest)
    # A channel of zeros has no largest number.
    scale[index] = np.where(largest > 0, largest, 1) / LARGEST[stored.name]
    for block in blocks:
      numbers = np.float32(rows[index][block]) / scale[index]
      if stored == np.int8:
        np.rint(numbers, out=numbers)
      q[index][block] = numbers.astype(stored)
  return q.reshape(kernel.shape), scale


def blocks_of(rows: int, columns: int) -> Iterator[slice]:
  """Yields rows of BLOCK numbers or a little less."""
  count = max(1, BLOCK // columns)
  for begin in range(0, rows, count):
    yield slice(begin, begin + count)


def stored_layers(flat: dict[Path, Any]) -> set[Path]:
  """Returns the paths of the layers of a flat tree that are stored so."""
  return {path[:-1] for path in flat if path[-1] == SCALE}


def without_scales(target: dict[str, Any]) -> dict[str, Any]:
  """Returns a tree of shapes as it is before its kernels are quantised.

  These are float32, and have no sharding, so that they stay in numpy.
  """
  flat = traverse_util.flatten_dict(target)
  layers = stored_layers(flat)
  found = {
    path: jax.ShapeDtypeStruct(x.shape, jnp.float32)
    if path[-1] == 'kernel' and path[:-1] in layers
    else x
    for path, x in flat.items()
    if path[-1] != SCALE
  }
  return traverse_util.unflatten_dict(found)


def quantize_tree(
  params: dict[str, Any], target: dict[str, Any]
) -> dict[str, Any]:
  """Quantises the kernels of a net on the host, one by one.

  Args:
    params: of the net, on devices or in numpy; its kernels are deleted. Those
      of a target without scales are returned as they are.
    target: tree of shapes with scales, and with the shardings of its arrays;
      without one they stay in numpy.

  Returns:
    The parameters as the target has them.
  """
  flat, shapes = map(traverse_util.flatten_dict, (params, target))
  if not (layers := stored_layers(shapes)):
    return params
  del params
  for layer in layers:
    paths = pair((*layer, 'kernel'))
    kernel, specs = flat.pop(paths[0]), [shapes[path] for path in paths]
    arrays = quantize(np.asarray(kernel), *specs)
    del kernel
    for path, array, spec in zip(paths, arrays, specs):
      flat[path] = put(array, spec.sharding)
  # What is not quantised waited beside it.
  placed = {path: put(flat[path], x.sharding) for path, x in shapes.items()}
  return traverse_util.unflatten_dict(placed)


def put(array: Any, place: jax.sharding.Sharding | None) -> Any:
  """Returns an array on a sharding; None: where it is."""
  return array if place is None else jax.device_put(array, place)
