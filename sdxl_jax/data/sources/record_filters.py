"""Filters: which records of a source are used, and why others are not."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdxl_jax.data.sources import indexed

COMPARE = {
  '<': pc.less,
  '<=': pc.less_equal,
  '>': pc.greater,
  '>=': pc.greater_equal,
  '==': pc.equal,
  '!=': pc.not_equal,
}
PROBLEMS = {
  indexed.UNREADABLE: 'its header cannot be read',
  indexed.NO_CAPTION: 'it has no caption',
}


@dataclasses.dataclass(frozen=True)
class Filters:
  """Conditions that the records of a source must meet to be used."""

  min_side: int = 0  # px, of the shorter side
  min_aspect: float = 0.0  # height / width
  max_aspect: float = float('inf')
  min_aesthetic_score: float | None = None  # leaves out those without a score
  columns: tuple = ()  # ((name, '<', value), ...), all of which must hold

  def __post_init__(self):
    for condition in self.columns:
      if len(condition) != 3 or condition[1] not in COMPARE:
        raise ValueError(
          f'config.data.filters.columns has {condition}; write (name, '
          f'comparison, value), the comparison one of {list(COMPARE)}'
        )

  @property
  def names(self) -> tuple[str, ...]:
    """The columns that an index must have for these filters."""
    return tuple(sorted({name for name, _, _ in self.columns}))

  def masks(self, source: indexed.Source) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (why records are left out, bool [n], which meet the condition)."""
    # What the index found broken.
    if isinstance(source, indexed.IndexedSource):
      for code, reason in PROBLEMS.items():
        yield reason, source.column('problem') != code
    # Sizes, which every source has.
    fits = source.sizes.min(1) >= self.min_side
    yield f'a side is under {self.min_side} px', fits
    aspects = source.sizes[:, 0] / np.maximum(source.sizes[:, 1], 1)
    fits = (self.min_aspect <= aspects) & (aspects <= self.max_aspect)
    yield f'height / width is not {self.min_aspect} to {self.max_aspect}', fits
    # Columns of the index.
    conditions = self.columns
    if self.min_aesthetic_score is not None:
      conditions += (('aesthetic_score', '>=', self.min_aesthetic_score),)
    for name, comparison, value in conditions:
      mask = matches(source, name, COMPARE[comparison], value)
      yield f'{name} is not {comparison} {value}', mask


NONE = Filters()


def matches(
  source: indexed.Source, name: str, compare: Callable, value: Any
) -> np.ndarray:
  """Computes bool [n], whether a column's value meets a condition.

  A record without a value does not.

  Raises:
    ValueError: if no record has a value, or the types cannot be compared.
  """
  table = getattr(source, 'table', None)
  names = table.column_names if table else []
  if name not in names or table[name].null_count == len(table):
    raise ValueError(
      f'config.data.filters has a condition on {name!r}, for which '
      f'{type(source).__name__} has no value; its columns are {names}'
    )
  try:
    mask = compare(table[name], value)
  except pa.ArrowException as error:
    raise ValueError(
      f'config.data.filters compares {name} with {value!r}, but the column '
      f'holds {table[name].type}: {error}'
    ) from error
  return pc.fill_null(mask, False).to_numpy()


class FilteredSource:
  """The records of a source that meet filters, in their order.

  Args:
    source: of all records.
    filters: conditions.
    say: takes a line for the user, one for each condition that records fail.

  Raises:
    ValueError: if no record is left.
  """

  def __init__(
    self,
    source: indexed.Source,
    filters: Filters,
    say: Callable[[str], Any],
  ):
    keep, self.unusable = np.ones(len(source), bool), []
    # Each record is counted once, by the first condition that it fails.
    for reason, mask in filters.masks(source):
      lost = np.flatnonzero(keep & ~mask)
      keep &= mask
      if len(lost):
        say(f'{len(lost):,} of {len(source):,} records left out: {reason}')
      if reason in PROBLEMS.values():
        self.unusable.append((reason, lost))
    # Ids in the smallest type: sources may have 10^8 records.
    self.source = source
    self.ids = np.flatnonzero(keep).astype(np.min_scalar_type(len(keep)))
    self.sizes = source.sizes[keep]
    if not len(self.ids):
      raise ValueError(
        f'config.data.filters and broken records leave none of {len(source):,}'
      )

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, i: int) -> indexed.Example:
    return self.source[int(self.ids[i])]

  def name(self, i: int) -> str:
    """Names a record in reports."""
    return self.source.name(int(self.ids[i]))

  def left_out(self) -> Iterator[str]:
    """Yields a line for each unusable record: its name, and why."""
    for reason, ids in self.unusable:
      for i in ids:
        yield f'{self.source.name(int(i))}: {reason}'
