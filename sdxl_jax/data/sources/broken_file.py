"""The error of a file of a dataset that must be replaced or removed."""

import fsspec

LFS = b'version https://git-lfs'  # how a pointer in place of a file begins


class BrokenFile(ValueError):
  """Raised for a file that must be replaced or removed."""

  @classmethod
  def of(
    cls, path: str, fs: fsspec.AbstractFileSystem, kind: str, error: Exception
  ) -> 'BrokenFile':
    """Makes the error of a file that cannot be read as its kind."""
    if fs.cat_file(path, 0, len(LFS)) == LFS:
      return cls(
        f'{path} is a pointer of Git LFS in place of the {kind}: run '
        '`git lfs pull` in its folder'
      )
    return cls(
      f'{path} is a truncated or corrupt {kind} ({error}): re-download or '
      'remove it'
    )
