"""Filters: which records of a source are used, and why others are not."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdxl_jax.data import buckets, transforms
from sdxl_jax.data.sources import indexed, record_account, selected

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
  indexed.NO_IMAGE: 'it has no image',
  indexed.UNKNOWN_SUFFIX: 'its suffix is not that of an image',
  indexed.DUPLICATE: 'an earlier record has its name',
  indexed.BAD_CAPTION: 'its caption is not text',
  indexed.BAD_ENCODING: 'its caption is in another encoding',
  indexed.LINK: 'it is a link that leads nowhere or back',
  indexed.TOO_LARGE: 'its image is too large',
  indexed.BAD_SCORE: 'its score is not a number',
  indexed.BAD_JSON: 'its json is not a JSON object',
  indexed.NOT_LISTED: 'the table of its folder does not list it',
  indexed.NOT_REPEATED: 'no folder above it is named as 10_dog is',
}
SEVERAL = 'of the used have several captions, of which the first is read'
CHOSEN = 'of the used have several captions, of which each pass takes one'


@dataclasses.dataclass(frozen=True)
class Filters:
  """Conditions that the records of a source must meet to be used."""

  min_side: int = 0  # px, of the shorter side
  min_aspect: float = 0.0  # height / width
  max_aspect: float = float('inf')
  min_aesthetic_score: float | None = None  # leaves out those without a score
  columns: tuple = ()  # ((name, '<', value), ...), all of which must hold
  # Of what is trained: its buckets, and whether it is conditioned on scores.
  buckets: tuple = ()
  scored: bool = False

  def __post_init__(self):
    for condition in self.columns:
      if not is_condition(condition):
        raise ValueError(
          f'config.data.filters.columns has {condition!r}; write (name, '
          f'comparison, value), the comparison one of {list(COMPARE)}, the '
          'value a number, a string or a bool'
        )

  @property
  def names(self) -> tuple[str, ...]:
    """The columns that an index must have for these filters."""
    return tuple(sorted({name for name, _, _ in self.columns}))

  def masks(self, source: indexed.Source) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (why records are left out, bool [n], which meet the condition)."""
    # Sizes, which every source has.
    fits = source.sizes.min(1) >= self.min_side
    yield f'a side is under {self.min_side} px', fits
    aspects = source.sizes[:, 0] / np.maximum(source.sizes[:, 1], 1)
    fits = (self.min_aspect <= aspects) & (aspects <= self.max_aspect)
    yield f'height / width is not {self.min_aspect} to {self.max_aspect}', fits
    if self.buckets:
      fits = resizes(source.sizes, aspects, self.buckets)
      yield (
        f'its resize for a bucket makes over {transforms.MAX_RESIZED:,} px',
        fits,
      )
    # Columns of the index.
    if self.scored and isinstance(source, indexed.IndexedSource):
      yield 'it has no aesthetic_score, which the refiner needs', has(source)
    conditions = self.columns
    if self.min_aesthetic_score is not None:
      conditions += (('aesthetic_score', '>=', self.min_aesthetic_score),)
    for name, comparison, value in conditions:
      mask = matches(source, name, COMPARE[comparison], value)
      yield f'{name} is not {comparison} {value}', mask


NONE = Filters()


def is_condition(condition: Any) -> bool:
  """Checks whether a condition is (name, comparison, value)."""
  if not isinstance(condition, tuple | list) or len(condition) != 3:
    return False
  name, comparison, value = condition
  return (
    isinstance(name, str)
    and comparison in list(COMPARE)
    and isinstance(value, str | int | float)
  )


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
  # The data's column, where the index has one of this name, too.
  prefixed = indexed.OWN_COLUMN + name
  column = prefixed if prefixed in names else name
  if column not in names or table[column].null_count == len(table):
    fields = list(getattr(source, 'fields', ()))
    known = f', but {fields}' if fields else ''
    raise ValueError(
      f'config.data.filters has a condition on {name!r}, for which '
      f'{type(source).__name__} has no value{known}: name a column or field '
      'that the data has, or remove the condition'
    )
  try:
    # The index holds bools as numbers.
    number = float(value) if isinstance(value, bool) else value
    mask = compare(table[column], number)
  except pa.ArrowException as error:
    first = table[column].drop_null()[0].as_py()
    raise ValueError(
      f'config.data.filters compares {name} with {value!r}, but the column '
      f'holds {table[column].type}, such as {first!r:.60}: compare it with a '
      'value of this type'
    ) from error
  return pc.fill_null(mask, False).to_numpy()


def has(source: indexed.IndexedSource) -> np.ndarray:
  """Returns bool [n], whether a record has an aesthetic score."""
  table = source.table
  if 'aesthetic_score' not in table.column_names:
    return np.zeros(len(table), bool)
  return table['aesthetic_score'].is_valid().to_numpy()


