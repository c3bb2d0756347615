"""Quantises kernels to 8 bits on the host; see models/stored_kernels.py."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from sdxl_jax.models import stored_kernels

BLOCK = 2**18  # numbers that are quantised at once: they stay in the cache
Path = tuple[str, ...]


def pair(path: Path) -> tuple[Path, Path]:
  """Returns the paths of a kernel and of its scale, by that of the kernel."""
  return path, (*path[:-1], stored_kernels.SCALE)


def quantize(
  kernel: np.ndarray, of_kernel: Any, of_scale: Any
) -> tuple[np.ndarray, Float[np.ndarray, '*stack out']]:
  """Quantises a kernel, each output channel by its largest number.

  Args:
    kernel: float [in, out], [h, w, in, out], or a stack of these.
    of_kernel: shape and dtype of the result, one of stored_kernels.LARGEST.
    of_scale: the same of the scale: [out], or [depth, out] for a stack.

  Returns:
    (q, scale).
  """
  stored = jnp.dtype(of_kernel.dtype)
  limit = stored_kernels.LARGEST[stored.name]
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
    scale[index] = np.where(largest > 0, largest, 1) / limit
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
  return {path[:-1] for path in flat if path[-1] == stored_kernels.SCALE}


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
    if path[-1] != stored_kernels.SCALE
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
      flat[path] = place(array, spec.sharding)
  # The arrays that are not quantised may lie in host memory as well.
  placed = {path: place(flat[path], x.sharding) for path, x in shapes.items()}
  return traverse_util.unflatten_dict(placed)


def place(array: Any, sharding: jax.sharding.Sharding | None) -> Any:
  """Returns an array on a sharding; None: where it is.

  The array is whole in every process, and on all devices of the sharding or
  only on those of the process.
  """
  if sharding is None:
    return array
  if isinstance(array, jax.Array) and array.is_fully_addressable:
    if sharding.is_fully_addressable:
      return jax.device_put(array, sharding)
    array = np.asarray(array)
  if isinstance(array, jax.Array):
    return jax.device_put(array, sharding)
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )
