"""A tensor in a file, of which any rows can be read."""

import dataclasses
import math
import pathlib

import numpy as np

from sdxl_jax.weights import checked_cast


@dataclasses.dataclass(frozen=True)
class StoredArray:
  """The place of a tensor in a file; a call reads it."""

  path: pathlib.Path  # of the file
  name: str  # of the tensor in it, for errors
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int  # of the first byte

  def __call__(self) -> np.ndarray:
    """Reads the tensor.

    Raises:
      ValueError: if it has NaN or infinity, or the file has become shorter.
    """
    array = read_array(self.path, self.dtype, self.shape, self.offset)
    checked_cast.check_stored(self.name, array, str(self.path))
    return array

  def rows(self, start: int, stop: int) -> 'StoredArray':
    """Returns a range of the first axis."""
    size = math.prod(self.shape[1:]) * self.dtype.itemsize
    shape = (stop - start, *self.shape[1:])
    offset = self.offset + start * size
    return dataclasses.replace(self, shape=shape, offset=offset)

  def reshape(self, shape: tuple[int, ...]) -> 'StoredArray':
    """Returns the same numbers in another shape."""
    return dataclasses.replace(self, shape=tuple(shape))


def read_array(
  path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...], offset: int
) -> np.ndarray:
  """Reads a tensor that begins at an offset of a file."""
  data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
  view = memoryview(data)
  with path.open('rb', buffering=0) as file:
    file.seek(offset)
    while len(view):
      count = file.readinto(view)
      if not count:
        raise checked_cast.StoredError(
          f'{path} was truncated after it was opened: re-download it'
        )
      view = view[count:]
  return data.view(dtype).reshape(shape)
