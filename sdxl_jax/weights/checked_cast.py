"""Casts tensors and refuses numbers that are not finite."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

BLOCK = 2**20  # numbers that are cast and checked at once
CHECKED = 2**18  # numbers that are checked at once: they stay in the cache
# Exponents of short types, all of whose bits are set in NaN and infinity;
# np.isfinite takes five times as long for these types.
EXPONENTS = {
  np.dtype(np.float16): np.uint16(0x7C00),
  np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
}


class StoredError(ValueError):
  """A fault of stored tensors; the message names their file."""


class NotFiniteError(StoredError):
  """NaN or infinity in stored weights; the message names file and tensor."""


def is_floating(dtype: npt.DTypeLike) -> bool:
  """Checks whether a dtype is a floating-point type, ml_dtypes' included."""
  return jnp.issubdtype(dtype, jnp.floating)


def is_finite(array: np.ndarray) -> bool:
  """Checks that all numbers are finite; those of other types than floats are.

  Takes about 2 % of the time that loading takes.
  """
  if not is_floating(array.dtype):
    return True
  exponent = EXPONENTS.get(array.dtype)
  numbers = array.reshape(-1)
  numbers = numbers if exponent is None else numbers.view(exponent.dtype)
  for i in range(0, len(numbers), CHECKED):
    block = numbers[i : i + CHECKED]
    if exponent is None:
      fine = np.isfinite(block).all()
    else:
      fine = np.bitwise_and(block, exponent).max() < exponent
    if not fine:
      return False
  return True


def check_stored(name: str, array: np.ndarray, location: str) -> None:
  """Raises NotFiniteError if a tensor that was read is not finite.

  Args:
    name: of the tensor.
    array: its numbers.
    location: of the tensor, such as its file.
  """
  if not is_finite(array):
    raise NotFiniteError(f'{location}: {explain_nan(name)}')


def check_tree(params: dict[str, Any], location: str) -> None:
  """Raises NotFiniteError if a parameter of a net is not finite.

  Of arrays that several devices or processes share, each number is read once,
  by the process that has it.

  Args:
    params: tree of arrays, of numpy or JAX.
    location: of the parameters, such as their checkpoint.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    parts = [leaf]
    if isinstance(leaf, jax.Array):
      shards = leaf.addressable_shards
      parts = [shard.data for shard in shards if not shard.replica_id]
    for part in parts:
      name = '/'.join(str(key.key) for key in path)
      check_stored(name, np.asarray(part), location)


def cast_blocks(
  name: str, array: np.ndarray, dtype: np.dtype
) -> Iterator[np.ndarray]:
  """Yields an array in parts along its first axis, cast and checked.

  Raises:
    ValueError: if a number is not finite, or overflows in the new dtype.
  """
  array = array.reshape(1) if array.ndim == 0 else array
  rows = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
  for i in range(0, len(array), rows):
    part = array[i : i + rows]
    # An overflow becomes infinity, which is found below.
    with np.errstate(over='ignore', invalid='ignore'):
      cast = np.ascontiguousarray(part, dtype)
    if not is_finite(cast):
      raise ValueError(explain_not_finite(name, part, dtype))
    yield cast


def explain_not_finite(name: str, part: np.ndarray, dtype: np.dtype) -> str:
  """Describes a number that is not finite, before or after a cast."""
  if not is_finite(part):
    return explain_nan(name)
  largest = np.abs(part.astype(np.float64)).max()
  remedy = 'choose bfloat16 or float32'
  if dtype.itemsize > 2:
    remedy = 're-download the file, or use the weights of an earlier step'
  return f'{name} has {largest:.3g}, which overflows {dtype}: {remedy}'


def explain_nan(name: str) -> str:
  """Describes a tensor that is not finite."""
  return (
    f'{name} contains NaN or infinity, so no image can be generated with it: '
    're-download the file, or use the weights of an earlier step'
  )


def check_finite(name: str, array: np.ndarray, dtype: npt.DTypeLike) -> None:
  """Raises ValueError if a number is not finite after a cast to a dtype."""
  for _ in cast_blocks(name, array, np.dtype(dtype)):
    pass
