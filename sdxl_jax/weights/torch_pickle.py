"""Arrays out of pickles, none of whose code runs.

A pickle names functions that whoever loads it calls. Those below are all that
is called here; any other name is an error. Three kinds of file are read: trees
of numpy arrays, and what torch.save writes of a state dict, in its older form
and as a zip.
"""

import collections
import dataclasses
import math
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
from numpy._core import multiarray

OLDER = 0x1950A86A20F9469CFC6C  # the first pickle of torch.save's older form
# torch's names of typed memory.
STORAGES = {
  'FloatStorage': np.dtype('<f4'),
  'DoubleStorage': np.dtype('<f8'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor whose numbers are not read yet."""

  key: str  # of its storage
  dtype: np.dtype
  offset: int  # in elements
  shape: tuple

  def read(self, storages):
    data = storages[self.key]
    start, count = self.offset * self.dtype.itemsize, math.prod(self.shape)
    return np.frombuffer(data, self.dtype, count, start).reshape(self.shape)


def rebuild_tensor(storage, offset, shape, stride, *ignored):
  """What torch's function of that name makes of a pickled tensor."""
  del ignored
  dtype, key = storage
  dense = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
  if any(a != b for a, b, n in zip(stride, dense, shape) if n > 1):
    raise pickle.UnpicklingError(f'a tensor has the strides {stride}')
  return StoredTensor(key, dtype, offset, tuple(shape))


ALLOWED = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
  ('numpy.core.multiarray', '_reconstruct'): multiarray._reconstruct,
  ('numpy._core.multiarray', '_reconstruct'): multiarray._reconstruct,
  ('torch._utils', '_rebuild_tensor_v2'): rebuild_tensor,
  **{('torch', name): dtype for name, dtype in STORAGES.items()},
}


class Unpickler(pickle.Unpickler):
  def find_class(self, module, name):
    if (module, name) not in ALLOWED:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}')
    return ALLOWED[module, name]

  def persistent_load(self, saved):
    _, dtype, key, *_ = saved
    return dtype, key


def load(path):
  """What a file holds: a tree of numpy arrays, or {name: array}.

  Raises:
    FileNotFoundError: for no such file.
    ValueError: for a file that is broken, or of another kind.
  """
  path = pathlib.Path(path)
  try:
    if zipfile.is_zipfile(path):
      return load_zip(path)
    with open(path, 'rb') as file:
      found = Unpickler(file).load()
      return load_older(file) if found == OLDER else found
  except FileNotFoundError:
    raise
  # A broken pickle raises whatever its broken opcodes do.
  except Exception as error:
    raise ValueError(
      f'{path} is no pickle of arrays alone ({error}): take the original file, '
      'or safetensors'
    ) from error


def load_zip(path):
  with zipfile.ZipFile(path) as archive:
    root = next(n for n in archive.namelist() if n.endswith('data.pkl'))
    with archive.open(root) as file:
      tensors = Unpickler(file).load()
    place = root.removesuffix('.pkl')
    keys = {tensor.key for tensor in tensors.values()}
    storages = {key: archive.read(f'{place}/{key}') for key in keys}
  return {name: tensor.read(storages) for name, tensor in tensors.items()}


def load_older(file):
  version, machine, tensors = (Unpickler(file).load() for _ in range(3))
  if version != 1001 or not machine['little_endian']:
    raise pickle.UnpicklingError(f'version {version} of {machine}')
  sizes = {t.key: t.dtype.itemsize for t in tensors.values()}
  storages = {}
  for key in Unpickler(file).load():
    (count,) = struct.unpack('<q', file.read(8))
    storages[key] = file.read(count * sizes[key])
  return {name: tensor.read(storages) for name, tensor in tensors.items()}
