"""Files and folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil


@contextlib.contextmanager
def atomic_path(path, need=0, overwrite=False, keep=()):
  """A path to write to, which takes the place of another in the end.

  What was begun is removed when anything fails; what was there before stays
  until all is written.

  Args:
    path: of a file or folder.
    need: bytes that will be written.
    overwrite: whether a file, or a folder with a model, may be replaced.
    keep: paths that are still read, and must not be replaced.

  Raises:
    FileExistsError: for a path that is taken.
    OSError: where the disk has no room, before anything is written.
  """
  path = pathlib.Path(path).absolute()
  check_free(path, overwrite, keep)
  path.parent.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(path.parent).free
  if free < need:
    raise OSError(
      f'{path.parent} has {free / 1e9:.3g} GB left, and {path.name} takes '
      f'{need / 1e9:.3g} GB: make room, or choose a shorter dtype'
    )
  partial = path.with_name(f'{path.name}.partial')
  remove(partial)
  try:
    yield partial
    if path.is_dir():
      old = path.with_name(f'{path.name}.old')
      remove(old)
      os.rename(path, old)
      os.rename(partial, path)
      remove(old)
    else:
      os.replace(partial, path)
  finally:
    remove(partial)


def check_free(path, overwrite, keep=()):
  """Raises FileExistsError where a path may not be written to."""
  path = pathlib.Path(path).absolute()
  if not os.path.lexists(path):
    return
  if not overwrite:
    raise FileExistsError(
      f'{path} exists: remove it, write elsewhere, or give --overwrite'
    )
  if path.is_dir() and not (path / 'model_index.json').is_file():
    raise FileExistsError(f'{path} is a folder without a model: remove it')
  for other in keep:
    if path.resolve() in [(o := pathlib.Path(other).resolve()), *o.parents]:
      raise FileExistsError(
        f'{path} holds {other}, which is read: write elsewhere'
      )


def remove(path):
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
