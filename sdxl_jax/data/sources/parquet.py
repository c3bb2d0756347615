"""Parquet files of encoded pictures and captions, as Hugging Face has them."""

import functools
import io
import logging

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_jax.data import images
from sdxl_jax.data.sources import index, indexed

LARGE = 64 << 20  # bytes of a row group, which is read whole for one picture


class Parquet(indexed.IndexedSource):
  """Rows of parquet files, local or behind a URL.

  Args:
    files: pattern of paths, or of URLs that fsspec opens.
    image: column of encoded bytes, or of Hugging Face's {bytes, path}.
    caption: column of text; '': none.
    score: column for aesthetic_score; '': none.
    columns: others, by which filters choose.
    workers: processes that read the files.

  Raises:
    FileNotFoundError: where no file is so named.
    ValueError: for a file without these columns.
  """

  def __init__(
    self,
    files,
    image='image',
    caption='text',
    score='',
    columns=(),
    workers=8,
  ):
    self.fs, pattern = fsspec.core.url_to_fs(str(files))
    self.image, self.caption = image, caption
    paths = sorted(self.fs.glob(pattern))
    if not paths:
      raise FileNotFoundError(
        f'no parquet file is named {files}: check the path, or the login for a '
        'URL'
      )
    columns = indexed.index_columns(columns, score)
    facts = dict(image=image, caption=caption, columns=columns)
    super().__init__(
      index.load_files(
        'parquet', files, self.fs, paths, facts, measure, workers
      )
    )
    self._metadata = functools.lru_cache(maxsize=4096)(self._metadata)

  def name(self, i):
    group, place = self.value('group', i), self.value('place', i)
    return f'{self.value("file", i)}: row {place} of group {group}'

  def read(self, i):
    path, group = self.value('file', i), self.value('group', i)
    try:
      with self.fs.open(path, 'rb') as file:
        parquet = pq.ParquetFile(file, metadata=self._metadata(path))
        names = list(filter(None, (self.image, self.caption)))
        table = parquet.read_row_group(group, names)
    except (OSError, pa.ArrowException) as error:
      raise images.UnreadableImage(self.name(i), error) from error
    row = table.slice(self.value('place', i), 1).to_pylist()[0]
    image = bytes_of(row[self.image])
    caption = row[self.caption].strip() if self.caption else ''
    return {'image': image, 'caption': caption}

  def _metadata(self, path):
    with self.fs.open(path, 'rb') as file:
      return pq.read_metadata(file)


def bytes_of(value):
  """Of a picture: Hugging Face wraps them in {bytes, path}."""
  return (value['bytes'] if isinstance(value, dict) else value) or b''


def measure(path, fs, image, caption, columns):
  """A part of the index: one file."""
  with fs.open(path, 'rb') as file:
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    lacking = {image, caption, *columns.values()} - {*names, ''}
    if lacking:
      raise ValueError(f'{path} has no column {sorted(lacking)}, but {names}')
    groups = [
      measure_group(parquet, path, group, image, caption, columns)
      for group in range(parquet.num_row_groups)
    ]
    largest = max(
      parquet.metadata.row_group(i).total_byte_size for i in range(len(groups))
    )
  if largest > LARGE:
    logging.warning(
      '%s has row groups of %d MB, each read whole for one picture: write it '
      'anew with fewer rows in each (row_group_size=100)',
      *(path, largest >> 20),
    )
  return index.join(groups)


def measure_group(parquet, path, group, image, caption, columns):
  names = list(filter(None, (image, caption, *columns.values())))
  table = parquet.read_row_group(group, names)
  n = table.num_rows
  return indexed.make_table(
    [indexed.size_of(io.BytesIO(bytes_of(v.as_py()))) for v in table[image]],
    [text.is_valid for text in table[caption]] if caption else [True] * n,
    {n: table[name].to_pylist() for n, name in columns.items()},
    file=pa.array([path] * n, pa.string()).dictionary_encode(),
    group=pa.array(np.full(n, group, np.int32)),
    place=pa.array(np.arange(n, dtype=np.int32)),
  )
