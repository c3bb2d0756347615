"""Reads arrays from pickles without running the code that a pickle names.

A pickle names functions that its loader calls. Only those of `pickle_names` are
called here; any other name is an error. Three kinds of file are read: trees of
numpy arrays, and trees of tensors as torch.save writes them, as a zip or in its
older form: state dicts (torchvision's VGG16 and the heads of LPIPS are
published in both; older models have their weights in .bin, .ckpt and .pt files)
and dicts within dicts (textual inversion).
"""

import contextlib
import functools
import os
import pathlib
import pickle
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from sdxl_jax.weights import checked_cast, pickle_names
from sdxl_jax.weights.safetensors_file import LazyTensor

# The first pickle of a file in torch.save's older form.
OLDER_MAGIC = 0x1950A86A20F9469CFC6C


class Unpickler(pickle.Unpickler):
  """Unpickles the names of pickle_names.ALLOWED and refuses all others."""

  def find_class(self, module: str, name: str) -> Any:
    if pickle_names.PASSED_OVER.fullmatch(f'{module}.{name}'):
      return pickle_names.PassedOver
    if (module, name) not in pickle_names.ALLOWED:
      raise pickle.UnpicklingError(f'it calls {module}.{name}')
    return pickle_names.ALLOWED[module, name]

  def persistent_load(self, saved: tuple) -> tuple[np.dtype, str] | type:
    kind, value, key, *_ = saved
    # The older form has classes here, with their source code.
    return value if kind == 'module' else (value, key)


def load(path: str | pathlib.Path) -> dict[str, Any]:
  """Loads a tree of arrays: dicts, lists, and other values of Python.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is corrupt or holds anything else.
  """
  path = pathlib.Path(path)
  with refuse_corrupt(path):
    if zipfile.is_zipfile(path):
      return load_zip(path)
    with open(path, 'rb') as file:
      content = Unpickler(file).load()
      return load_older(file) if content == OLDER_MAGIC else content


def open_tensors(path: str | pathlib.Path) -> dict[str, LazyTensor]:
  """Opens the {name: tensor} of a state dict, whose data is read on demand.

  A checkpoint of PyTorch Lightning holds the state dict under 'state_dict'. The
  older form of a file is read whole.

  Raises:
    ValueError: if the file is corrupt or holds anything else.
  """
  path = pathlib.Path(path)
  tensors = tensors_of(open_tree(path), path)
  if not zipfile.is_zipfile(path):
    # All is in memory already, so NaN is found now.
    for tensor in tensors.values():
      tensor.read()
  return tensors


def open_tree(path: str | pathlib.Path) -> Any:
  """Opens a tree as `load` does, with LazyTensors, whose data is not read.

  The older form of a file is read whole.

  Raises:
    ValueError: if the file is corrupt or holds anything else.
  """
  path = pathlib.Path(path)
  if not zipfile.is_zipfile(path):
    hold = functools.partial(hold_array, path)
    return replace_tensors(load(path), np.ndarray, hold)
  # The archive stays open, since its directory takes long to parse; the last
  # of its tensors closes it.
  with refuse_corrupt(path):
    archive = zipfile.ZipFile(path)
    folder, tree = read_root(archive)
    # Python's zipfile asks where its file is outside of its own lock, and takes
    # the place of another thread's read for a broken archive.
    hold = functools.partial(hold_stored, archive, folder, threading.Lock())
    return replace_tensors(tree, pickle_names.StoredTensor, hold)


def hold_array(path: pathlib.Path, name: str, array: np.ndarray) -> LazyTensor:
  """Wraps an array of a file that was read whole."""
  read = functools.partial(check_array, path, name, array)
  return LazyTensor(array.shape, array.dtype, read, name)


def check_array(
  path: str | os.PathLike[str], name: str, array: np.ndarray
) -> np.ndarray:
  """Returns an array of a file, and refuses NaN and infinity."""
  checked_cast.check_stored(name, array, str(path))
  return array


def hold_stored(
  archive: zipfile.ZipFile,
  folder: str,
  lock: threading.Lock,
  name: str,
  stored: pickle_names.StoredTensor,
) -> LazyTensor:
  """Wraps a tensor of a zip, which one thread reads at a time."""
  read = functools.partial(read_stored, archive, folder, lock, name, stored)
  return LazyTensor(stored.shape, stored.dtype, read, name)


