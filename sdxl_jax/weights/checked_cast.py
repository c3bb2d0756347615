"""Casts tensors and refuses numbers that are not finite."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

BLOCK = 2**20  # numbers that are cast and checked at once


def is_floating(dtype: npt.DTypeLike) -> bool:
  """Checks whether a dtype is a floating-point type, ml_dtypes' included."""
  return jnp.issubdtype(dtype, jnp.floating)


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
    if is_floating(dtype) and not np.isfinite(cast).all():
      raise ValueError(explain_not_finite(name, part, dtype))
    yield cast


def explain_not_finite(name: str, part: np.ndarray, dtype: np.dtype) -> str:
  """Describes a number that is not finite, before or after a cast."""
  if not np.isfinite(part).all():
    return (
      f'{name} contains NaN or infinity, so the model cannot generate images: '
      're-download the weights, or use those of an earlier step'
    )
  largest = np.abs(part.astype(np.float64)).max()
  return (
    f'{name} has {largest:.3g}, which overflows {dtype}: choose bfloat16 or '
    'float32'
  )


def check_finite(name: str, array: np.ndarray, dtype: npt.DTypeLike) -> None:
  """Raises ValueError if a number is not finite after a cast to a dtype."""
  for _ in cast_blocks(name, array, np.dtype(dtype)):
    pass
