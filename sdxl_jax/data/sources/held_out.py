"""Records held out of training for validation, by hashes of their names.

Whether a record is held out depends on its name and the share alone, not on
other records, their order, the seed or the number of hosts: a dataset that
grows keeps those that it held out, and a larger share keeps those of a smaller
one. Equal images of different names are not noticed.
"""

import copy
from typing import NamedTuple

import numpy as np

from sdxl_jax.data import buckets
from sdxl_jax.data.sources import indexed, mixture, record_filters, repeated

REASON = 'held out for validation'
SALT = np.uint64(0x5DEECE66D1CE4E5B)  # keeps the hashes apart from other uses
CHUNK = 1 << 20  # records hashed at a time, to bound memory
# What a run holds out whose config does not say it.
MOST_RECORDS, MOST_SHARE, LEAST_RECORDS = 256, 0.01, 3200

Source = mixture.Part | mixture.Mixture


class Split(NamedTuple):
  """A source in two parts."""

  share: float  # that is held out, in expectation
  trained: Source  # the source without the records held out
  held_out: list[tuple[str, record_filters.FilteredSource]]  # see `leaves`


def hashes(source: record_filters.FilteredSource) -> np.ndarray:
  """Computes uint64 [n] of the records, uniform and by their names alone."""
  keys = source.keys
  if keys is None:  # a cache of an earlier version
    names = (source.name(i) for i in range(len(source)))
    keys = np.array([indexed.key(name) for name in names], np.uint64)
  values = np.empty(len(keys), np.uint64)
  for start in range(0, len(keys), CHUNK):
    part = slice(start, start + CHUNK)
    values[part] = buckets.mix(keys[part] ^ SALT)
  return values


def is_held_out(values: np.ndarray, share: float) -> np.ndarray:
  """Computes bool [n] from hashes: whether they are below a share of all."""
  return values < np.uint64(int(share * 2**64))


def leaves(
  source: Source, name: str = ''
) -> list[tuple[str, record_filters.FilteredSource]]:
  """Returns [(part of the mixture, source)], in which each record is once."""
  if isinstance(source, repeated.Repeated):
    return leaves(source.source, name)
  if isinstance(source, mixture.Mixture):
    parts = zip(source.names, source.sources)
    return [leaf for part, s in parts for leaf in leaves(s, part)]
  return [(name, source)]


def choose_share(source: Source) -> float:
  """Returns the share to hold out of a source whose config does not say it.

  MOST_RECORDS of all, at most MOST_SHARE. Nothing is taken from small sets, nor
  from a mixture with one: they would lose what they are made to teach.
  """
  counts = [len(leaf) for _, leaf in leaves(source)]
  if min(counts) < LEAST_RECORDS:
    return 0.0
  return min(MOST_SHARE, MOST_RECORDS / sum(counts))


def split(source: Source, share: float) -> Split:
  """Splits a source into what is trained on and what is held out.

  Args:
    source: of all records.
    share: to hold out, in expectation; 0: nothing.

  Raises:
    ValueError: if nothing would be left to train on.
  """
  if not share:
    return Split(0.0, source, [])
  held = []
  for name, leaf in leaves(source):
    chosen = is_held_out(hashes(leaf), share)
    if chosen.any():
      held.append((name, select(leaf, chosen)))
  return Split(share, without(source, share), held)


def without(source: Source, share: float) -> Source:
  """Returns a source without its share of held-out records; see `split`."""
  if isinstance(source, mixture.Mixture):
    parts = zip(source.names, source.sources)
    return mixture.Mixture(
      {name: without(part, share) for name, part in parts}, source.shares
    )
  if isinstance(source, repeated.Repeated):
    repeats = np.bincount(source.ids, minlength=len(source.source))
    kept = ~is_held_out(hashes(source.source), share)
    return repeated.Repeated(without(source.source, share), repeats[kept])
  kept = ~is_held_out(hashes(source), share)
  if not kept.any():
    raise ValueError(
      f'config.validation.share is {share}, which holds out all '
      f'{len(source):,} records, such as {source.name(0)}: lower it, or set it '
      'to 0'
    )
  trained = select(source, kept)
  left_out = np.asarray(source.ids)[~kept]
  if len(left_out):
    trained.left_out_by = source.left_out_by | {REASON: source.of_ids(left_out)}
  return trained


def select(
  source: record_filters.FilteredSource, kept: np.ndarray
) -> record_filters.FilteredSource:
  """Returns the records of a source for which bool [n] `kept` is true."""
  chosen = copy.copy(source)
  chosen.ids, chosen.sizes = source.ids[kept], source.sizes[kept]
  return chosen
