"""Copies the records of a cache that an update finds unchanged."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from sdxl_jax.data import cache_plan, images
from sdxl_jax.data.sources import (
  index,
  indexed,
  precomputed,
  record_changes,
)

# A record that was computed: an example without its image, or why it has none.
Made = indexed.Example | images.UnreadableImage


class Kept:
  """The records of a finished cache, which an update copies.

  Args:
    cache: to update; None: there is none, and everything is computed.
  """

  def __init__(self, cache: precomputed.Precomputed | None):
    self.cache, self.places = cache, {}
    if cache:
      rows = precomputed.shard_rows(cache.table)
      self.places = {name: (start, end) for name, start, end in rows}
      # Images that could not be read are tried again.
      usable = np.flatnonzero(cache.column('problem') == indexed.USABLE)
      self.rows, self.records = usable, cache.records.take(usable)

  def part(self, shard: cache_plan.Shard) -> pa.Table | None:
    """Returns a shard's part of the index, None if the cache lacks it."""
    if shard.name not in self.places:
      return None
    start, end = self.places[shard.name]
    return self.cache.table.slice(start, end - start)

  def find(self, records: record_changes.Records) -> np.ndarray:
    """Returns int64 [n], rows of the cache's index; -1: to be computed."""
    if not self.cache or not len(self.rows):
      return np.full(len(records.keys), -1)
    places = record_changes.find(self.records.keys, records.keys)
    same = self.records.stamps[places] == records.stamps
    return np.where((places >= 0) & same, self.rows[places], -1)


def merge_rows(
  found: np.ndarray,
  kept: Kept,
  made: Iterable[Made],
  computed: Iterator[list[bytes]],
) -> Iterator[bytes]:
  """Yields the rows of all records of a shard, in their order.

  Args:
    found: int64 [n], of `Kept.find`.
    kept: records to copy.
    made: examples and errors of the records that were computed.
    computed: rows of each of these examples.
  """
  made = iter(made)
  for row in found.tolist():
    if row >= 0:
      yield from kept.cache.rows(row)
    elif not isinstance(next(made), images.UnreadableImage):
      yield from next(computed)


def make_table(
  shard: cache_plan.Shard,
  found: np.ndarray,
  kept: Kept,
  made: Sequence[Made],
) -> pa.Table:
  """Makes a shard's part of the index.

  Args:
    shard: of the records.
    found: int64 [n], of `Kept.find`.
    kept: records that were copied.
    made: examples and errors of the records that were computed.
  """
  n, copied = len(shard.ids), found >= 0
  same = {
    'bucket_height': pa.array(np.full(n, shard.bucket[0], np.int32)),
    'bucket_width': pa.array(np.full(n, shard.bucket[1], np.int32)),
    'shard': pa.array([shard.name] * n).dictionary_encode(),
    'key': pa.array(shard.records.keys),
    'stamp': pa.array(shard.records.stamps),
  }
  # Computed records, then copied ones: put into the order of the shard.
  tables = [measure(made).drop_columns(['key', 'stamp'])]
  if copied.any():
    old = kept.cache.table.drop_columns(list(same))
    tables.append(old.take(found[copied]))
  order = np.argsort(np.argsort(copied, kind='stable'))
  table = index.join(tables).take(order)
  for name, column in same.items():
    table = table.append_column(name, column)
  return table


def measure(made: Sequence[Made]) -> pa.Table:
  """Makes the rows of an index of records that were computed."""
  rows, scores, captions, texts, weights = [], [], [], [], []
  for example in made:
    if isinstance(example, images.UnreadableImage):
      reason = str(example).removeprefix(f'{example.name}: ')
      row = indexed.Measured(example.name, None, indexed.UNREADABLE, reason)
      example = {}
    else:
      row = indexed.Measured(example['name'], example['original_size'])
    rows.append(row)
    scores.append(example.get('aesthetic_score'))
    captions.append(example.get('caption'))
    texts.append(example.get('texts'))
    weights.append(example.get('weights'))
  locations = {
    'name': pa.array([row.name for row in rows], pa.string()),
    'caption': pa.array(captions, pa.string()),
  }
  # Only where settings of captions made them.
  if any(texts):
    locations['texts'] = pa.array(texts, pa.list_(pa.string()))
    locations['weights'] = pa.array(weights, pa.list_(pa.float64()))
  return indexed.make_table(rows, {'aesthetic_score': scores}, **locations)
