"""The source `precomputed`: what `python -m sdxl_jax.precompute` wrote.

Autoencoder moments and encoded text, written once, read often; the format is
that of `cache_layout`.
"""

import os
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from array_record.python import array_record_data_source

from sdxl_jax.data.sources import cache_layout, index, indexed, record_changes
from sdxl_jax.text import chunking


class Variants:
  """The rows of moments of one record, read on request: variants[crop, flip].

  Args:
    source: of the rows of all records.
    first: the row of the record's first crop.
    layout: of the cache.
    bucket: (height, width) of the record.
  """

  def __init__(
    self,
    source: array_record_data_source.ArrayRecordDataSource,
    first: int,
    layout: cache_layout.Layout,
    bucket: tuple[int, int],
  ):
    self.source, self.first = source, first
    self.layout, self.bucket = layout, bucket
    self.crops = layout.crops

  def __getitem__(self, crop_and_flip: tuple[int, int]) -> dict[str, Any]:
    crop, flip = crop_and_flip
    if flip >= self.layout.flips:
      raise ValueError(
        'config.data.flip_probability requires mirrored images, which were not '
        'precomputed: precompute with --flips, or set it to 0'
      )
    data = self.source[self.first + crop * self.layout.flips + flip]
    return cache_layout.unpack(self.layout.variant(self.bucket), data)


class Texts:
  """The encoded texts of one record, read on request: texts[place].

  Args:
    source: of the rows of all records.
    first: the row of the record's first text.
    layout: of the cache.
    weights: probabilities of the texts.
  """

  def __init__(
    self,
    source: array_record_data_source.ArrayRecordDataSource,
    first: int,
    layout: cache_layout.Layout,
    weights: list[float],
  ):
    self.source, self.first, self.layout = source, first, layout
    self.weights = weights

  def __len__(self) -> int:
    return len(self.weights)

  def __getitem__(self, place: int) -> dict[str, Any]:
    data = self.source[self.first + place]
    return cache_layout.unpack(self.layout.text, data)

  def place(self, number: float) -> int:
    """Returns the text that a number in [0, 1) chooses, by their weights."""
    ends = np.cumsum(self.weights)
    place = int(np.searchsorted(ends, number * ends[-1], side='right'))
    return min(place, len(self) - 1)


