"""KID: an unbiased distance of features (Binkowski et al. 2018, 1801.01401).

The MMD of the kernel k(x, y) = (x.y / d + 1)^3, section 4, without the terms of
an image with itself. The value is the mean over random subsets, as torch-
fidelity computes it; it may be slightly negative.
"""

import numpy as np
import tqdm
from jaxtyping import Float

from sdxl_jax.evaluation import bootstrap, mmd

SUBSETS = 100
SUBSET_SIZE = 1000  # images of each of both sets; fewer where one has fewer
SEED = 2020  # torch-fidelity's


def polynomial(x: mmd.Rows, y: mmd.Rows) -> Float[np.ndarray, 'n m']:
  """Returns (x.y / d + 1)^3, section 4 of the paper."""
  base = x @ y.T / x.shape[1] + 1
  return base * base * base  # ** is ten times as slow


def unbiased(x: mmd.Rows, y: mmd.Rows) -> float:
  """Returns the unbiased MMD^2 of two sets, Gretton et al. 2012, equation 3."""
  n, m = len(x), len(y)
  xx, yy = polynomial(x, x), polynomial(y, y)
  within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
  within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
  return float(within_x + within_y - 2 * polynomial(x, y).mean())


def distance(
  x: mmd.Rows,
  y: mmd.Rows,
  subsets: int = SUBSETS,
  subset_size: int = SUBSET_SIZE,
  seed: int = SEED,
) -> float:
  """Returns the mean KID of random subsets of both sets.

  The subsets are those that torch-fidelity draws.

  Args:
    x, y: features.
    subsets: number of them.
    subset_size: images of each.
    seed: of numpy's RandomState.

  Raises:
    ValueError: for a subset larger than a set or of one image, or for features
      of different nets.
  """
  mmd.check_widths(x, y)
  if not 2 <= subset_size <= min(len(x), len(y)):
    raise ValueError(
      f'subsets of {subset_size} images cannot be drawn of {len(x)} images and '
      f'{len(y)} of the reference: choose 2 to {min(len(x), len(y))}'
    )
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  rng = np.random.RandomState(seed)
  found = []
  for _ in tqdm.trange(subsets, desc='KID, subsets', delay=2):
    of_x = x[rng.choice(len(x), subset_size, replace=False)]
    of_y = y[rng.choice(len(y), subset_size, replace=False)]
    found.append(unbiased(of_x, of_y))
  return float(np.mean(found))


def compute(
  features: mmd.Rows,
  reference: mmd.Rows,
  resamples: int = 0,
  seed: int = bootstrap.SEED,
) -> bootstrap.Metric:
  """Returns the KID of features to a reference, with its interval.

  Subsets have 1,000 images, or all of the smaller set.
  """
  size = min(SUBSET_SIZE, len(features), len(reference))
  value = distance(features, reference, subset_size=size)
  return bootstrap.interval(
    value, resampled(features, reference, resamples, seed)
  )


def resampled(
  features: mmd.Rows, reference: mmd.Rows, resamples: int, seed: int
) -> Float[np.ndarray, ' r']:
  """Returns KID of each resample of the features, but for a constant.

  Images that a resample has twice are not compared with themselves. The mean
  within the reference is the same in all resamples, and left out.
  """
  if not resamples:
    return np.empty(0)
  n = len(features)
  weights = bootstrap.counts(n, resamples, seed).astype(np.float64)
  within = mmd.weighted_sums(
    polynomial, features, weights, False, 'KID, resamples'
  )
  pairs = n**2 - (weights**2).sum(axis=1)
  across = mmd.row_means(polynomial, features, reference, 'KID, reference')
  return within / pairs - 2 * weights @ across / n
