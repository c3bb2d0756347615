"""A source that mixes several sources in given shares."""

from collections.abc import Iterator, Sequence

import numpy as np

from sdxl_jax.data.sources import (
  indexed,
  record_account,
  record_filters,
  repeated,
)

# What `kinds.open_source` returns.
Part = record_filters.FilteredSource | repeated.Repeated
MAX_RECORDS = 10**9  # of a pass; its sizes lie in memory


class Mixture:
  """Several sources in given shares.

  A pass holds every record of each source at least once. To reach its share, a
  source that is too small is repeated within the pass: each of its records
  equally often, give or take one.

  Args:
    sources: {name: source}.
    shares: {name: share of the images, relative to the other sources'}.

  Raises:
    ValueError: for a share that is not positive, or so small that a pass would
      have over MAX_RECORDS.
  """

  def __init__(
    self,
    sources: dict[str, Part],
    shares: dict[str, int | float],
  ):
    for name, share in shares.items():
      number = isinstance(share, int | float)
      if not (number and 0 < share < float('inf')):
        raise ValueError(
          f'config.data.mixture.{name}.share is {share!r}; it must be a number '
          'above 0'
        )
    self.names, self.sources = list(sources), list(sources.values())
    self.shares = dict(shares)
    share = np.array([shares[name] for name in sources], float)
    share /= share.sum()
    lengths = np.array([len(source) for source in self.sources])
    # The least total at which no source has more records than its share.
    total = (lengths / share).max()
    if total > MAX_RECORDS:
      largest = self.names[int((lengths / share).argmax())]
      raise ValueError(
        f'config.data.mixture.{largest}.share is {shares[largest]}, at which a '
        f'pass over its {len(sources[largest]):,} records would have '
        f'{total:.1e} in all, over {MAX_RECORDS:,}: raise it'
      )
    self.lengths = np.maximum(lengths, np.rint(share * total).astype(int))
    self.ends = np.cumsum(self.lengths)
    self.sizes = np.concatenate(
      [np.resize(s.sizes, (n, 2)) for s, n in zip(self.sources, self.lengths)]
    )

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, i: int) -> indexed.Example:
    source, place = self.find(i)
    return source[place] | {'part': self.names[self.part_of(i)]}

  def name(self, i: int) -> str:
    """Names a record in reports."""
    source, place = self.find(i)
    return source.name(place)

  def part_of(self, i: int) -> int:
    """Returns the number of the source of a record."""
    return int(np.searchsorted(self.ends, i, side='right'))

  def find(self, i: int) -> tuple[Part, int]:
    """Finds the source of a record, and the record's number there."""
    which = self.part_of(i)
    source = self.sources[which]
    start = self.ends[which] - self.lengths[which]
    return source, int(i - start) % len(source)

  @property
  def stamps(self) -> np.ndarray | None:
    """uint64 [n], see `indexed.stamp`; None where a source has none."""
    stamps = [source.stamps for source in self.sources]
    return None if any(s is None for s in stamps) else self.repeat(stamps)

  @property
  def keys(self) -> np.ndarray | None:
    """uint64 [n], hashes of the names with that of their source."""
    keys = [source.keys for source in self.sources]
    if any(k is None for k in keys):
      return None
    salts = [np.uint64(indexed.key(name)) for name in self.names]
    return self.repeat([k ^ salt for k, salt in zip(keys, salts)])

  def repeat(self, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates a column of each source, repeated as its records are."""
    return np.concatenate(
      [np.resize(column, n) for column, n in zip(columns, self.lengths)]
    )

  def account(self) -> record_account.Account:
    """Returns the counts of what all sources saw, use and leave out."""
    accounts = {n: s.account() for n, s in zip(self.names, self.sources)}
    once = sum(map(len, self.sources))
    return record_account.total(accounts, len(self) - once)

  def left_out(self) -> Iterator[str]:
    """Yields a line for each unusable record: its name, and why."""
    for source in self.sources:
      yield from source.left_out()


def distinct_ids(source: indexed.Source) -> np.ndarray:
  """Returns int [n], the records of a source, repeated ones once."""
  if isinstance(source, repeated.Repeated):
    return source.distinct
  if not isinstance(source, Mixture):
    return np.arange(len(source))
  starts = source.ends - source.lengths
  parts = zip(starts, source.sources)
  return np.concatenate([start + distinct_ids(part) for start, part in parts])
