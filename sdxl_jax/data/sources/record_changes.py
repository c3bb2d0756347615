"""Finds which records of a dataset were added, removed or changed.

A cache compares its images with those that it was computed from, a run its
dataset with that of its checkpoint.
"""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from sdxl_jax.data import buckets


class Records(NamedTuple):
  """Two numbers of each record, which take the place of the record itself."""

  keys: np.ndarray  # uint64 [n], of its name; no two are equal
  stamps: np.ndarray  # uint64 [n], changes with its content or size

  def digest(self) -> str:
    """Hashes all records, in their order."""
    whole = hashlib.sha256(np.ascontiguousarray(self.keys, '<u8'))
    whole.update(np.ascontiguousarray(self.stamps, '<u8'))
    return whole.hexdigest()

  def take(self, ids: np.ndarray) -> 'Records':
    """Returns the records of these ids."""
    return Records(self.keys[ids], self.stamps[ids])


def of_source(source) -> Records:
  """Returns the records of a source of images, from its index alone.

  Args:
    source: with `keys`, `stamps` and `sizes`.
  """
  h, w = np.asarray(source.sizes, np.uint64).T
  sizes = buckets.mix(h << np.uint64(32) | w)
  stamps = buckets.mix(np.asarray(source.stamps, np.uint64) ^ sizes)
  return Records(distinct(np.asarray(source.keys, np.uint64)), stamps)


def distinct(keys: np.ndarray) -> np.ndarray:
  """Gives the second and later records of one key keys of their own.

  A mixture repeats the records of a source to reach its share.

  Args:
    keys: uint64 [n].
  """
  # The number of earlier records with the same key.
  order = np.argsort(keys, kind='stable')
  first = np.ones(len(keys), bool)
  first[1:] = keys[order][1:] != keys[order][:-1]
  starts = np.flatnonzero(first)
  lengths = np.diff(np.append(starts, len(keys)))
  repeats = np.empty(len(keys), np.uint64)
  repeats[order] = np.arange(len(keys)) - np.repeat(starts, lengths)
  others = buckets.mix(keys ^ buckets.mix(repeats))
  return np.where(repeats == 0, keys, others)


@dataclasses.dataclass(frozen=True)
class Changes:
  """How records differ from those of an earlier time.

  Its string is for the user: '12 kept, 1 changed, 1 removed, 2 added'.
  """

  kept: int
  changed: np.ndarray  # int64, places among the new ones
  removed: np.ndarray  # int64, places among the old ones
  added: np.ndarray  # int64, places among the new ones

  def __bool__(self) -> bool:
    return bool(len(self.changed) or len(self.removed) or len(self.added))

  def __str__(self) -> str:
    return (
      f'{self.kept:,} kept, {len(self.changed):,} changed, '
      f'{len(self.removed):,} removed, {len(self.added):,} added'
    )


def compare(old: Records, new: Records) -> Changes:
  """Finds the changes from old records to new ones, their keys distinct."""
  rows = find(old.keys, new.keys)
  known = np.flatnonzero(rows >= 0)
  same = old.stamps[rows[known]] == new.stamps[known]
  return Changes(
    kept=int(same.sum()),
    changed=known[~same],
    removed=np.flatnonzero(find(new.keys, old.keys) < 0),
    added=np.flatnonzero(rows < 0),
  )


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Finds the place of each wanted key among keys, -1 where it is not."""
  if not len(keys):
    return np.full(len(wanted), -1)
  order = np.argsort(keys)
  places = order[
    np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
  ]
  return np.where(keys[places] == wanted, places, -1)
