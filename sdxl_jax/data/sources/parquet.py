"""Parquet files of encoded images and captions, in Hugging Face's layout."""

import functools
import io
import logging
import os

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_jax.data import images
from sdxl_jax.data.sources import index, indexed

# Bytes; a row group is read as a whole for one image.
LARGE_ROW_GROUP = 64 << 20


class Parquet(indexed.IndexedSource):
  """Rows of parquet files, local or behind a URL.

  Args:
    files: pattern of paths, or of URLs that fsspec opens.
    image: column of encoded bytes, or of Hugging Face's {bytes, path}.
    caption: column of text; '': captions are ''.
    score: column of aesthetic_score; '': none.
    columns: other columns, by which filters choose.
    workers: processes that read the files to index them.

  Raises:
    FileNotFoundError: if no file matches.
    ValueError: for a file that lacks one of the columns.
  """

  def __init__(
    self,
    files: str | os.PathLike,
    image: str = 'image',
    caption: str = 'text',
    score: str = '',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    # Sorted, so that all hosts number the records alike.
    self.fs, pattern = fsspec.core.url_to_fs(str(files))
    self.image, self.caption = image, caption
    paths = sorted(self.fs.glob(pattern))
    if not paths:
      raise FileNotFoundError(
        f'no parquet file matches {files}: check the path, or the login for a '
        'URL'
      )
    # One part of the index for each file.
    columns = indexed.index_columns(columns, score)
    super().__init__(
      index.load_files(
        'parquet',
        index.Files(str(files), self.fs, paths),
        dict(image=image, caption=caption, columns=columns),
        measure,
        workers,
      )
    )
    # Footers are small, and every read of a file needs its footer.
    self._metadata = functools.lru_cache(maxsize=4096)(self._metadata)

  def name(self, i: int) -> str:
    group, row = self.value('group', i), self.value('place', i)
    return f'{self.value("file", i)}: row {row} of group {group}'

  def read(self, i: int) -> indexed.Example:
    path, group = self.value('file', i), self.value('group', i)
    names = [name for name in (self.image, self.caption) if name]
    try:
      with self.fs.open(path, 'rb') as file:
        parquet = pq.ParquetFile(file, metadata=self._metadata(path))
        table = parquet.read_row_group(group, names)
    except (OSError, pa.ArrowException) as error:
      raise images.UnreadableImage(self.name(i), error) from error
    row = table.slice(self.value('place', i), 1).to_pylist()[0]
    caption = row[self.caption].strip() if self.caption else ''
    return {'image': bytes_of(row[self.image]), 'caption': caption}

  def _metadata(self, path):
    """Reads the footer of a file, without which no row group can be read."""
    with self.fs.open(path, 'rb') as file:
      return pq.read_metadata(file)


def bytes_of(value: bytes | dict | None) -> bytes:
  """Returns an image's bytes, which Hugging Face wraps in {bytes, path}."""
  if isinstance(value, dict):
    value = value['bytes']
  return value or b''


def measure(
  path: str,
  fs: fsspec.AbstractFileSystem,
  image: str,
  caption: str,
  columns: dict[str, str],
) -> pa.Table:
  """Measures a part of the index: one file.

  Args:
    path: of the file, on `fs`.
    fs: file system.
    image, caption: names of columns; caption '': none.
    columns: {name in the index: name in the file}.
  """
  with fs.open(path, 'rb') as file:
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    missing = {image, caption, *columns.values()} - {*names, ''}
    if missing:
      raise ValueError(f'{path} has no column {sorted(missing)}, but {names}')
    count = parquet.num_row_groups
    # Sizes are in the images' own headers, so every row is read once.
    tables = [
      measure_group(parquet, path, group, image, caption, columns)
      for group in range(count)
    ]
    largest = max(
      parquet.metadata.row_group(group).total_byte_size
      for group in range(count)
    )
  if largest > LARGE_ROW_GROUP:
    logging.warning(
      '%s has row groups of %d MB, each read as a whole for one image: rewrite '
      'it with fewer rows in each (row_group_size=100)',
      path,
      largest >> 20,
    )
  return index.join(tables)


def measure_group(
  parquet: pq.ParquetFile,
  path: str,
  group: int,
  image: str,
  caption: str,
  columns: dict[str, str],
) -> pa.Table:
  """Measures the records of one row group; arguments as for `measure`."""
  names = [name for name in (image, caption, *columns.values()) if name]
  table = parquet.read_row_group(group, names)
  n = table.num_rows
  problems = [indexed.USABLE] * n
  if caption:
    valid = table[caption].is_valid().to_numpy()
    problems = np.where(valid, indexed.USABLE, indexed.NO_CAPTION).tolist()
  sizes = [
    indexed.size_of(io.BytesIO(bytes_of(v.as_py()))) for v in table[image]
  ]
  return indexed.make_table(
    [
      indexed.Measured(f'{path}/{group}/{row}', size, problem)
      for row, (size, problem) in enumerate(zip(sizes, problems))
    ],
    {n: table[name].to_pylist() for n, name in columns.items()},
    file=pa.array([path] * n, pa.string()).dictionary_encode(),
    group=pa.array(np.full(n, group, np.int32)),
    place=pa.array(np.arange(n, dtype=np.int32)),
  )
