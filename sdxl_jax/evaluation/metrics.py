"""All metrics of generated images, from their features and a reference's.

fid   frechet.py           Inception features, or statistics of the reference
kid   kid.py               Inception features
pr    precision_recall.py  Inception features; two values
cmmd  cmmd.py              embeddings of CLIP ViT-L/14 at 336 px
clip  clip_score.py        embeddings of CLIP, of images and of prompts
memorised  nearest.py      Inception features, the reference: training images
"""

import dataclasses
from collections.abc import Collection

from sdxl_jax.evaluation import (
  bootstrap,
  clip_score,
  cmmd,
  features,
  frechet,
  kid,
  nearest,
  precision_recall,
)

NAMES = ('fid', 'kid', 'pr', 'cmmd', 'clip', 'memorised')
# Of a reference; statistics are enough for fid.
BY_INCEPTION = ('fid', 'kid', 'pr', 'memorised')
BY_REFERENCE = (*BY_INCEPTION, 'cmmd')


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of a set of images, as far as they are known.

  Attributes:
    inception: [n, 2048], see features.load_inception.
    statistics: of Inception features, where those themselves are not known.
    cmmd: [n, 768], see cmmd.py.
    clip: [n, p], for the CLIP score.
    texts: [n, p], of the prompts.
    neighbours: nearest reference images, where they are known already.
  """

  inception: features.Features | None = None
  statistics: frechet.Statistics | None = None
  cmmd: features.Features | None = None
  clip: features.Features | None = None
  texts: features.Features | None = None
  neighbours: nearest.Nearest | None = None

  def need(self, name: str, metric: str) -> features.Features:
    """Returns features, or raises ValueError where they are not known."""
    found = getattr(self, name)
    if found is None:
      raise ValueError(f'{metric} needs features {name!r}, which are not there')
    return found


def check_names(names: Collection[str]) -> None:
  """Raises ValueError for unknown metrics, none, or one that is named twice."""
  unknown = [name for name in names if name not in NAMES]
  twice = [name for name in names if list(names).count(name) > 1]
  if unknown or twice or not names:
    wrong = f'{(unknown + twice)[0]!r}' if unknown or twice else 'nothing'
    raise ValueError(
      f'{wrong} is no choice of metrics: name some of {", ".join(NAMES)}, each '
      'once'
    )


def find_nearest(samples: Features, reference: Features) -> nearest.Nearest:
  """Finds the reference images that are nearest to the samples."""
  both = [x.need('inception', 'memorised') for x in (samples, reference)]
  return nearest.find(*both)


def compute(
  names: Collection[str],
  samples: Features,
  reference: Features,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = bootstrap.SEED,
) -> dict[str, bootstrap.Metric]:
  """Computes metrics of generated images.

  Args:
    names: of NAMES.
    samples: features of the generated images.
    reference: of real images; 'clip' needs none.
    resamples: for the intervals; 0: none.
    seed: of the resamples.

  Returns:
    {'fid', 'kid', 'precision', 'recall', 'cmmd', 'clip' or 'memorised':
    (value, low, high)}.

  Raises:
    ValueError: for an unknown name, or where features are lacking.
  """
  check_names(names)
  found, draw = {}, (resamples, seed)
  if 'fid' in names:
    own = samples.need('inception', 'fid')
    other = reference.statistics or reference.need('inception', 'fid')
    found['fid'] = frechet.compute(own, other, *draw)
  for name, metric in (('kid', kid.compute), ('pr', precision_recall.compute)):
    if name in names:
      both = [x.need('inception', name) for x in (samples, reference)]
      found[name] = metric(*both, *draw)
  if 'pr' in found:
    found['precision'], found['recall'] = found.pop('pr')
  if 'memorised' in names:
    known = samples.neighbours or find_nearest(samples, reference)
    found['memorised'] = nearest.memorised_share(known, *draw)
  if 'cmmd' in names:
    both = [x.need('cmmd', 'cmmd') for x in (samples, reference)]
    found['cmmd'] = cmmd.compute(*both, *draw)
  if 'clip' in names:
    both = [samples.need(name, 'clip') for name in ('clip', 'texts')]
    found['clip'] = clip_score.compute(*both, *draw)
  return found
