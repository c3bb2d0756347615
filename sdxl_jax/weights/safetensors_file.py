"""Reads and writes safetensors files, tensor by tensor.

Format: length of the header (uint64), header (JSON), the tensors' bytes.

The library is not used, because its save_file holds all tensors in memory at
once, its mapped files count as memory in use, and files come from strangers:
here a header is checked to the last offset before a tensor is read.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sdxl_jax.weights import checked_cast, foreign_files, stored_array

DTYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U64': np.dtype('<u8'),
  'U32': np.dtype('<u4'),
  'U16': np.dtype('<u2'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100 * 10**6  # bytes; the limit of the library
MAX_NAME = 300  # characters
# Types of the format that the nets cannot be stored in.
QUANTISED = ('F8_E8M0', 'F6_E2M3', 'F6_E3M2', 'F4')


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """The shape and dtype of a tensor, whose data is read on demand."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  name: str = ''  # in the file that it comes from, for errors

  @property
  def has_rows(self) -> bool:
    """Whether a part of the first axis is read without the others."""
    return isinstance(self.read, stored_array.StoredArray)

  def rows(self, start: int, stop: int) -> 'LazyTensor':
    """Returns a range of the first axis."""

    def read():
      return self.read()[start:stop]

    shape = (stop - start, *self.shape[1:])
    read = self.read.rows(start, stop) if self.has_rows else read
    return dataclasses.replace(self, shape=shape, read=read)

  def reshape(self, shape: tuple[int, ...]) -> 'LazyTensor':
    """Returns the same numbers in another shape."""

    def read():
      return self.read().reshape(shape)

    read = self.read.reshape(shape) if self.has_rows else read
    return dataclasses.replace(self, shape=tuple(shape), read=read)


@dataclasses.dataclass(frozen=True)
class TensorFile:
  """The tensors and the metadata of a safetensors file."""

  path: pathlib.Path
  tensors: dict[str, LazyTensor]
  metadata: dict[str, str]


def from_array(array: np.ndarray) -> LazyTensor:
  """Wraps an array that is in memory."""
  return LazyTensor(array.shape, array.dtype, lambda: array)


