"""Casts tensors and refuses numbers that are not finite."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

BLOCK = 2**20  # numbers that are cast and checked at once
CHECKED = 2**18  # numbers that are checked at once: they stay in the cache
EXTENDED = 2**16  # numbers of float16 that are extended at once, see `cast`
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

  Takes less than 5 % of the time that loading takes.
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


def cast(array: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
  """Casts as numpy does; from float16 in a third of its time.

  Args:
    array: of any shape.
    dtype: of the result, float32 or shorter.
  """
  dtype = np.dtype(dtype)
  if array.dtype == dtype:
    return array
  result = np.empty(array.shape, dtype)
  cast_into(array, result, is_finite(array))
  return result


def cast_into(
  array: np.ndarray, view: np.ndarray, all_finite: bool = True
) -> None:
  """Casts into an array of another dtype, as `cast` does.

  Args:
    array: of any shape.
    view: to be filled, of the same shape; float32 or shorter.
    all_finite: whether no number is NaN or infinity.
  """
  # An overflow becomes infinity, which callers look for.
  with np.errstate(over='ignore', invalid='ignore'):
    is_extended = array.dtype == np.float16 != view.dtype and all_finite
    if not is_extended or array.ndim == 0:
      view[...] = array
      return
    rows = max(1, EXTENDED // max(1, math.prod(array.shape[1:])))
    for i in range(0, len(array), rows):
      view[i : i + rows] = extend(array[i : i + rows])


def extend(array: np.ndarray) -> np.ndarray:
  """Extends finite float16 to float32 by whole registers, without branches.

  The bits move to where float32 has the sign, the end of its exponent, and the
  beginning of its mantissa; the product corrects the exponent, whose bias is
  127 in place of 15, and is exact for subnormal numbers, too.
  """
  bits = array.view(np.int16).astype(np.int32)  # repeats the sign
  bits <<= 13
  bits &= ~0x70000000
  numbers = bits.view(np.float32)
  numbers *= np.float32(2.0**112)
  return numbers


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
    for part in own_parts(leaf):
      check_stored(join_path(path), part, location)


def cast_params(
  params: dict[str, Any], dtype: str, location: str
) -> dict[str, Any]:
  """Casts all arrays, which are finite, to a dtype.

  Args:
    params: of a net.
    dtype: of all of its arrays.
    location: of the net, for the error.

  Raises:
    ValueError: if a number overflows in the dtype.
  """
  # An overflow becomes infinity, which is found below.
  with np.errstate(over='ignore'):
    narrowed = jax.tree.map(lambda x: x.astype(dtype), params)
  check_range(params, narrowed, location)
  return narrowed


def check_range(
  given: dict[str, Any], cast: dict[str, Any], location: str
) -> None:
  """Raises ValueError if a parameter of a net overflowed in a cast.

  Args:
    given: tree of arrays before the cast.
    cast: the same after it.
    location: of the parameters, such as their checkpoint.
  """
  leaves = jax.tree_util.tree_leaves_with_path(cast)
  for (path, leaf), before in zip(leaves, jax.tree.leaves(given)):
    if narrows(before.dtype, leaf.dtype) and not all(
      map(is_finite, own_parts(leaf))
    ):
      numbers = [part.reshape(-1) for part in own_parts(before)]
      reason = explain_not_finite(
        join_path(path), np.concatenate(numbers), leaf.dtype
      )
      raise ValueError(f'{location}: {reason}')


def narrows(before: npt.DTypeLike, after: npt.DTypeLike) -> bool:
  """Returns whether a cast from one type to another may overflow."""
  return bool(jnp.finfo(after).max < jnp.finfo(before).max)


def own_parts(leaf: np.ndarray | jax.Array) -> Iterator[np.ndarray]:
  """Yields the parts of an array that no other process or device yields."""
  if not isinstance(leaf, jax.Array):
    yield leaf
    return
  for shard in leaf.addressable_shards:
    if not shard.replica_id:
      yield np.asarray(shard.data)


def join_path(path: Sequence[Any]) -> str:
  """Returns the path of a leaf in a tree of dicts, as a/b/c."""
  return '/'.join(str(key.key) for key in path)


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
