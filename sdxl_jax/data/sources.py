"""Where examples come from.

A source has a length, `sizes` int32 [n, 2] (height, width) known without
decoding a picture, and source[i], a dict of
  image            encoded bytes, or uint8 [h, w, 3]
  caption          string
  original_size    (height, width)
  name             path or id, for error reports
  aesthetic_score  float, optional
  flippable        optional; False where a mirrored picture belies the caption
"""

import importlib

import numpy as np

from sdxl_jax.data import filters as rules

# Where each kind is; imported when asked for, since some bring much with them.
KINDS = {
  'folder': 'Folder',
  'webdataset': 'WebDataset',
  'parquet': 'Parquet',
  'tfds': 'TFDS',
  'precomputed': 'Precomputed',
  'scenes': 'Scenes',
}
INDEXED = ('folder', 'webdataset', 'parquet', 'tfds')


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


def make_source(kind, settings, filters=rules.NONE, workers=8, say=print):
  """The source that a config describes, without what its filters leave out.

  Args:
    kind: 'mixture' or one of KINDS.
    settings: {name: value}, of the source; of a mixture {name: {'source': kind,
      'share': relative, **settings}}.
    filters: Filters, of each source.
    workers: processes that build an index.
    say: takes a line for the user.
  """
  if kind == 'mixture':
    return make_mixture(settings, filters, workers, say)
  if kind not in KINDS:
    raise ValueError(
      f'config.data.source is {kind!r}; choose one of {sorted(KINDS)} or '
      "'mixture'"
    )
  if kind in INDEXED:
    settings = dict(settings, columns=filters.names, workers=workers)
  module = importlib.import_module(f'sdxl_jax.data.{kind}')
  return rules.Chosen(getattr(module, KINDS[kind])(**settings), filters, say)


def make_mixture(parts, filters, workers, say):
  if not parts:
    raise ValueError(
      'config.data.mixture is empty: give it sources, such as dict(photos='
      "dict(source='folder', path='PICTURES', share=0.7), ...)"
    )
  made = {}
  for name, settings in parts.items():
    settings = dict(settings)
    kind, _ = settings.pop('source'), settings.pop('share')
    if kind in ('mixture', 'precomputed'):
      raise ValueError(
        f'config.data.mixture.{name} is a {kind!r} source, which none can be'
      )
    tell = lambda line, name=name: say(f'{name}: {line}')
    made[name] = make_source(kind, settings, filters, workers, tell)
  return Mixture(made, {name: part['share'] for name, part in parts.items()})
