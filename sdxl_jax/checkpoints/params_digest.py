"""Identifies nets by their parameters, independent of path and file format."""

import hashlib
from typing import Any

import jax
import numpy as np

from sdxl_jax.distributed import multihost


def digest(params: dict[str, Any]) -> str:
  """Hashes names, shapes, types and values of a net's parameters.

  A gigabyte takes about a second. One array at a time is on the host.

  Args:
    params: tree of arrays, with any shardings; all processes call with theirs.
  """
  whole = hashlib.blake2b(digest_size=16)
  for path, array in jax.tree.leaves_with_path(params):
    array = multihost.fetch(array)
    name = jax.tree_util.keystr(path)
    whole.update(f'{name} {array.dtype} {array.shape}'.encode())
    whole.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return whole.hexdigest()
