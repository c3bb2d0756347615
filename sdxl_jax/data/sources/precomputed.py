"""Shards of autoencoder moments and encoded text, written once, read often.

A folder of
  cache.json           what was computed, and how: `Layout`
  index.arrow          a row per record, see `index`
  HxW-00000.array_record   records of one bucket, in the order of the index
  uncond.array_record  the encoded text of the empty caption
  SHA256SUMS           for sha256sum -c
Each record is crops x flips rows of moments and crop, then one of text.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from sdxl_jax import atomic_write
from sdxl_jax.data.sources import index, indexed
from sdxl_jax.text import chunking

LAYOUT, INDEX, SUMS = 'cache.json', 'index.arrow', 'SHA256SUMS'
UNCOND = 'uncond.array_record'
SUFFIX = '.array_record'


class Field(NamedTuple):
  """An array in the bytes of a row."""

  name: str
  dtype: str
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the rows of a cache hold.

  The hash of all fields identifies a cache, so that no field may be renamed.
  """

  buckets: tuple  # of (height, width) in px
  crops: int  # different crops of each image
  flips: int  # 2: each crop also of the mirrored image; otherwise 1
  dtype: str  # of moments and text, 'bfloat16' or 'float16'
  downscale: int  # px per latent
  moments: int  # channels
  context: tuple  # (tokens, width)
  pooled: int  # width
  facts: dict  # inputs of the computation, to explain a mismatch

  @property
  def rows(self) -> int:
    """Rows per record."""
    return self.crops * self.flips + 1

  def variant(self, bucket: tuple[int, int]) -> tuple[Field, ...]:
    """Returns the fields of a row of moments."""
    h, w = (side // self.downscale for side in bucket)
    return (
      Field('moments', self.dtype, (h, w, self.moments)),
      Field('crop_top_left', 'int32', (2,)),
    )

  @property
  def text(self) -> tuple[Field, ...]:
    """The fields of a row of text."""
    return (
      Field('context', self.dtype, self.context),
      Field('pooled', self.dtype, (self.pooled,)),
    )

  @property
  def identity(self) -> str:
    """The hash of all fields."""
    return index.digest(dataclasses.asdict(self))

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the layout into the folder of a cache."""
    text = json.dumps(dataclasses.asdict(self), indent=2)
    (pathlib.Path(folder) / LAYOUT).write_text(text + '\n')

  @classmethod
  def load(cls, folder: str | os.PathLike) -> 'Layout | None':
    """Reads the layout of a folder, None if it has none."""
    path = pathlib.Path(folder) / LAYOUT
    if not path.exists():
      return None
    fields = json.loads(path.read_text())
    fields['buckets'] = tuple(map(tuple, fields['buckets']))
    fields['context'] = tuple(fields['context'])
    return cls(**fields)


def pack(fields: Sequence[Field], values: dict[str, np.ndarray]) -> bytes:
  """Converts arrays by name to the bytes of a row.

  Raises:
    ValueError: for an array of another shape than its field.
  """
  parts = []
  for name, dtype, shape in fields:
    array = np.asarray(values[name]).astype(np.dtype(dtype))
    if array.shape != shape:
      raise ValueError(f'{name} has shape {array.shape}, not {shape}')
    parts.append(array.tobytes())
  return b''.join(parts)


def unpack(fields: Sequence[Field], data: bytes) -> dict[str, np.ndarray]:
  """Returns the arrays of a row, which are views of its bytes."""
  arrays, start = {}, 0
  for name, dtype, shape in fields:
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    array = np.frombuffer(data, dtype, count, start)
    arrays[name] = array.reshape(shape)
    start += array.nbytes
  return arrays


def write_rows(path: pathlib.Path, rows: Iterable[bytes]) -> None:
  """Writes rows as an ArrayRecord file, atomically."""
  with atomic_write.atomic_path(path, overwrite=True) as partial:
    # Moments hardly compress, and each row is read on its own.
    writer = array_record_module.ArrayRecordWriter(
      str(partial), 'group_size:1,uncompressed'
    )
    for row in rows:
      writer.write(row)
    writer.close()


def digest(path: pathlib.Path) -> str:
  """Hashes a file as sha256sum does."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


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
    layout: Layout,
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
    return unpack(self.layout.variant(self.bucket), data)


class Precomputed(indexed.IndexedSource):
  """What `python -m sdxl_jax.precompute` wrote.

  Args:
    path: folder of the cache.
    dtype: in which moments and text are stored.
    max_token_length: tokens of a caption, of which the text was encoded.

  Raises:
    FileNotFoundError: if there is no cache, or an unfinished one.
    ValueError: if shards are missing, or the cache has another dtype or other
      lengths of captions.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    dtype: str = 'bfloat16',
    max_token_length: int = 75,
  ):
    folder = pathlib.Path(path)
    # The index is written last: without it the cache is not finished.
    layout, table = Layout.load(folder), None
    if layout:
      table = index.read(folder / INDEX, layout.identity)
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
    super().__init__(table)
    self.layout = layout
    # The order of the names is that of the index.
    shards = sorted(folder.glob(f'*-*{SUFFIX}'))
    self.source = array_record_data_source.ArrayRecordDataSource(
      [str(shard) for shard in shards]
    )
    if len(self.source) != len(table) * layout.rows:
      raise ValueError(
        f'{path} has shards of {len(self.source)} rows, but an index of '
        f'{len(table)} records of {layout.rows} rows each: shards are missing, '
        f'see sha256sum -c {SUMS}'
      )
    # The empty caption, for caption dropout.
    uncond = array_record_data_source.ArrayRecordDataSource(
      [str(folder / UNCOND)]
    )
    self.uncond = unpack(layout.text, uncond[0])

  def name(self, i: int) -> str:
    return self.value('name', i)

  def read(self, i: int) -> indexed.Example:
    bucket = self.value('bucket_height', i), self.value('bucket_width', i)
    # The rows of a record: its crops, then its text.
    first = i * self.layout.rows
    text = self.source[first + self.layout.rows - 1]
    return {
      'bucket': bucket,
      'variants': Variants(self.source, first, self.layout, bucket),
      'text': unpack(self.layout.text, text),
      'uncond': self.uncond,
      'caption': self.value('caption', i),
    }
