"""What generated images are compared with: statistics, or a folder of images.

Features of a folder are kept, and computed anew when an image or the weights of
the net are others.
"""

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.distributed import multihost
from sdxl_jax.evaluation import features
from sdxl_jax.weights import metric_files

VERSION = 1  # of what is kept; more where features change


def is_statistics(path: str | os.PathLike) -> bool:
  """Whether a reference is a file of statistics, by its name."""
  return pathlib.Path(path).suffix.lower() == '.npz'


def default_folder() -> pathlib.Path:
  """Returns the folder in which features are kept."""
  return metric_files.default_folder() / 'features'


def compute_kept(
  extractors: Mapping[str, features.Extractor],
  images: Sequence[pathlib.Path],
  folder: str | os.PathLike | None = None,
  mesh: jax.sharding.Mesh | None = None,
  batch_size: int = 8,
  say: Callable[[str], Any] = print,
) -> dict[str, features.Features]:
  """Computes features of images, or reads what an earlier call has kept.

  Args:
    extractors: {name: extractor}.
    images: paths.
    folder: in which features are kept; None: the default.
    mesh, batch_size: see features.compute_all.
    say: prints a line for the user.
  """
  folder = pathlib.Path(folder or default_folder())
  paths = {name: kept_path(folder, e, images) for name, e in extractors.items()}
  found = {}
  for name, path in paths.items():
    # Another process may not see the folder, or see it later.
    kept = read(path, len(images)) if multihost.is_primary() else None
    if (kept := multihost.array_from_primary(kept)) is not None:
      found[name] = kept
      say(f'reference: {extractors[name].name} features from {path}')
  missing = {n: e for n, e in extractors.items() if n not in found}
  if missing:
    computed = features.compute_all(
      missing, images, mesh, batch_size, 'reference'
    )
    for name, array in computed.items():
      if multihost.is_primary():
        write(paths[name], array)
    found |= computed
  return {name: found[name] for name in extractors}


def kept_path(
  folder: pathlib.Path,
  extractor: features.Extractor,
  images: Sequence[pathlib.Path],
) -> pathlib.Path:
  """Returns the path for features, by all that they depend on."""
  lines = [str(VERSION), extractor.name, extractor.source]
  lines += map(metric_files.fingerprint, images)
  digest = hashlib.sha256('\n'.join(lines).encode(errors='surrogateescape'))
  return folder / f'{digest.hexdigest()[:32]}.npz'


def read(path: pathlib.Path, count: int) -> features.Features | None:
  """Reads kept features; None where there are none, or they are broken."""
  try:
    with np.load(path, allow_pickle=False) as file:
      array = file['features']
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
    return None
  return array if array.shape[:1] == (count,) else None


def write(path: pathlib.Path, array: features.Features) -> None:
  """Keeps features."""
  with atomic_write.atomic_path(path) as partial:
    with open(partial, 'wb') as file:
      np.savez(file, features=array)
