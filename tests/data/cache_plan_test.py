"""Tests how records are divided into shards."""

import types

import numpy as np
import pytest

from sdxl_jax.data import cache_plan
from sdxl_jax.data.sources import record_changes

LAYOUT = types.SimpleNamespace(
  buckets=((32, 48), (48, 32)), settings_identity='settings'
)


def plan(keys, size, layout=LAYOUT):
  keys = np.asarray(keys, np.uint64)
  records = record_changes.Records(keys, keys)
  # Every other record is high.
  high = keys % np.uint64(2) == 1
  sizes = np.where(high[:, None], [60, 40], [40, 60])
  return list(cache_plan.plan_shards(sizes, records, layout, size))


@pytest.mark.parametrize('size', [1, 2, 7, 100, 10_000])
def test_every_record_is_in_one_shard(size):
  shards = plan(np.arange(1000), size)
  ids = np.concatenate([shard.ids for shard in shards])
  assert sorted(ids) == list(range(1000))
  # Bucket by bucket, in the order of the source.
  assert ids.tolist() == [*range(0, 1000, 2), *range(1, 1000, 2)]
  lengths = [len(shard.ids) for shard in shards]
  assert 0 < min(lengths) and max(lengths) <= size
  assert len({shard.name for shard in shards}) == len(shards)
  # Two thirds of the limit on average.
  if 1 < size <= 100:
    assert 0.5 < 1000 / len(shards) / size < 0.85


def test_a_change_concerns_few_shards():
  keys = np.arange(10_000)
  before = {shard.name for shard in plan(keys, 50)}
  fewer = {shard.name for shard in plan(np.delete(keys, 4000), 50)}
  more = {shard.name for shard in plan(np.insert(keys, 9, 20_000), 50)}
  assert len(before) > 200
  for after in (fewer, more):
    assert 1 <= len(before - after) <= 6


def test_settings_are_part_of_a_name():
  other = types.SimpleNamespace(
    buckets=LAYOUT.buckets, settings_identity='other'
  )
  names, others = (
    {shard.name for shard in plan(range(50), 5, layout)}
    for layout in (LAYOUT, other)
  )
  assert not names & others


def test_an_empty_bucket_has_no_shard():
  assert {shard.bucket for shard in plan(range(0, 50, 2), 5)} == {(32, 48)}
