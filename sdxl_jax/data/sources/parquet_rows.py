"""The rows of a parquet file: their images, captions and scores."""

import io
import posixpath
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_jax.data.sources import (
  captions,
  indexed,
  measuring,
  parquet_columns,
  parquet_values,
)

MAX_PATH = 1024  # characters; images in base64 have more
READ_ROWS = 64  # converted to Python at once
# Columns in which img2dataset says why a row has no image.
STATUS = ('status', 'error_message')


class Columns:
  """The columns of a file that are read.

  Args:
    parquet: the open file.
    path: of it.
    image, caption: names of columns; caption '': none.
    others: names of further columns.
    several: whether all captions of a list are used.
  """

  def __init__(
    self,
    parquet: pq.ParquetFile,
    path: str,
    image: str,
    caption: str,
    others: tuple[str, ...] = (),
    several: bool = False,
  ):
    schema, self.several = parquet.schema_arrow, several
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
      for row in parquet_values.to_rows(batch):
        yield self.folders | row

  def caption(self, row: dict[str, Any]) -> captions.Caption:
    """Finds the caption of a row."""
    return parquet_columns.caption_of(
      row, self.caption_name, self.labels, self.several
    )


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
  if not isinstance(value, str):
    raise NoImage(f'{type(value).__name__}, not one image')
  if '://' in value:
    raise NoImage(f'{value:.100} is a URL; download it')
  if len(value) > MAX_PATH:
    raise NoImage(
      f'{value[:40]!r}... of {len(value):,} characters is no path; write the '
      'encoded bytes of the image, not text'
    )
  file = posixpath.join(posixpath.dirname(path), value)
  if not fs.isfile(file):
    raise NoImage(f'no file {file:.200}')
  return fs.open(file, 'rb')


def read_mask(
  fs: fsspec.AbstractFileSystem, path: str, row: dict[str, Any], name: str
) -> bytes | None:
  """Reads the mask of a row; None where its column is null or empty.

  Raises:
    OSError: if its file cannot be read.
  """
  value = captions.look_up(row, name)
  if isinstance(value, dict) and not any(value.values()):
    value = None
  if value is None or value == '':
    return None
  with open_image(fs, path, value) as file:
    return file.read()


def walk(
  parquet: pq.ParquetFile, names: Columns
) -> Iterator[tuple[int, int, dict[str, Any]]]:
  """Yields row group, place in it, and the values of each row."""
  for group in range(parquet.num_row_groups):
    table = parquet.read_row_group(group, names.names)
    for place, row in enumerate(names.rows(table)):
      yield group, place, row


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
  mask: str = ''  # column; '': none

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
        mask = self.open_mask(row)
        measured = measuring.measure(name, file, caption, score, mask)
    except NoImage as error:
      reasons = [str(row[c]) for c in STATUS if row.get(c)]
      detail = ', '.join([str(error), *reasons])
      measured = indexed.Measured(name, None, indexed.NO_IMAGE, detail)
    except OSError as error:
      measured = measuring.unreadable(name, error)
    return Row(measuring.check_score(measured, wrong), group, place, values)

  def open_mask(self, row: dict[str, Any]) -> IO[bytes] | None:
    """Opens the mask of a row; None if it has none."""
    data = self.mask and read_mask(self.fs, self.path, row, self.mask)
    return io.BytesIO(data) if data else None
