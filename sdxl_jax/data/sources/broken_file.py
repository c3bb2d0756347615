"""The error of a file of a dataset that must be replaced or removed."""

import fsspec

from sdxl_jax.data import foreign_files


class BrokenFile(ValueError):
  """Raised for a file that must be replaced or removed."""

  @classmethod
  def of(
    cls, path: str, fs: fsspec.AbstractFileSystem, kind: str, error: Exception
  ) -> 'BrokenFile':
    """Makes the error of a file that cannot be read as its kind."""
    head = fs.cat_file(path, 0, foreign_files.HEAD)
    if (what := foreign_files.describe(head, kind)) is not None:
      return cls(f'{path}: {what}')
    return cls(
      f'{path} is a truncated or corrupt {kind} ({error}): re-download or '
      'remove it'
    )
