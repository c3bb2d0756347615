"""Divides the records of a source into the shards of a cache."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from sdxl_jax.data import buckets
from sdxl_jax.data.sources import (
  cache_layout,
  index,
  record_changes,
)

PARTS = 'parts'  # folder of each finished shard's part of the index


@dataclasses.dataclass(frozen=True)
class Shard:
  """Records of one bucket that go into one file."""

  name: str
  bucket: buckets.Size
  ids: np.ndarray  # int64 [n], of records of the source
  records: record_changes.Records  # of these

  def path(self, folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of the file."""
    return folder / f'{self.name}{cache_layout.SUFFIX}'

  def part(self, folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of the shard's part of the index."""
    return folder / PARTS / f'{self.name}.arrow'

  def read_part(self, folder: pathlib.Path) -> pa.Table | None:
    """Reads the shard's part of the index, None if it is not finished."""
    if not self.path(folder).exists():
      return None
    return index.read(self.part(folder), self.name)


def plan_shards(
  sizes: np.ndarray,
  records: record_changes.Records,
  layout: cache_layout.Layout,
  size: int,
) -> Iterator[Shard]:
  """Yields all shards of a source, in the order of the index.

  Bucket by bucket, since a shard's rows have one shape. Where a shard begins
  is decided by the key of its first record, or by the number of records since
  such a place: records that are added or removed move few borders.

  Args:
    sizes: int [n, 2], (height, width) of the source's records.
    records: of the source.
    layout: of the cache.
    size: records in a shard, at most; about two thirds on average.
  """
  assigned = buckets.assign(sizes, layout.buckets)
  identity = layout.settings_identity
  for h, w in sorted(layout.buckets):
    in_bucket = np.flatnonzero(assigned == layout.buckets.index((h, w)))
    keys = records.keys[in_bucket]
    if not len(keys):
      continue
    for ids in np.split(in_bucket, borders(keys, size)[1:]):
      chosen = records.take(ids)
      content = index.digest([identity, (h, w), chosen.digest()])
      # Padded, so that the order of the names is that of the buckets.
      yield Shard(f'{h:05d}x{w:05d}-{content[:16]}', (h, w), ids, chosen)


def borders(keys: np.ndarray, size: int) -> np.ndarray:
  """Chooses where shards begin, as int64 places that ascend from 0.

  Args:
    keys: uint64 [n], of the records in their order, at least one.
    size: records in a shard, at most.
  """
  # One record in `size` begins a shard by its key; between two of them, every
  # `size` records do.
  chosen = buckets.mix(keys) % np.uint64(size) == 0
  chosen[0] = True
  starts = np.flatnonzero(chosen)
  ends = np.append(starts[1:], len(keys))
  return np.concatenate([np.arange(a, b, size) for a, b in zip(starts, ends)])


def check_space(
  folder: pathlib.Path,
  layout: cache_layout.Layout,
  shards: Sequence[Shard],
  free: int,
) -> None:
  """Raises OSError if the disk has no room for the shards to write.

  Args:
    folder: of the cache.
    layout: of the cache.
    shards: to write.
    free: bytes left on the disk.
  """
  need = sum(len(s.ids) * layout.record_bytes(s.bucket) for s in shards)
  if free < need:
    raise OSError(
      f'{folder} has {free / 1e9:.3g} GB left, and the shards to write take '
      f'{need / 1e9:.3g} GB'
    )