def load(path: str | pathlib.Path) -> TensorFile:
  """Opens a file and checks its header; reads no tensor data.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: in one line, if the file is corrupt or of another format.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist, or is not a file')
  # Check all that the header claims before anything relies on it.
  try:
    with path.open('rb') as file:
      header, start, size = read_header(file)
    metadata = header.pop('__metadata__', {})
    check_metadata(metadata)
    entries = {n: check_entry(n, entry) for n, entry in header.items()}
    check_ends(entries, size - start)
  except UnsupportedError as error:
    raise ValueError(f'{path}: {error}') from None
  except (ValueError, RecursionError) as error:
    reason = str(error).splitlines()[0][:500]
    raise ValueError(
      foreign_files.explain(path)
      or f'{path} is a truncated or corrupt safetensors file ({reason}): '
      're-download it'
    ) from None
  tensors = {}
  for name, (dtype, shape, begin, _) in entries.items():
    read = stored_array.StoredArray(path, name, dtype, shape, start + begin)
    tensors[name] = LazyTensor(shape, dtype, read, name)
  return TensorFile(path, tensors, metadata)


class UnsupportedError(ValueError):
  """Signals a sound file of a type that is not read."""


def read_header(file: BinaryIO) -> tuple[dict[str, Any], int, int]:
  """Reads the header of an open file: (header, its end, the file's size)."""
  size = os.fstat(file.fileno()).st_size
  head = file.read(8)
  if len(head) < 8:
    raise ValueError(f'file has {size} bytes')
  (length,) = struct.unpack('<Q', head)
  if length > min(size - 8, MAX_HEADER):
    raise ValueError(f'a header of {length} bytes in a file of {size}')
  header = json.loads(
    file.read(length).decode(),
    object_pairs_hook=to_unique_dict,
    parse_constant=refuse_constant,
  )
  if not isinstance(header, dict):
    raise ValueError('header is not a JSON object')
  return header, 8 + length, size


def to_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Builds a JSON object and refuses a repeated key, which would hide one."""
  unique = dict(pairs)
  if len(unique) < len(pairs):
    names = [name for name, _ in pairs]
    repeated = next(n for n in names if names.count(n) > 1)
    raise ValueError(f'{repeated[:MAX_NAME]!r} is in the header twice')
  return unique


def refuse_constant(text: str) -> None:
  """Refuses NaN and Infinity, which are not JSON."""
  raise ValueError(f'{text} in the header')


def check_metadata(metadata: Any) -> None:
  """Checks that metadata is {str: str}."""
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise ValueError('metadata does not consist of strings by name')


def check_entry(name: str, entry: Any) -> tuple[np.dtype, tuple, int, int]:
  """Checks a tensor's header entry; returns (dtype, shape, begin, end)."""
  # Names are printed in errors, so they must be printable.
  if not 0 < len(name) <= MAX_NAME or not name.isprintable():
    raise ValueError(f'a tensor has the invalid name {name[:MAX_NAME]!r}')
  fields = ['dtype', 'shape', 'data_offsets']
  if not isinstance(entry, dict) or set(entry) != set(fields):
    raise ValueError(
      f'the header entry of {name} must have exactly the keys '
      f'{", ".join(fields)}'
    )
  dtype, shape = entry['dtype'], entry['shape']
  if dtype in QUANTISED:
    raise UnsupportedError(
      f'{name} is stored as {dtype}: quantised weights are not supported, use '
      'those in float16 or longer'
    )
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(f'{name} has the unknown dtype {str(dtype)[:50]!r}')
  # JSON's true is an int in Python, hence `type`.
  for numbers in (shape, entry['data_offsets']):
    if not isinstance(numbers, list) or not all(
      type(n) is int and 0 <= n < 2**63 for n in numbers
    ):
      raise ValueError(f'{name} has {str(numbers)[:80]} for shape or offsets')
  if len(shape) > 8 or len(entry['data_offsets']) != 2:
    raise ValueError(f'{name} has a shape or offsets of too many numbers')
  # Python's integers do not overflow, however large the shape is.
  dtype, (begin, end) = DTYPES[dtype], entry['data_offsets']
  need = math.prod(shape) * dtype.itemsize
  if end - begin != need:
    raise ValueError(f'{name} has {end - begin} bytes where it needs {need}')
  return dtype, tuple(shape), begin, end


def check_ends(entries: dict[str, tuple], size: int) -> None:
  """Checks that tensors follow one another and fill the file."""
  last = 0
  for name, (_, _, begin, end) in sorted(
    entries.items(), key=lambda item: item[1][2:]
  ):
    if begin != last:
      fault = 'overlaps another' if begin < last else 'leaves a gap before it'
      raise ValueError(f'{name} {fault}: it begins at {begin}, not {last}')
    last = end
  if last != size:
    raise ValueError(
      f'the header describes {last} bytes of tensor data, the file has {size}'
    )


def write(
  path: str | pathlib.Path,
  tensors: dict[str, LazyTensor],
  dtype: npt.DTypeLike | None = None,
  metadata: dict[str, str] | None = None,
  watch: Callable[[int], Any] = lambda count: None,
) -> None:
  """Writes a file; each tensor is read when it is written.

  Args:
    path: of the file, which does not exist yet.
    tensors: {name: tensor}; each is removed once it is written, which frees it.
    dtype: to cast floating-point tensors to; None: the stored one.
    metadata: {name: text}.
    watch: called with the bytes of each tensor written.

  Raises:
    ValueError: if a tensor has numbers that are not finite.
  """
  size = sizes(tensors, dtype)
  # One tensor is in memory at a time.
  with open(path, 'wb') as file:
    file.write(make_header(tensors, dtype, {'format': 'pt'} | (metadata or {})))
    for name in list(tensors):
      tensor = tensors.pop(name)
      cast_to = written_dtype(tensor, dtype)
      for block in checked_cast.cast_blocks(name, tensor.read(), cast_to):
        block.tofile(file)
      watch(size[name])


def make_header(
  tensors: dict[str, LazyTensor],
  dtype: npt.DTypeLike | None = None,
  metadata: dict[str, str] | None = None,
) -> bytes:
  """Makes what a file begins with, from the sizes alone; see `write`."""
  header, end = {'__metadata__': metadata or {}}, 0
  for name, size in sizes(tensors, dtype).items():
    begin, end = end, end + size
    header[name] = {
      'dtype': CODES[written_dtype(tensors[name], dtype)],
      'shape': tensors[name].shape,
      'data_offsets': (begin, end),
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  return struct.pack('<Q', len(text)) + text


def sizes(
  tensors: dict[str, LazyTensor], dtype: npt.DTypeLike | None = None
) -> dict[str, int]:
  """Computes {name: bytes} of what `write` writes."""
  return {
    name: math.prod(tensor.shape) * written_dtype(tensor, dtype).itemsize
    for name, tensor in tensors.items()
  }


def written_dtype(tensor: LazyTensor, dtype: npt.DTypeLike | None) -> np.dtype:
  """Returns the dtype that a tensor is written in."""
  if dtype is None or not checked_cast.is_floating(tensor.dtype):
    return np.dtype(tensor.dtype)
  return np.dtype(dtype)