class Precomputed(indexed.IndexedSource):
  """What `python -m sdxl_jax.precompute` wrote.

  Args:
    path: folder of the cache.
    dtype: in which moments and text are stored.
    max_token_length: tokens of a caption, of which the text was encoded.
    masks: whether masks are needed; those of a cache may be left unused.

  Raises:
    FileNotFoundError: if there is no cache, or an unfinished one.
    ValueError: if shards are missing, or the cache has another dtype, other
      lengths of captions or no masks.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    dtype: str = 'bfloat16',
    max_token_length: int = 75,
    masks: bool = False,
  ):
    # Until its first index is written, a cache is not finished.
    self.folder = pathlib.Path(path)
    layout, table = read_index(self.folder)
    if table is None:
      raise FileNotFoundError(
        f'{path} is no finished cache: run python -m sdxl_jax.precompute '
        f'--output {path} (again, if it was interrupted)'
      )
    if layout.dtype != dtype:
      raise ValueError(
        f'{path} is stored in {layout.dtype}, but '
        f'config.data.precomputed.dtype is {dtype}: set it to {layout.dtype}'
      )
    length = chunking.count_for(max_token_length) * chunking.LENGTH
    if layout.context[0] != length:
      stored = layout.context[0] // chunking.LENGTH * chunking.CONTENT
      raise ValueError(
        f'{path} holds the text of captions of up to {stored} tokens, but '
        f'config.max_token_length is {max_token_length}: set it to {stored}, '
        'or precompute with this config into another folder'
      )
    if masks and not layout.has_masks:
      raise ValueError(
        f'{path} has no masks, but config.loss.masked_loss is True: precompute '
        'with it into another folder, or set it to False'
      )
    super().__init__(table)
    self.layout = layout
    # Images that could not be read have no rows.
    readable = self.column('problem') == indexed.USABLE
    lengths = np.where(readable, layout.views + self.count_texts(), 0)
    ends = np.cumsum(lengths)
    self.lengths, self.first_rows = lengths, ends - lengths
    self.source = self.open_shards(int(ends[-1]) if len(ends) else 0)
    # The empty caption, for caption dropout.
    uncond = array_record_data_source.ArrayRecordDataSource(
      [str(self.folder / cache_layout.UNCOND)]
    )
    self.uncond = cache_layout.unpack(layout.text, uncond[0])

  def count_texts(self) -> np.ndarray | int:
    """Returns int [n], the texts of each record; 1 where all have one."""
    if 'texts' not in self.table.column_names:
      return 1
    counts = pc.list_value_length(self.table['texts'])
    return pc.fill_null(counts, 0).to_numpy()

  def open_shards(
    self, count: int
  ) -> array_record_data_source.ArrayRecordDataSource:
    """Opens all shards, as one sequence of so many rows."""
    if self.layout.is_checkable:
      names = [name for name, *_ in shard_rows(self.table)]
      paths = [self.folder / f'{n}{cache_layout.SUFFIX}' for n in names]
    else:
      # The order of the names was that of the index.
      paths = sorted(self.folder.glob(cache_layout.SHARDS))
    rows = None
    if all(path.exists() for path in paths):
      source = array_record_data_source.ArrayRecordDataSource(
        [str(path) for path in paths]
      )
      rows = len(source)
    if rows != count:
      found = 'fewer files' if rows is None else f'{rows} rows'
      raise ValueError(
        f'{self.folder} has shards of {found}, but an index of {len(self)} '
        f'records of {count} rows in all: shards are missing, see sha256sum -c '
        f'{cache_layout.SUMS}'
      )
    return source

  @property
  def records(self) -> record_changes.Records:
    """What the cache was made of, unreadable images included."""
    return record_changes.Records(self.column('key'), self.column('stamp'))

  def name(self, i: int) -> str:
    return self.value('name', i)

  def read(self, i: int) -> indexed.Example:
    bucket = self.value('bucket_height', i), self.value('bucket_width', i)
    # The rows of a record: its crops, then its texts.
    first, weights = int(self.first_rows[i]), [1.0]
    example = {
      'bucket': bucket,
      'variants': Variants(self.source, first, self.layout, bucket),
      'uncond': self.uncond,
      'caption': self.value('caption', i),
    }
    if 'texts' in self.table.column_names:
      weights = self.value('weights', i)
      example['captions'] = tuple(self.value('texts', i))
    first += self.layout.views
    texts = Texts(self.source, first, self.layout, weights)
    # Of several, `captioning` reads the one that it chooses.
    if len(texts) > 1:
      return example | {'texts': texts}
    return example | {'text': texts[0]}

  def rows(self, i: int) -> list[bytes]:
    """Reads the rows of a record as they are stored."""
    first = int(self.first_rows[i])
    return [self.source[first + k] for k in range(int(self.lengths[i]))]


def read_index(
  folder: pathlib.Path,
) -> tuple[cache_layout.Layout | None, pa.Table | None]:
  """Reads layout and index of a folder; None for what is not there yet."""
  layout = cache_layout.Layout.load(folder)
  if layout is None:
    return None, None
  path = folder / cache_layout.INDEX
  return layout, index.read(path, layout.settings_identity)


def shard_rows(table: pa.Table) -> list[tuple[str, int, int]]:
  """Returns (name, first row, last + 1) of each shard of an index."""
  column = table['shard'].unify_dictionaries()
  if not len(column):
    return []
  codes = np.concatenate([c.indices.to_numpy() for c in column.chunks])
  names = column.chunk(0).dictionary.to_pylist()
  starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1]))
  ends = np.append(starts[1:], len(codes))
  return [
    (names[codes[start]], int(start), int(end))
    for start, end in zip(starts, ends)
  ]
