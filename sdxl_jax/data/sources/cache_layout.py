"""The format of a cache: what its rows hold, and what it was made by.

A folder of
  cache.json           what was computed, and how: `Layout`
  index.arrow          a row per record, see `index`
  HxW-*.array_record   records of one bucket, in the order of the index
  uncond.array_record  the encoded text of the empty caption
  SHA256SUMS           for sha256sum -c
Each record is crops x flips rows of moments and crop, with a mask where the
loss is masked, then one of text; where the settings of captions give a record
several texts, one of each. An image that could not be read has a row of the
index, and none of a shard. The index has the columns of `indexed.make_table`
and
  name, caption  string
  texts, weights  lists of string and of float64, where settings of captions are
                 set: all texts of a record, and the probability of each
  bucket_height, bucket_width  int32
  shard          string, name of the file without its suffix
  key, stamp     uint64, see `record_changes`
  reason         string, why an image cannot be read

The name of a shard is a hash of its records and of all settings, so that no
file is ever changed: an update writes new shards beside the old ones, then
replaces the index, which names them.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.data.sources import index

LAYOUT, INDEX, SUMS = 'cache.json', 'index.arrow', 'SHA256SUMS'
UNCOND = 'uncond.array_record'
SUFFIX = '.array_record'
SHARDS = f'*x*-*{SUFFIX}'


class Field(NamedTuple):
  """An array in the bytes of a row."""

  name: str
  dtype: str
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the rows of a cache hold, and what they were made of.

  The hash of the fields identifies a cache, so that no field may be renamed.
  """

  buckets: tuple  # of (height, width) in px
  crops: int  # different crops of each image
  flips: int  # 2: each crop also of the mirrored image; otherwise 1
  dtype: str  # of moments and text, 'bfloat16' or 'float16'
  downscale: int  # px per latent
  moments: int  # channels
  context: tuple  # (tokens, width)
  pooled: int  # width
  facts: dict  # settings and nets that decide what is computed of a record
  records: str = ''  # hash of all records; '': of an earlier version
  # Where the records came from, for comparison: it decides nothing.
  origin: dict = dataclasses.field(default_factory=dict)

  @property
  def views(self) -> int:
    """Rows of moments per record."""
    return self.crops * self.flips

  def variant(self, bucket: tuple[int, int]) -> tuple[Field, ...]:
    """Returns the fields of a row of moments."""
    h, w = (side // self.downscale for side in bucket)
    masks = (Field('mask', 'float32', (h, w)),) if self.has_masks else ()
    return (
      Field('moments', self.dtype, (h, w, self.moments)),
      Field('crop_top_left', 'int32', (2,)),
      *masks,
    )

  @property
  def has_masks(self) -> bool:
    """Whether rows of moments have a mask of the loss."""
    return bool(self.facts.get('masked_loss'))

  @property
  def text(self) -> tuple[Field, ...]:
    """The fields of a row of text."""
    return (
      Field('context', self.dtype, self.context),
      Field('pooled', self.dtype, (self.pooled,)),
    )

  def record_bytes(self, bucket: tuple[int, int]) -> int:
    """Returns the size of a record's rows, its texts counted as one."""
    variants = self.views * row_bytes(self.variant(bucket))
    return variants + row_bytes(self.text)

  @property
  def settings(self) -> dict[str, Any]:
    """All that is the same when records change, as JSON has it."""
    fields = json.loads(json.dumps(dataclasses.asdict(self)))
    return {n: v for n, v in fields.items() if n not in ('records', 'origin')}

  @property
  def settings_identity(self) -> str:
    """The hash of the settings; that of the index's file."""
    return index.digest(self.settings)

  @property
  def identity(self) -> str:
    """The hash of settings and records."""
    if not self.records:
      return self.settings_identity
    return index.digest(self.settings | {'records': self.records})

  def with_nets(self, identity: dict[str, str]) -> 'Layout':
    """Returns the layout with {net: hash of its parameters} among its facts."""
    return dataclasses.replace(self, facts=self.facts | {'nets': identity})

  @property
  def is_checkable(self) -> bool:
    """Whether the cache knows what it was made of; early ones do not."""
    return bool(self.records)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the layout into the folder of a cache, atomically."""
    text = json.dumps(dataclasses.asdict(self), indent=2)
    atomic_write.write_text(pathlib.Path(folder) / LAYOUT, text + '\n')

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


def row_bytes(fields: Sequence[Field]) -> int:
  """Returns the size of a row."""
  sizes = (np.dtype(f.dtype).itemsize * int(np.prod(f.shape)) for f in fields)
  return sum(sizes)


def pack(fields: Sequence[Field], values: dict[str, np.ndarray]) -> bytes:
  """Converts arrays by name to the bytes of a row.

  Raises:
    ValueError: for an array of another shape than its field, or one that is not
      finite in its dtype.
  """
  parts = []
  for name, dtype, shape in fields:
    array = np.asarray(values[name]).astype(np.dtype(dtype))
    if array.shape != shape:
      raise ValueError(f'{name} has shape {array.shape}, not {shape}')
    if not np.isfinite(array).all():
      remedy = 'check the weights'
      if array.dtype == np.float16:
        remedy += ', and pass --dtype=bfloat16, which has a larger range'
      raise ValueError(
        f'{name} has values that are not finite (NaN or infinity) in {dtype}: '
        f'{remedy}'
      )
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