def resizes(
  sizes: np.ndarray, aspects: np.ndarray, table: Sequence[buckets.Size]
) -> np.ndarray:
  """Computes whether images resized to cover their buckets fit into memory.

  Args:
    sizes: int [n, 2], (height, width) of the records in px.
    aspects: float [n], height / width.
    table: the buckets, (height, width).

  Returns:
    bool [n].
  """
  # Only extreme aspects need a closer look, and those are of few records.
  room = transforms.MAX_RESIZED / max(h * w for h, w in table)
  least, *_, most = sorted([h / w for h, w in table] * 2)
  ids = np.flatnonzero((aspects > room * least) | (aspects < most / room))
  extreme = np.maximum(sizes[ids], 1).astype(float)
  targets = np.array(table)[buckets.assign(extreme, table)]
  scales = (targets / extreme).max(1)
  fits = np.ones(len(sizes), bool)
  fits[ids] = extreme.prod(1) * scales**2 <= transforms.MAX_RESIZED
  return fits


class FilteredSource(selected.Selected):
  """The records of a source that can be used and meet filters, in their order.

  Args:
    source: of all records.
    filters: conditions.

  Raises:
    ValueError: if no record is left, with the account.
  """

  def __init__(self, source: indexed.Source, filters: Filters):
    self.source = source
    # [(reason, ids)]: each record is counted once, by its first reason.
    self.unusable = unusable_of(source)
    keep = np.ones(len(source), bool)
    for _, ids in self.unusable:
      keep[ids] = False
    self.left_out_by = {
      reason: self.of_ids(ids) for reason, ids in self.unusable
    }
    for reason, mask in filters.masks(source):
      lost = np.flatnonzero(keep & ~mask)
      keep &= mask
      if len(lost):
        self.left_out_by[reason] = self.of_ids(lost)
    # Ids in the smallest type: sources may have 10^8 records.
    self.ids = np.flatnonzero(keep).astype(np.min_scalar_type(len(keep)))
    self.sizes = source.sizes[keep]
    if not len(self.ids):
      raise ValueError(self.refusal())

  def account(self) -> record_account.Account:
    """Returns the counts of what was seen, used and left out."""
    beside = dict(getattr(self.source, 'beside', {}))
    table = getattr(self.source, 'table', None)
    if table is not None and 'captions' in table.column_names:
      several = pc.fill_null(pc.greater(table['captions'], 1), False).to_numpy()
      what = CHOSEN if getattr(self.source, 'several', False) else SEVERAL
      beside[what] = int(several[self.ids].sum())
    return record_account.Account(
      len(self.source), len(self), self.left_out_by, beside
    )

  def refusal(self) -> str:
    """Says why no record is left, and what to do."""
    count = f'{len(self.source):,}'
    lines = [
      f'config.data.filters and broken records leave none of {count}:',
      str(self.account()),
    ]
    # Where captions lack, another column may have them.
    codes = indexed.NO_CAPTION, indexed.BAD_CAPTION, indexed.NOT_REPEATED
    captionless = {PROBLEMS[c] for c in codes}
    if captionless & self.left_out_by.keys():
      if fields := getattr(self.source, 'fields', ()):
        lines.append(f'The data has the columns {list(fields)}.')
      lines.append(getattr(self.source, 'remedy', ''))
    return '\n'.join(line for line in lines if line)

  def left_out(self) -> Iterator[str]:
    """Yields a line for each unusable record: its name, and why."""
    for reason, ids in self.unusable:
      for i in ids:
        name, detail = self.describe(i)
        yield f'{name}: {reason} ({detail})' if detail else f'{name}: {reason}'

  def of_ids(self, ids: np.ndarray) -> record_account.LeftOut:
    """Makes the entry of a reason from the ids of its records."""
    shown = [self.describe(i) for i in ids[: record_account.MAX_NAMES]]
    names = tuple(f'{n}: {detail}' if detail else n for n, detail in shown)
    return record_account.LeftOut(len(ids), names)

  def describe(self, i: int) -> tuple[str, str]:
    """Returns a record's name, and what the index says of its problem."""
    table, detail = getattr(self.source, 'table', None), None
    if table is not None and 'reason' in table.column_names:
      detail = self.source.value('reason', i)
    return indexed.printable(self.source.name(int(i))), detail or ''


def unusable_of(source: indexed.Source) -> list[tuple[str, np.ndarray]]:
  """Returns [(reason, ids)] of the items that the index found unusable."""
  if not isinstance(source, indexed.IndexedSource):
    return []
  problems = source.column('problem')
  bad = np.flatnonzero(problems)
  codes = problems[bad]
  return [
    (reason, bad[codes == code])
    for code, reason in PROBLEMS.items()
    if (codes == code).any()
  ]
