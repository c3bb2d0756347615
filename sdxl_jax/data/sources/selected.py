"""Records of a source that are chosen by their numbers."""

import numpy as np

from sdxl_jax.data.sources import indexed


class Selected:
  """Some records of a source, or some of them several times, in a given order.

  Subclasses set
    source  of all records
    ids     int [n], the number of each record in the source
    sizes   int [n, 2], of their images
  """

  source: indexed.Source
  ids: np.ndarray
  sizes: np.ndarray

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, i: int) -> indexed.Example:
    return self.source[int(self.ids[i])]

  def name(self, i: int) -> str:
    """Names a record in reports."""
    return self.source.name(int(self.ids[i]))

  @property
  def stamps(self) -> np.ndarray | None:
    """uint64 [n], see `indexed.stamp`; None of a source without them."""
    stamps = self.source.stamps
    return None if stamps is None else stamps[self.ids]

  @property
  def keys(self) -> np.ndarray | None:
    """uint64 [n], hashes of the names; None of a source without them."""
    keys = self.source.keys
    return None if keys is None else keys[self.ids]
