"""Which records of a source are used, and how many are not, and why."""

import dataclasses

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
  """Which records of a source are used."""

  min_side: int = 0  # px, of the shorter one
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
  def names(self):
    """The columns that an index must have for these filters."""
    return tuple(sorted({name for name, _, _ in self.columns}))

  def masks(self, source):
    """(reason to be left out, whether each record stays), one by one."""
    if isinstance(source, indexed.IndexedSource):
      for code, reason in PROBLEMS.items():
        yield reason, source.column('problem') != code
    yield (
      f'a side is under {self.min_side} px',
      (source.sizes.min(1) >= self.min_side),
    )
    aspects = source.sizes[:, 0] / np.maximum(source.sizes[:, 1], 1)
    yield (
      f'height / width is not {self.min_aspect} to {self.max_aspect}',
      ((self.min_aspect <= aspects) & (aspects <= self.max_aspect)),
    )
    conditions = self.columns
    if self.min_aesthetic_score is not None:
      conditions += (('aesthetic_score', '>=', self.min_aesthetic_score),)
    for name, comparison, value in conditions:
      yield (
        f'{name} is not {comparison} {value}',
        (matches(source, name, COMPARE[comparison], value)),
      )


NONE = Filters()


def matches(source, name, compare, value):
  """Of each record, whether a condition holds; not where it has no value."""
  table = getattr(source, 'table', None)
  names = table.column_names if table else []
  if name not in names or table[name].null_count == len(table):
    raise ValueError(
      f'config.data.filters asks for {name!r}, of which '
      f'{type(source).__name__} has no value; its columns are {names}'
    )
  try:
    met = compare(table[name], value)
  except pa.ArrowException as error:
    raise ValueError(
      f'config.data.filters compares {name} with {value!r}, but it holds '
      f'{table[name].type}: {error}'
    ) from error
  return pc.fill_null(met, False).to_numpy()


class FilteredSource:
  """The records of a source that pass filters, in their order."""

  def __init__(self, source, filters, say):
    keep, self.unusable = np.ones(len(source), bool), []
    for reason, mask in filters.masks(source):
      lost = np.flatnonzero(keep & ~mask)
      keep &= mask
      if len(lost):
        say(f'{len(lost):,} of {len(source):,} records left out: {reason}')
      if reason in PROBLEMS.values():
        self.unusable.append((reason, lost))
    self.source = source
    self.ids = np.flatnonzero(keep).astype(np.min_scalar_type(len(keep)))
    self.sizes = source.sizes[keep]
    if not len(self.ids):
      raise ValueError(
        f'config.data.filters and broken records leave none of {len(source):,}'
      )

  def __len__(self):
    return len(self.ids)

  def __getitem__(self, i):
    return self.source[int(self.ids[i])]

  def left_out(self):
    """A line for each record that is broken: its name, and why."""
    for reason, ids in self.unusable:
      for i in ids:
        yield f'{self.source.name(i)}: {reason}'
