"""The files that a pattern of paths or URLs names."""

import os
import re
from collections.abc import Collection
from typing import NamedTuple

import fsspec
from fsspec.implementations import local

from sdxl_jax.data.sources import indexed

KINDS = {'.tar': 'tar', '.parquet': 'parquet file'}


class Found(NamedTuple):
  """The files of a pattern."""

  fs: fsspec.AbstractFileSystem  # that holds them
  paths: list[str]  # on `fs`, in the order in which all hosts number them
  missing: list[str]  # that the pattern names without a wildcard, in vain
  base: str  # folder to which names are relative, so that a copy keeps them

  @property
  def beside(self) -> dict[str, int]:
    """What an account says of the files."""
    what = 'files that the pattern names, but that do not exist'
    return {what: len(self.missing)} if self.missing else {}


class Lister(local.LocalFileSystem):
  """Keeps the errors of folders that cannot be listed, which glob drops."""

  cachable = False  # each has errors of its own

  def __init__(self):
    super().__init__()
    self.denied = []

  def ls(self, path: str, **options: bool) -> list:
    try:
      return super().ls(path, **options)
    except PermissionError as error:
      self.denied.append(error)
      raise


def find(pattern: str | os.PathLike, suffix: str) -> Found:
  """Finds the files of a pattern.

  Args:
    pattern: of paths, or of URLs that fsspec opens; {000..127} is expanded. Of
      a folder, all files below it with the suffix.
    suffix: of files in folders, of KINDS.

  Raises:
    FileNotFoundError: if there are none.
    PermissionError: for a folder that cannot be listed.
    ValueError: for a file system that fsspec lacks, or a name that is no text.
  """
  try:
    fs, stripped = fsspec.core.url_to_fs(str(pattern))
  # Of packages that a protocol needs, and of unknown protocols.
  except (ImportError, ValueError) as error:
    raise ValueError(f'{pattern} cannot be opened: {error}') from error
  paths, missing = set(), []
  lister = Lister() if isinstance(fs, local.LocalFileSystem) else fs
  for part in braces(stripped):
    found = lister.glob(part, detail=True)
    if not found:
      missing.append(part)
    for path, info in found.items():
      if info['type'] == 'directory':
        below = lister.glob(f'{path}/**/*{suffix}', detail=True)
        paths.update(p for p, i in below.items() if i['type'] != 'directory')
      else:
        paths.add(path)
  for error in getattr(lister, 'denied', ()):
    raise PermissionError(
      f'{error.filename} of {pattern} cannot be listed: give this user the '
      'right to read it (chmod), or name other folders'
    ) from error
  if not paths:
    raise FileNotFoundError(
      f'no {KINDS[suffix]} matches {pattern or "an empty path"}: check the '
      'path, or the login for a URL'
    )
  for path in paths:
    if any('\ud800' <= c <= '\udfff' for c in path):
      raise ValueError(
        f'the name of {indexed.printable(path)} is not UTF-8: rename the file '
        'or the folder'
      )
  return Found(fs, sorted(paths), missing, base_folder(stripped, paths))


def braces(pattern: str) -> list[str]:
  """Expands {000..127} in a pattern."""
  match = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
  if not match:
    return [pattern]
  first, last = match.groups()
  before, after = pattern[: match.start()], pattern[match.end() :]
  return [
    expanded
    for n in range(int(first), int(last) + 1)
    for expanded in braces(f'{before}{n:0{len(first)}d}{after}')
  ]


def base_folder(pattern: str, paths: Collection[str]) -> str:
  """Returns the folder of a pattern, up to its first wildcard."""
  start = re.split(r'[*?\[{]', pattern, maxsplit=1)[0]
  # Of a folder, the folder itself.
  if start == pattern and pattern not in paths:
    return start.rstrip('/') + '/'
  return start[: start.rfind('/') + 1]
