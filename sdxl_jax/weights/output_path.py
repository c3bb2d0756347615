"""Checks, before any work, that weights can be written to a path."""

import os
import pathlib
import shutil
from collections.abc import Sequence


def check_replaceable(
  path: str | pathlib.Path,
  is_folder: bool,
  overwrite: bool,
  inputs: Sequence[str | pathlib.Path] = (),
) -> None:
  """Checks that a path is free, or may be replaced.

  Args:
    path: to write.
    is_folder: whether a folder will be written, or a file.
    overwrite: whether a file, or a folder with a model, may be replaced.
    inputs: paths that are read, and so must not be replaced.

  Raises:
    FileExistsError: if the path exists and may not be replaced.
  """
  path = pathlib.Path(path).absolute()
  if not os.path.lexists(path):
    return
  if not overwrite:
    raise FileExistsError(
      f'{path} exists: remove it, write elsewhere, or pass --overwrite'
    )
  # A wrong path must not cost a folder of other files.
  if path.is_dir() and not (path / 'model_index.json').is_file():
    raise FileExistsError(f'{path} is a folder without a model: remove it')
  if path.is_dir() != is_folder:
    kinds = {True: 'folder', False: 'file'}
    raise FileExistsError(
      f'{path} is a {kinds[path.is_dir()]}, which a {kinds[is_folder]} does '
      'not replace: remove it, or write elsewhere'
    )
  for read in map(pathlib.Path, inputs):
    if path.resolve() in (read.resolve(), *read.resolve().parents):
      raise FileExistsError(
        f'{path} holds {read}, which is read: write elsewhere'
      )


def check_disk_space(path: str | pathlib.Path, size: int) -> None:
  """Raises OSError if `size` bytes do not fit on the disk of a path."""
  path = pathlib.Path(path).absolute()
  folder = next(parent for parent in path.parents if parent.exists())
  free = shutil.disk_usage(folder).free
  if free < size:
    raise OSError(
      f'{folder} has {free / 1e9:.3g} GB left, and {path.name} takes '
      f'{size / 1e9:.3g} GB: make room, or choose a shorter dtype'
    )