def tensors_of(content: Any, path: pathlib.Path) -> dict[str, LazyTensor]:
  """Returns the tensors in the content of a file."""
  if isinstance(content, dict):
    content = content.get('state_dict', content)
  named = content if isinstance(content, dict) else {}
  tensors = {
    name: x
    for name, x in named.items()
    if isinstance(name, str) and isinstance(x, LazyTensor)
  }
  # Names are printed in errors.
  if not all(name.isprintable() for name in tensors):
    raise ValueError(f'{path} has a tensor with a name that is no text')
  if not tensors:
    raise ValueError(
      f'{path} is a pickle without a state dict of tensors: use the '
      '.safetensors of this model'
    )
  return tensors


def read_stored(
  archive: zipfile.ZipFile,
  folder: str,
  lock: threading.Lock,
  name: str,
  stored: pickle_names.StoredTensor,
) -> np.ndarray:
  """Reads one tensor of a zip, and refuses NaN and infinity."""
  with refuse_corrupt(archive.filename):
    with lock:
      data = archive.read(f'{folder}/{stored.key}')
    array = stored.read({stored.key: data})
  return check_array(archive.filename, name, array)


@contextlib.contextmanager
def refuse_corrupt(path: str | os.PathLike[str]) -> Iterator[None]:
  """Refuses a file in one line, whatever error its content raises.

  The opcodes of a corrupt pickle can raise any. Those of the system stay: a
  file that is missing or must not be read, and too little memory.
  """
  try:
    yield
  except (FileNotFoundError, PermissionError, MemoryError):
    raise
  except Exception as error:
    reason = ' '.join(str(error).split())[:200]
    raise checked_cast.StoredError(
      f'{path} is not a pickle of arrays alone ({reason}): re-download the '
      'published file, or use safetensors'
    ) from error


def read_root(archive: zipfile.ZipFile) -> tuple[str, Any]:
  """Reads (folder of the storages, content) of a zip that torch.save wrote."""
  root = next(n for n in archive.namelist() if n.endswith('data.pkl'))
  with archive.open(root) as file:
    content = Unpickler(file).load()
  # The pickle names storages, which are files of the archive.
  return root.removesuffix('.pkl'), content


def load_zip(path: pathlib.Path) -> Any:
  """Loads a tree of tensors that torch.save wrote as a zip."""
  with zipfile.ZipFile(path) as archive:
    folder, tree = read_root(archive)
    keys = {tensor.key for tensor in stored_tensors(tree)}
    storages = {key: archive.read(f'{folder}/{key}') for key in keys}
  return fill(tree, storages)


def load_older(file: BinaryIO) -> Any:
  """Loads the rest of a tree of tensors in torch.save's older form."""
  version, machine, tree = (Unpickler(file).load() for _ in range(3))
  if version != 1001 or not machine['little_endian']:
    raise pickle.UnpicklingError(f'version {version} of {machine}')
  # Then the keys of all storages, and for each its count and bytes.
  sizes = {t.key: t.dtype.itemsize for t in stored_tensors(tree)}
  storages = {}
  for key in Unpickler(file).load():
    (count,) = struct.unpack('<q', file.read(8))
    storages[key] = file.read(count * sizes[key])
  return fill(tree, storages)


def children(value: Any) -> dict[Any, Any]:
  """Returns the entries of a dict, list, tuple or ParameterDict, by key."""
  if isinstance(value, pickle_names.ParameterDict):
    return value.parameters
  if isinstance(value, list | tuple):
    return dict(enumerate(value))
  return value if isinstance(value, dict) else {}


def stored_tensors(tree: Any) -> Iterator[pickle_names.StoredTensor]:
  """Yields the tensors of a tree."""
  if isinstance(tree, pickle_names.StoredTensor):
    yield tree
  for value in children(tree).values():
    yield from stored_tensors(value)


def fill(tree: Any, storages: dict[str, bytes]) -> Any:
  """Returns a tree with arrays in place of tensors, and dicts of parameters."""
  return replace_tensors(
    tree, pickle_names.StoredTensor, lambda _, tensor: tensor.read(storages)
  )


def replace_tensors(
  tree: Any, kind: type, make: Callable[[str, Any], Any], name: str = '*'
) -> Any:
  """Returns a tree with make(name, tensor) in place of each tensor of a type.

  Parameters become dicts.

  Args:
    tree: of dicts and lists.
    kind: type of its tensors.
    make: function of the last key above a tensor, and of the tensor.
    name: of the tree, if it is a tensor.
  """
  if isinstance(tree, kind):
    return make(name, tree)
  if isinstance(tree, list | tuple):
    return [replace_tensors(value, kind, make, name) for value in tree]
  if isinstance(tree, dict | pickle_names.ParameterDict):
    return {
      key: replace_tensors(value, kind, make, str(key))
      for key, value in children(tree).items()
    }
  return tree
