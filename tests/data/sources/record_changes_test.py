"""Tests how records of a cache and of a source are told apart."""

import numpy as np

from sdxl_jax.data.sources import record_changes


def records(**stamps):
  """Makes records whose keys are the numbers of letters."""
  keys = np.array([ord(name) for name in stamps], np.uint64)
  return record_changes.Records(keys, np.array([*stamps.values()], np.uint64))


def test_changes():
  changes = record_changes.compare(
    records(a=1, b=2, c=3, d=4), records(d=4, e=5, b=9, a=1)
  )
  assert str(changes) == '2 kept, 1 changed, 1 removed, 1 added'
  ids = changes.changed, changes.removed, changes.added
  assert [i.tolist() for i in ids] == [[2], [2], [1]]
  assert changes


def test_another_order_is_no_change():
  old, new = records(a=1, b=2), records(b=2, a=1)
  assert not record_changes.compare(old, new)
  assert old.digest() != new.digest()


def test_all_and_nothing():
  none = records()
  assert str(record_changes.compare(none, records(a=1))) == (
    '0 kept, 0 changed, 0 removed, 1 added'
  )
  assert str(record_changes.compare(records(a=1), none)) == (
    '0 kept, 0 changed, 1 removed, 0 added'
  )


def test_repeated_keys():
  """The k-th record of a key has the same new key, whatever is between."""
  keys = np.array([7, 8, 7, 7, 9, 8], np.uint64)
  found = record_changes.distinct(keys)
  assert len(set(found.tolist())) == len(keys)
  assert found[[0, 1, 4]].tolist() == [7, 8, 9]
  shorter = record_changes.distinct(keys[[0, 2, 3]])
  assert shorter.tolist() == found[[0, 2, 3]].tolist()


def test_sizes_are_part_of_a_record():
  class Source:
    keys = np.arange(2, dtype=np.uint64)
    stamps = np.ones(2, np.uint64)
    sizes = np.array([[40, 60], [60, 40]], np.int32)

  stamps = record_changes.of_source(Source).stamps
  assert stamps[0] != stamps[1]
