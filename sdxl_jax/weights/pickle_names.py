"""The functions and types that a pickle of arrays may name.

Each of them has its own or a harmless one in its place, so that nothing that a
pickle names is run: tensors of PyTorch become places in the storages of the
file, and objects of other programs are passed over.
"""

import collections
import dataclasses
import math
import re
from typing import Any

import ml_dtypes
import numpy as np
from numpy._core import multiarray

# torch's names of typed memory.
STORAGES = {
  'FloatStorage': np.dtype('<f4'),
  'DoubleStorage': np.dtype('<f8'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
}
# Of types that have a dtype in place of a storage.
BYTES = ('torch.storage', 'UntypedStorage')
FLOAT8 = {
  'float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
  'float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
}
# What training programs store beside the tensors: objects that are not looked
# at, and for which an empty one stands.
PASSED_OVER = re.compile(
  r'(?:pytorch_lightning|lightning|omegaconf|argparse|pathlib)(?:\..*)?'
  r'|torch\.(?:Size|device|(?:b?float|int|complex)\d+|bool|u?int8)'
  r'|numpy\._?core\.multiarray\.scalar|_codecs\.encode'
)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """The place of a tensor in one of the storages of a file."""

  key: str  # of its storage
  dtype: np.dtype
  offset: int  # in elements
  shape: tuple[int, ...]
  stride: tuple[int, ...]  # in elements

  def read(self, storages: dict[str, bytes]) -> np.ndarray:
    """Returns the array, a view of its storage.

    Raises:
      ValueError: if the storage is too small.
    """
    last = [(n - 1) * step for n, step in zip(self.shape, self.stride)]
    count = sum(last) + 1 if math.prod(self.shape) else 0
    if min((*self.stride, self.offset), default=0) < 0:
      raise ValueError(f'a tensor has the strides {self.stride}')
    start, size = self.offset * self.dtype.itemsize, self.dtype.itemsize
    data = np.frombuffer(storages[self.key], self.dtype, count, start)
    # A matrix may be stored transposed, or one row for several.
    return np.lib.stride_tricks.as_strided(
      data, self.shape, [size * step for step in self.stride], writeable=False
    )


def rebuild_tensor(
  storage: tuple[np.dtype, str],
  offset: int,
  shape: tuple[int, ...],
  stride: tuple[int, ...],
  *ignored: Any,
) -> StoredTensor:
  """Stands for torch._utils._rebuild_tensor_v2, which a pickle calls."""
  del ignored
  dtype, key = storage
  return StoredTensor(key, dtype, offset, tuple(shape), tuple(stride))


def rebuild_float8(
  storage: tuple[None, str],
  offset: int,
  shape: tuple[int, ...],
  stride: tuple[int, ...],
  requires_grad: bool,
  hooks: Any,
  dtype: np.dtype,
) -> StoredTensor:
  """Stands for torch._utils._rebuild_tensor_v3, of storages of bytes."""
  del requires_grad, hooks
  return rebuild_tensor((dtype, storage[1]), offset, shape, stride)


def rebuild_parameter(tensor: StoredTensor, *ignored: Any) -> StoredTensor:
  """Stands for torch._utils._rebuild_parameter."""
  del ignored
  return tensor


class ParameterDict:
  """Stands for torch.nn.ParameterDict, and keeps its parameters."""

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.parameters = dict(state['_parameters'])


class PassedOver:
  """Stands for an object of another program, and keeps nothing of it."""

  def __new__(cls, *args: Any, **kwargs: Any) -> 'PassedOver':
    del args, kwargs
    return object.__new__(cls)

  def __setstate__(self, state: Any) -> None:
    del state

  def __setitem__(self, key: Any, value: Any) -> None:
    del key, value

  def extend(self, values: Any) -> None:
    """Keeps nothing of what a pickle adds to a list."""
    del values

  append = extend


ALLOWED = {
  ('builtins', 'set'): set,
  ('__builtin__', 'set'): set,
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
  ('numpy.core.multiarray', '_reconstruct'): multiarray._reconstruct,
  ('numpy._core.multiarray', '_reconstruct'): multiarray._reconstruct,
  ('torch._utils', '_rebuild_tensor_v2'): rebuild_tensor,
  ('torch._utils', '_rebuild_tensor'): rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v3'): rebuild_float8,
  ('torch._utils', '_rebuild_parameter'): rebuild_parameter,
  ('torch.nn.modules.container', 'ParameterDict'): ParameterDict,
  BYTES: None,
  **{('torch', name): dtype for name, dtype in (STORAGES | FLOAT8).items()},
}
