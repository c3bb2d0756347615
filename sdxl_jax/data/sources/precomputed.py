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
import pathlib

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from sdxl_jax.data.sources import index, indexed

LAYOUT, INDEX, SUMS = 'cache.json', 'index.arrow', 'SHA256SUMS'
UNCOND = 'uncond.array_record'
SUFFIX = '.array_record'


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the rows of a cache hold."""

  buckets: tuple  # of (height, width) in px
  crops: int  # different ones of each picture
  flips: int  # 2: each crop also of the mirrored picture; else 1
  dtype: str  # of moments and text, 'bfloat16' or 'float16'
  downscale: int  # px per latent
  moments: int  # channels
  context: tuple  # (tokens, width)
  pooled: int  # width
  facts: dict  # of what it was computed from, for the error of a change

  @property
  def rows(self):
    """Per record."""
    return self.crops * self.flips + 1

  def variant(self, bucket):
    """[(name, dtype, shape)] of a row of moments."""
    h, w = (side // self.downscale for side in bucket)
    return (
      ('moments', self.dtype, (h, w, self.moments)),
      ('crop_top_left', 'int32', (2,)),
    )

  @property
  def text(self):
    """[(name, dtype, shape)] of a row of text."""
    return (
      ('context', self.dtype, tuple(self.context)),
      ('pooled', self.dtype, (self.pooled,)),
    )

  @property
  def identity(self):
    return index.digest(dataclasses.asdict(self))

  def save(self, folder):
    text = json.dumps(dataclasses.asdict(self), indent=2)
    (pathlib.Path(folder) / LAYOUT).write_text(text + '\n')

  @classmethod
  def load(cls, folder):
    """That of a folder, or None where there is none."""
    path = pathlib.Path(folder) / LAYOUT
    if not path.exists():
      return None
    fields = json.loads(path.read_text())
    fields['buckets'] = tuple(map(tuple, fields['buckets']))
    return cls(**fields)


def pack(fields, values):
  """Arrays by name as the bytes of a row."""
  parts = []
  for name, dtype, shape in fields:
    array = np.asarray(values[name]).astype(np.dtype(dtype))
    if array.shape != shape:
      raise ValueError(f'{name} has shape {array.shape}, not {shape}')
    parts.append(array.tobytes())
  return b''.join(parts)


def unpack(fields, data):
  """The arrays of a row; they lie in its bytes."""
  arrays, start = {}, 0
  for name, dtype, shape in fields:
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    array = np.frombuffer(data, dtype, count, start)
    arrays[name] = array.reshape(shape)
    start += array.nbytes
  return arrays


def write_rows(path, rows):
  """Writes bytes as an ArrayRecord file that appears whole or not at all."""
  new = path.with_suffix('.new')
  # Moments hardly compress, and each row is read by itself.
  writer = array_record_module.ArrayRecordWriter(
    str(new), 'group_size:1,uncompressed'
  )
  for row in rows:
    writer.write(row)
  writer.close()
  new.replace(path)


def digest(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


class Variants:
  """The rows of moments of one record: variants[crop, flip]."""

  def __init__(self, source, first, layout, bucket):
    self.source, self.first = source, first
    self.layout, self.bucket = layout, bucket
    self.crops = layout.crops

  def __getitem__(self, which):
    crop, flip = which
    if flip >= self.layout.flips:
      raise ValueError(
        'config.data.flip_probability asks for mirrored pictures, which were '
        'not precomputed: use --flips, or set it to 0'
      )
    data = self.source[self.first + crop * self.layout.flips + flip]
    return unpack(self.layout.variant(self.bucket), data)


class Precomputed(indexed.IndexedSource):
  """What `python -m sdxl_jax.precompute` wrote.

  Args:
    path: its folder.
    dtype: in which its moments and text are stored.

  Raises:
    FileNotFoundError: where there is no cache, or one that is not finished.
    ValueError: where it is not whole, or of another dtype.
  """

  def __init__(self, path, dtype='bfloat16'):
    folder = pathlib.Path(path)
    self.layout = Layout.load(folder)
    table = self.layout and index.read(folder / INDEX, self.layout.identity)
    if table is None:
      raise FileNotFoundError(
        f'{path} is no finished cache: run python -m sdxl_jax.precompute '
        f'--output {path} (again, where it was stopped)'
      )
    if self.layout.dtype != dtype:
      raise ValueError(
        f'{path} is stored in {self.layout.dtype}, but '
        f'config.data.precomputed.dtype is {dtype}: set it to that'
      )
    super().__init__(table)
    shards = sorted(folder.glob(f'*-*{SUFFIX}'))
    self.source = array_record_data_source.ArrayRecordDataSource(
      [str(shard) for shard in shards]
    )
    if len(self.source) != len(table) * self.layout.rows:
      raise ValueError(
        f'{path} has shards of {len(self.source)} rows, but its index tells of '
        f'{len(table)} records of {self.layout.rows} each: shards are missing, '
        f'see sha256sum -c {SUMS}'
      )
    text = array_record_data_source.ArrayRecordDataSource(
      [str(folder / UNCOND)]
    )
    self.uncond = unpack(self.layout.text, text[0])

  def name(self, i):
    return self.value('name', i)

  def read(self, i):
    bucket = self.value('bucket_height', i), self.value('bucket_width', i)
    first = i * self.layout.rows
    text = self.source[first + self.layout.rows - 1]
    return {
      'bucket': bucket,
      'variants': Variants(self.source, first, self.layout, bucket),
      'text': unpack(self.layout.text, text),
      'uncond': self.uncond,
      'caption': self.value('caption', i),
    }
