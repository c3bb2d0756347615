"""Parquet files of encoded images and captions, in Hugging Face's layout."""

import functools
import io
import logging
import os
import posixpath
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_jax.data import images
from sdxl_jax.data.sources import (
  captions,
  file_patterns,
  index,
  indexed,
  measuring,
  parquet_columns,
)

# Bytes; a row group is read as a whole for one image.
LARGE_ROW_GROUP = 64 << 20
READ_ROWS = 64  # converted to Python at once
# Columns in which img2dataset says why a row has no image.
STATUS = ('status', 'error_message')


class Parquet(indexed.IndexedSource):
  """Rows of parquet files, local or behind a URL.

  Args:
    files: pattern of paths, or of URLs that fsspec opens, or a folder.
    image: column of encoded bytes, of Hugging Face's {bytes, path}, or of paths
      relative to the file.
    caption: column of text, or of lists of texts, or of Hugging Face's labels,
      with dots for a field within a struct; '': captions are ''.
    score: column of aesthetic_score; '': none.
    columns: other columns, by which filters choose.
    workers: processes that read the files to index them.

  Raises:
    FileNotFoundError: if no file matches.
    ValueError: for a file that lacks one of the columns, or has another type
      there, or cannot be read.
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
    found = file_patterns.find(files, '.parquet')
    self.fs, self.image, self.caption = found.fs, image, caption
    # One part of the index for each file.
    columns = indexed.index_columns(columns, score)
    build_options = dict(
      base=found.base, image=image, caption=caption, columns=columns
    )
    super().__init__(
      index.load_files(
        'parquet',
        index.Files(str(files), found.fs, found.paths),
        build_options,
        measure,
        workers,
      ),
      beside=found.beside,
    )
    # Footers are small, and every read of a file needs its footer.
    self._metadata = functools.lru_cache(maxsize=4096)(self._metadata)

  def name(self, i: int) -> str:
    group, row = self.value('group', i), self.value('row', i)
    return f'{self.value("file", i)}: row {row}, in group {group}'

  def read(self, i: int) -> indexed.Example:
    path = self.value('file', i)
    try:
      with self.fs.open(path, 'rb') as file:
        parquet = pq.ParquetFile(file, metadata=self._metadata(path))
        columns = Columns(parquet, path, self.image, self.caption)
        table = parquet.read_row_group(self.value('group', i), columns.names)
      (row,) = columns.rows(table.slice(self.value('place', i), 1))
      value = captions.look_up(row, self.image)
      with open_image(self.fs, path, value) as file:
        image = file.read()
    except (OSError, pa.ArrowException) as error:
      raise images.UnreadableImage(self.name(i), error) from error
    return {'image': image, 'caption': columns.caption(row).text}

  def _metadata(self, path):
    """Reads the footer of a file, without which no row group can be read."""
    with self.fs.open(path, 'rb') as file:
      return pq.read_metadata(file)


class Columns:
  """The columns of a file that are read.

  Args:
    parquet: the open file.
    path: of it.
    image, caption: names of columns; caption '': none.
    others: names of further columns.
  """

  def __init__(
    self,
    parquet: pq.ParquetFile,
    path: str,
    image: str,
    caption: str,
    others: tuple[str, ...] = (),
  ):
    schema = parquet.schema_arrow
    self.folders = parquet_columns.of_folders(path)
    self.caption_name = caption
    tops = {
      parquet_columns.top(schema, name) for name in (image, caption, *others)
    }
    # Sorted, so that all processes ask alike.
    self.names = sorted(tops & {*schema.names})
    self.labels = parquet_columns.label_names(schema, caption)

  def rows(self, table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yields the values of each row of a table, and of the file's folders."""
    # A few at a time, since images take much memory.
    for batch in table.to_batches(max_chunksize=READ_ROWS):
      for row in batch.to_pylist():
        yield self.folders | row

  def caption(self, row: dict[str, Any]) -> captions.Caption:
    """Finds the caption of a row."""
    return parquet_columns.caption_of(row, self.caption_name, self.labels)


class NoImage(FileNotFoundError):
  """Raised for a row without an image."""


def open_image(
  fs: fsspec.AbstractFileSystem, path: str, value: bytes | dict | str | None
) -> IO[bytes]:
  """Opens the image of a row.

  Args:
    fs: file system of the parquet file.
    path: of the parquet file, to which paths of images are relative.
    value: encoded bytes, Hugging Face's {bytes, path}, or a path.

  Raises:
    NoImage: if there is none, saying why.
    OSError: if its file cannot be read.
  """
  if isinstance(value, dict):
    # Without bytes, the image is in the file of its path.
    data = value['bytes']
    value = value.get('path') if data is None else data
  if value is None or value == '':
    raise NoImage('null')
  if isinstance(value, bytes):
    return io.BytesIO(value)
  if '://' in value:
    raise NoImage(f'{value:.100} is a URL; download it')
  file = posixpath.join(posixpath.dirname(path), value)
  if not fs.isfile(file):
    raise NoImage(f'no file {file}')
  return fs.open(file, 'rb')


