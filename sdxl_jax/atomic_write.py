"""Atomic writes: a file or folder is at its path complete, or not at all."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_path(
  path: str | pathlib.Path, overwrite: bool = True
) -> Iterator[pathlib.Path]:
  """Yields a temporary path in the same folder, renamed to `path` at the end.

  The caller writes a file or a folder to it. If the caller fails, it is removed
  and `path` stays as it was. Its name is random and ends in '.partial', so that
  processes and threads that write the same path never share a temporary file,
  the last one wins, and no reader takes what a killed process has left.

  A symbolic link at `path` is kept, and its target is replaced. A device or a
  pipe is written directly.

  Args:
    path: of a file or folder; missing parent folders are made.
    overwrite: whether a file replaces a file and a folder replaces a folder.

  Raises:
    FileExistsError: if `path` exists and `overwrite` is False.
    IsADirectoryError, NotADirectoryError: if a file is written where a folder
      is, or a folder where a file is.
  """
  if not overwrite and os.path.lexists(path):
    raise FileExistsError(
      f'{path} exists: remove it, write elsewhere, or pass --overwrite'
    )
  # Follow a link, so that the temporary path is on the disk of its target.
  path = pathlib.Path(os.path.realpath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists() and not (path.is_file() or path.is_dir()):
    yield path  # a device or a pipe
    return
  partial = temporary_path(path)
  try:
    yield partial
    if partial.is_dir() and path.is_dir():
      replace_folder(partial, path)
    else:
      os.replace(partial, path)
  finally:
    remove(partial)


def write_bytes(path: str | pathlib.Path, data: bytes) -> None:
  """Writes a file of bytes atomically."""
  with atomic_path(path) as partial:
    partial.write_bytes(data)


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes a file of text atomically, as UTF-8."""
  write_bytes(path, text.encode())


def temporary_path(path: pathlib.Path) -> pathlib.Path:
  """Returns an unused hidden name in the folder of `path`."""
  # File systems limit a name to 255 bytes; a character has at most four.
  return path.with_name(f'.{path.name[:40]}.{secrets.token_hex(8)}.partial')


def replace_folder(new: pathlib.Path, path: pathlib.Path) -> None:
  """Moves a folder to the path of another, which is removed."""
  # No portable call exchanges two folders: for an instant `path` is missing.
  old = temporary_path(path)
  os.rename(path, old)
  try:
    os.rename(new, path)
  except OSError:
    os.rename(old, path)
    raise
  remove(old)


def remove(path: pathlib.Path) -> None:
  """Removes a file or a folder, if it exists."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
