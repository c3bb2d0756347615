"""Parquet files of encoded images and captions, in Hugging Face's layout."""

import functools
import logging
import os

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_jax.data import images
from sdxl_jax.data.sources import (
  broken_file,
  captions,
  file_patterns,
  index,
  indexed,
  parquet_columns,
  parquet_rows,
  parquet_values,
)

# Bytes; a row group is read as a whole for one image.
LARGE_ROW_GROUP = 64 << 20


class Parquet(indexed.IndexedSource):
  """Rows of parquet files, local or behind a URL.

  Args:
    files: pattern of paths, or of URLs that fsspec opens, or a folder.
    image: column of encoded bytes, of Hugging Face's {bytes, path}, or of paths
      relative to the file.
    caption: column of text, or of lists of texts, or of Hugging Face's labels,
      with dots for a field within a struct; '': captions are ''.
    score: column of aesthetic_score; '': none.
    several: whether all captions of a list are used.
    mask: column of masks, of the same kinds as the image; '': none.
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
    several: bool = False,
    mask: str = '',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    found = file_patterns.find(files, '.parquet')
    self.fs, self.image, self.caption = found.fs, image, caption
    self.several = several
    self.mask = mask
    # One part of the index for each file.
    columns = indexed.index_columns(columns, score)
    build_options = dict(
      base=found.base, image=image, caption=caption, columns=columns
    ) | indexed.if_set(several=several, mask=mask)
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

  @property
  def remedy(self) -> str:
    """What to do where no row has a caption."""
    path = self.value('file', 0)
    with self.fs.open(path, 'rb') as file:
      columns = parquet_columns.describe(pq.read_schema(file))
    return (
      f'Name another column in config.data.parquet.caption; {path} has '
      f"{columns}; '' trains without captions (stage 0)."
    )

  def name(self, i: int) -> str:
    group, row = self.value('group', i), self.value('row', i)
    return f'{self.value("file", i)}: row {row}, in group {group}'

  def read(self, i: int) -> indexed.Example:
    path = self.value('file', i)
    try:
      with self.fs.open(path, 'rb') as file:
        parquet = pq.ParquetFile(file, metadata=self._metadata(path))
        columns = parquet_rows.Columns(
          parquet,
          path,
          self.image,
          self.caption,
          (self.mask,) if self.mask else (),
          several=self.several,
        )
        table = parquet.read_row_group(self.value('group', i), columns.names)
      (row,) = columns.rows(table.slice(self.value('place', i), 1))
      value = captions.look_up(row, self.image)
      with parquet_rows.open_image(self.fs, path, value) as file:
        image = file.read()
      masks = {}
      if self.mask:
        masks['mask'] = parquet_rows.read_mask(self.fs, path, row, self.mask)
    except (OSError, pa.ArrowException) as error:
      raise images.UnreadableImage(self.name(i), error) from error
    caption = captions.of_example(columns.caption(row))
    return {'image': image, **caption, **masks}

  def _metadata(self, path):
    """Reads the footer of a file, without which no row group can be read."""
    with self.fs.open(path, 'rb') as file:
      return pq.read_metadata(file)


def measure(
  path: str,
  fs: fsspec.AbstractFileSystem,
  base: str,
  image: str,
  caption: str,
  columns: dict[str, str],
  several: bool = False,
  mask: str = '',
) -> pa.Table:
  """Measures a part of the index: one file.

  Args:
    path: of the file, on `fs`.
    fs: file system.
    base: folder to which names of records are relative.
    image, caption: names of columns; caption '': none.
    columns: {name in the index: name in the file}.
    several: whether all captions of a list are used.
    mask: column of masks; '': none.
  """
  try:
    with fs.open(path, 'rb') as file:
      parquet = pq.ParquetFile(file)
      others = (*columns.values(), mask) if mask else tuple(columns.values())
      schema = parquet.schema_arrow
      parquet_columns.check(schema, path, image, caption, others)
      if mask:
        parquet_columns.check_image(schema, path, 'mask', mask)
      check_urls(parquet, path, image)
      names = parquet_rows.Columns(
        parquet, path, image, caption, (*others, *parquet_rows.STATUS), several
      )
      reader = parquet_rows.Reader(
        fs, path, path.removeprefix(base), names, image, columns, mask
      )
      # Sizes are in the images' own headers, so every row is read once.
      rows = [
        reader.row(row, number, group, place)
        for number, (group, place, row) in enumerate(
          parquet_rows.walk(parquet, names)
        )
      ]
      warn_of_large_groups(parquet, path)
  except (OSError, pa.ArrowException) as error:
    # Both name no file.
    if isinstance(error, FileNotFoundError | PermissionError):
      raise
    raise broken_file.BrokenFile.of(path, fs, 'parquet file', error) from error
  return make_table(path, rows, columns)


def check_urls(parquet: pq.ParquetFile, path: str, image: str) -> None:
  """Raises ValueError, with the way to download, where images are URLs."""
  schema = parquet.schema_arrow
  kind = parquet_columns.find_type(schema, image)
  is_string = kind is not None and parquet_columns.is_string(
    parquet_columns.plain(kind)
  )
  if is_string and parquet.num_row_groups:
    rows = parquet_values.to_rows(parquet.read_row_group(0, [image]))
    found = (captions.look_up(row, image) for row in rows)
    first = next((value for value in found if value), None)
    if isinstance(first, str) and '://' in first:
      raise ValueError(
        f'{path} has no images, but their URLs.\n'
        f'{parquet_columns.download(path, image, schema)}'
      )


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


def make_table(
  path: str, rows: list[parquet_rows.Row], columns: dict[str, str]
) -> pa.Table:
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
