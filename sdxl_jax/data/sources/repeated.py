"""A source whose records a pass takes several times, some more often."""

from collections.abc import Iterator

import numpy as np

from sdxl_jax.data.sources import record_account, record_filters, selected

MAX_RECORDS = 10**9  # of a pass; its sizes lie in memory
REPETITIONS = 'repetitions in a pass, by the names of the folders'


class Repeated(selected.Selected):
  """The records of a source, each as often as it has repeats.

  Each repetition has a place of its own in a pass, and so its own crop, flip
  and caption; all have the same name and key.

  Args:
    source: of the records.
    repeats: int [n], of each record, at least 1.

  Raises:
    ValueError: if a pass would have over MAX_RECORDS.
  """

  def __init__(
    self, source: record_filters.FilteredSource, repeats: np.ndarray
  ):
    total = sum(map(int, repeats))
    if total > MAX_RECORDS:
      most = int(np.argmax(repeats))
      raise ValueError(
        f'the names of the folders repeat {len(source):,} records to {total:,} '
        f'in a pass, over {MAX_RECORDS:,}, such as {source.name(most)}, '
        f'{repeats[most]:,} times: rename its folder'
      )
    self.source = source
    ids = np.repeat(np.arange(len(source)), repeats)
    self.ids = ids.astype(np.min_scalar_type(len(source)))
    self.sizes = source.sizes[self.ids]

  @property
  def distinct(self) -> np.ndarray:
    """int64, the first place of each record of the source."""
    return np.unique(self.ids, return_index=True)[1]

  def account(self) -> record_account.Account:
    """Returns the counts of what was seen, used and left out."""
    account = self.source.account()
    account.beside[REPETITIONS] = len(self) - len(self.source)
    return account

  def left_out(self) -> Iterator[str]:
    """Yields a line for each unusable record: its name, and why."""
    yield from self.source.left_out()
