"""Lists what lies below a folder, links followed, nothing left uncounted."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import tqdm

from sdxl_jax.data.sources import index, indexed

Inode = tuple[int, int]  # (device, number) of a folder


@dataclasses.dataclass
class Listing:
  """What lies below a folder; paths are relative to it."""

  # Visible files, in the same order on every host.
  files: list[str] = dataclasses.field(default_factory=list)
  # What is no file, nor a folder of files.
  unusable: list[indexed.Measured] = dataclasses.field(default_factory=list)
  hidden: int = 0  # files and folders whose names start with a dot

  def reject(self, path: str, problem: int, detail: str | None) -> None:
    """Adds what cannot be used."""
    row = indexed.Measured(path, None, problem, detail or 'it cannot be read')
    self.unusable.append(row)


def list_files(folder: pathlib.Path) -> Listing:
  """Lists a folder.

  Raises:
    FileNotFoundError: if there is no such folder.
    NotADirectoryError: if the path is one of a file.
  """
  if folder.is_file():
    raise NotADirectoryError(
      f'image folder {folder} is a file; name the folder, or see '
      'config.data.source for tars, parquet files and others'
    )
  if not folder.is_dir():
    raise FileNotFoundError(
      f'image folder {folder}: no such folder; check the path'
    )
  listing = Listing()
  files = walk(folder, '', (inode(folder),), listing)
  progress = tqdm.tqdm(files, desc='listing images', unit='file', delay=2)
  listing.files = sorted(progress)
  listing.unusable.sort()
  return listing


def inode(folder: str | os.PathLike) -> Inode:
  """Identifies a folder, the same for all paths that lead to it."""
  stat = os.stat(folder)
  return stat.st_dev, stat.st_ino


def walk(
  folder: str | os.PathLike,
  prefix: str,
  ancestors: tuple[Inode, ...],
  listing: Listing,
) -> Iterator[str]:
  """Yields the visible files below a folder.

  Args:
    folder: to list.
    prefix: of the yielded paths.
    ancestors: the folder and those that contain it, on the path taken.
    listing: gets everything else.
  """
  try:
    entries = list(os.scandir(folder))
  except OSError as error:
    listing.reject(prefix, indexed.UNREADABLE, error.strerror)
    return
  for entry in entries:
    path = prefix + entry.name
    if entry.name.startswith('.'):
      # Not the index, which the first start writes.
      listing.hidden += not entry.name.startswith(index.HIDDEN_PREFIX)
      continue
    try:
      if entry.is_dir():
        yield from enter(entry, path, ancestors, listing)
      elif entry.is_file():
        yield path
      elif entry.is_symlink():
        listing.reject(path, indexed.LINK, 'its target is missing')
      else:
        listing.reject(path, indexed.UNKNOWN_SUFFIX, 'no regular file')
    except OSError as error:
      problem = indexed.LINK if entry.is_symlink() else indexed.UNREADABLE
      listing.reject(path, problem, error.strerror)


def enter(
  entry: os.DirEntry,
  path: str,
  ancestors: tuple[Inode, ...],
  listing: Listing,
) -> Iterator[str]:
  """Yields the files of a folder, unless it is one of its ancestors."""
  here = inode(entry.path)
  if here in ancestors:
    listing.reject(path, indexed.LINK, 'to a folder that contains it')
  else:
    yield from walk(entry.path, f'{path}/', (*ancestors, here), listing)


def normalise(folder: pathlib.Path, base: str, name: str) -> str:
  """Returns the path of a row's image as the listing has it."""
  path = os.path.normpath(os.path.join(base, name))
  return path.removeprefix(f'{folder}/')
