"""safetensors files: checked when opened, read and written tensor by tensor.

Format: length of the header (uint64), header (JSON), the tensors' bytes. Bytes
are read and written plainly: a file that is mapped counts as memory in use, and
one written by the library is first held whole. Files come from strangers, so a
header is checked to the last offset before anything is read by it.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable

import ml_dtypes
import numpy as np

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
FLOATING = [DTYPES[c] for c in DTYPES if c.startswith(('F', 'BF'))]
MAX_HEADER = 100 * 10**6  # bytes, as the library has it
MAX_NAME = 300  # letters
BLOCK = 2**20  # numbers that are cast and checked at once
PICKLES = (b'PK\x03\x04', b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05')


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """A tensor that is not read yet."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorFile:
  """What a safetensors file holds."""

  path: pathlib.Path
  tensors: dict[str, LazyTensor]
  metadata: dict[str, str]


def from_array(array):
  """The Tensor of an array that is there already."""
  return LazyTensor(array.shape, array.dtype, lambda: array)


def is_floating(dtype):
  return np.dtype(dtype) in FLOATING


def load(path):
  """The TensorFile of a path; of its tensors nothing is read.

  Raises:
    FileNotFoundError: for no such file.
    ValueError: for one that is broken or of another kind, in one line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path} is not there, or no file')
  try:
    with path.open('rb') as file:
      header, start, size = read_header(file)
    metadata = header.pop('__metadata__', {})
    check_metadata(metadata)
    entries = {n: check_entry(n, entry) for n, entry in header.items()}
    check_ends(entries, size - start)
  except (ValueError, RecursionError) as error:
    reason = str(error).splitlines()[0][:500]
    raise ValueError(
      f'{path} is no whole safetensors file ({reason}): copy it again'
    ) from None
  except Pickle:
    raise ValueError(
      f'{path} is a pickle, and loading one may run any program inside: ask '
      'for the .safetensors of this model, or, where nothing can be harmed, '
      'load it with torch.load(weights_only=True) and save its tensors with '
      'safetensors.torch.save_file'
    ) from None
  tensors = {
    name: LazyTensor(shape, dtype, reader(path, dtype, shape, start + begin))
    for name, (dtype, shape, begin, _) in entries.items()
  }
  return TensorFile(path, tensors, metadata)


class Pickle(Exception):
  """The file is no safetensors file but a pickle."""


def read_header(file):
  """(header, where the bytes begin, where they end) of an open file."""
  size = os.fstat(file.fileno()).st_size
  head = file.read(8)
  if head.startswith(PICKLES):
    raise Pickle
  if len(head) < 8:
    raise ValueError(f'it has {size} bytes')
  (length,) = struct.unpack('<Q', head)
  if length > min(size - 8, MAX_HEADER):
    raise ValueError(f'a header of {length} bytes in a file of {size}')
  header = json.loads(
    file.read(length).decode(),
    object_pairs_hook=unique,
    parse_constant=refuse_constant,
  )
  if not isinstance(header, dict):
    raise ValueError('its header is no object')
  return header, 8 + length, size


def unique(pairs):
  """A JSON object whose names differ; a second one would hide the first."""
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(n for n in names if names.count(n) > 1)
    raise ValueError(f'{twice[:MAX_NAME]!r} is there twice')
  return found


def refuse_constant(text):
  raise ValueError(f'{text} in its header')


def check_metadata(metadata):
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise ValueError('its metadata are not texts by name')


def check_entry(name, entry):
  """(dtype, shape, begin, end) of a tensor's entry in the header."""
  if not 0 < len(name) <= MAX_NAME or not name.isprintable():
    raise ValueError(f'a tensor has the odd name {name[:MAX_NAME]!r}')
  fields = {'dtype', 'shape', 'data_offsets'}
  if not isinstance(entry, dict) or set(entry) != fields:
    raise ValueError(f'{name} is not told by {sorted(fields)}')
  dtype, shape = entry['dtype'], entry['shape']
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(f'{name} has the dtype {str(dtype)[:50]!r}')
  for numbers in (shape, entry['data_offsets']):
    if not isinstance(numbers, list) or not all(
      type(n) is int and 0 <= n < 2**63 for n in numbers
    ):
      raise ValueError(f'{name} has {str(numbers)[:80]} for shape or offsets')
  if len(shape) > 8 or len(entry['data_offsets']) != 2:
    raise ValueError(f'{name} has a shape or offsets of too many numbers')
  dtype, (begin, end) = DTYPES[dtype], entry['data_offsets']
  need = math.prod(shape) * dtype.itemsize
  if end - begin != need:
    raise ValueError(f'{name} has {end - begin} bytes where it needs {need}')
  return dtype, tuple(shape), begin, end