def measure(
  path: str,
  fs: fsspec.AbstractFileSystem,
  base: str,
  image: str,
  caption: str,
  columns: dict[str, str],
) -> pa.Table:
  """Measures a part of the index: one file.

  Args:
    path: of the file, on `fs`.
    fs: file system.
    base: folder to which names of records are relative.
    image, caption: names of columns; caption '': none.
    columns: {name in the index: name in the file}.
  """
  try:
    with fs.open(path, 'rb') as file:
      parquet = pq.ParquetFile(file)
      others = tuple(columns.values())
      schema = parquet.schema_arrow
      parquet_columns.check(schema, path, image, caption, others)
      check_urls(parquet, path, image)
      names = Columns(parquet, path, image, caption, (*others, *STATUS))
      reader = Reader(fs, path, path.removeprefix(base), names, image, columns)
      # Sizes are in the images' own headers, so every row is read once.
      rows = [
        reader.row(row, number, group, place)
        for number, (group, place, row) in enumerate(walk(parquet, names))
      ]
      warn_of_large_groups(parquet, path)
  except (OSError, pa.ArrowException) as error:
    # Both name no file.
    if isinstance(error, FileNotFoundError | PermissionError):
      raise
    raise ValueError(
      f'{path} is a truncated or corrupt parquet file ({error}): re-download '
      'or remove it'
    ) from error
  return make_table(path, rows, columns)


def check_urls(parquet: pq.ParquetFile, path: str, image: str) -> None:
  """Raises ValueError, with the way to download, where images are URLs."""
  schema = parquet.schema_arrow
  kind = parquet_columns.find_type(schema, image)
  is_string = kind is not None and parquet_columns.is_string(kind)
  if is_string and parquet.num_row_groups:
    column = parquet.read_row_group(0, [image])[image].drop_null()
    if len(column) and '://' in column[0].as_py():
      raise ValueError(
        f'{path} has no images, but their URLs.\n'
        f'{parquet_columns.download(path, image, schema)}'
      )


def walk(
  parquet: pq.ParquetFile, names: Columns
) -> Iterator[tuple[int, int, dict[str, Any]]]:
  """Yields row group, place in it, and the values of each row."""
  for group in range(parquet.num_row_groups):
    table = parquet.read_row_group(group, names.names)
    for place, row in enumerate(names.rows(table)):
      yield group, place, row


def warn_of_large_groups(parquet: pq.ParquetFile, path: str) -> None:
  """Warns of row groups that are slow to read."""
  sizes = [
    parquet.metadata.row_group(group).total_byte_size
    for group in range(parquet.num_row_groups)
  ]
  if (largest := max(sizes, default=0)) > LARGE_ROW_GROUP:
    logging.warning(
      '%s has row groups of %d MB, each read as a whole for one image: rewrite '
      'it with fewer rows in each (row_group_size=100)',
      path,
      largest >> 20,
    )


class Row(NamedTuple):
  """What the index holds of a row."""

  measured: indexed.Measured
  group: int
  place: int  # in the group
  values: dict[str, Any]  # {name in the index: value}


class Reader(NamedTuple):
  """Measures the rows of a file."""

  fs: fsspec.AbstractFileSystem
  path: str
  name: str  # of the file, relative to the dataset
  read: Columns
  image: str  # column
  columns: dict[str, str]  # {name in the index: name in the file}

  def row(
    self, row: dict[str, Any], number: int, group: int, place: int
  ) -> Row:
    """Measures a row; `number` is its place in the file."""
    name = f'{self.name}: {number}'
    values = {n: captions.look_up(row, c) for n, c in self.columns.items()}
    score, wrong = measuring.parse_score(values.get('aesthetic_score'))
    values['aesthetic_score'] = score
    value = captions.look_up(row, self.image)
    try:
      with open_image(self.fs, self.path, value) as file:
        caption = self.read.caption(row)
        measured = measuring.measure(name, file, caption, score)
    except NoImage as error:
      reasons = [str(row[c]) for c in STATUS if row.get(c)]
      detail = ', '.join([str(error), *reasons])
      measured = indexed.Measured(name, None, indexed.NO_IMAGE, detail)
    except OSError as error:
      measured = measuring.unreadable(name, error)
    return Row(measuring.check_score(measured, wrong), group, place, values)


def make_table(path: str, rows: list[Row], columns: dict[str, str]) -> pa.Table:
  """Makes the table of a file; arguments as for `measure`."""
  n = len(rows)
  return indexed.make_table(
    [row.measured for row in rows],
    {name: [row.values.get(name) for row in rows] for name in columns},
    file=pa.array([path] * n, pa.string()).dictionary_encode(),
    group=np.array([row.group for row in rows], np.int32),
    place=np.array([row.place for row in rows], np.int32),
    row=np.arange(n, dtype=np.int32),
  )
