"""A source that mixes several sources in given shares."""

import numpy as np


class Mixture:
  """Several sources in given shares.

  A pass holds every record of each at least once. To reach their shares, those
  that are too small are gone through several times in it: all records of one
  equally often, but for one time more or less.

  Args:
    sources: {name: source}.
    shares: {name: of the pictures, relative to the others'}.
  """

  def __init__(self, sources, shares):
    for name, share in shares.items():
      if not share > 0:
        raise ValueError(
          f'config.data.mixture.{name}.share is {share}; it must be above 0'
        )
    self.sources = list(sources.values())
    share = np.array([shares[name] for name in sources], float)
    share /= share.sum()
    lengths = np.array([len(source) for source in self.sources])
    total = (lengths / share).max()
    self.lengths = np.maximum(lengths, np.rint(share * total).astype(int))
    self.ends = np.cumsum(self.lengths)
    self.sizes = np.concatenate(
      [np.resize(s.sizes, (n, 2)) for s, n in zip(self.sources, self.lengths)]
    )

  def __len__(self):
    return int(self.ends[-1])

  def __getitem__(self, i):
    which = int(np.searchsorted(self.ends, i, side='right'))
    source = self.sources[which]
    return source[int(i - self.ends[which] + self.lengths[which]) % len(source)]

  def left_out(self):
    for source in self.sources:
      yield from source.left_out()