def check_ends(entries, size):
  """Each tensor begins where another ends, the last one at the file's end."""
  last = 0
  for name, (_, _, begin, end) in sorted(
    entries.items(), key=lambda item: item[1][2:]
  ):
    if begin != last:
      what = 'overlaps another' if begin < last else 'leaves a gap before it'
      raise ValueError(f'{name} {what}: it begins at {begin}, not {last}')
    last = end
  if last != size:
    raise ValueError(f'{size} bytes of tensors where {last} are told of')


def reader(path, dtype, shape, offset):
  """read() of a tensor of a file."""

  def read():
    need = math.prod(shape) * dtype.itemsize
    data = np.empty(need, np.uint8)
    with path.open('rb', buffering=0) as file:
      file.seek(offset)
      view = memoryview(data)
      while len(view):
        count = file.readinto(view)
        if not count:
          raise ValueError(f'{path} has become shorter: copy it again')
        view = view[count:]
    return data.view(dtype).reshape(shape)

  return read


def blocks(name, array, dtype):
  """Parts of an array along its first axis, cast and checked.

  Raises:
    ValueError: for a number that is not finite, or no more in the new dtype.
  """
  array = array.reshape(1) if array.ndim == 0 else array
  rows = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
  for i in range(0, len(array), rows):
    part = array[i : i + rows]
    with np.errstate(over='ignore', invalid='ignore'):
      cast = np.ascontiguousarray(part, dtype)
    if is_floating(dtype) and not np.isfinite(cast).all():
      check_finite(name, part, dtype)
    yield cast


def check_finite(name, part, dtype):
  if not np.isfinite(part).all():
    raise ValueError(
      f'{name} has a NaN or an infinite number, and nothing can be drawn with '
      'it: copy the weights again, or take those of an earlier step'
    )
  raise ValueError(
    f'{name} has {np.abs(part.astype(np.float64)).max():.3g}, which {dtype} '
    'does not reach: choose bfloat16 or float32'
  )


def check(name, array, dtype):
  """Raises ValueError for numbers that are not finite in a dtype."""
  for _ in blocks(name, array, dtype):
    pass


def write(path, tensors, dtype=None, metadata=None, watch=lambda count: None):
  """Writes a safetensors file, each tensor read when it is its turn.

  Args:
    path: of a file that is not there yet.
    tensors: {name: Tensor}, taken out as they are written, so that what they
      hold can go.
    dtype: of what is written, for numbers with a point; None: as they are.
    metadata: {name: text}.
    watch: called with the bytes of each tensor written.

  Raises:
    ValueError: for numbers that are not finite, naming the tensor.
  """
  header, end = {'__metadata__': {'format': 'pt'} | (metadata or {})}, 0
  size = sizes(tensors, dtype)
  for name, tensor in tensors.items():
    begin, end = end, end + size[name]
    header[name] = {
      'dtype': CODES[dtype_of(tensor, dtype)],
      'shape': tensor.shape,
      'data_offsets': (begin, end),
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for name in list(tensors):
      tensor = tensors.pop(name)
      for block in blocks(name, tensor.read(), dtype_of(tensor, dtype)):
        block.tofile(file)
      watch(size[name])


def sizes(tensors, dtype=None):
  """{name: bytes} of what `write` writes."""
  bytes_of = lambda t: math.prod(t.shape) * dtype_of(t, dtype).itemsize
  return {name: bytes_of(tensor) for name, tensor in tensors.items()}


def dtype_of(tensor, dtype):
  """What a tensor is written in."""
  if dtype is None or not is_floating(tensor.dtype):
    return np.dtype(tensor.dtype)
  return np.dtype(dtype)
