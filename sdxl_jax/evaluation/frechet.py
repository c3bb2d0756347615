"""FID: the Frechet distance of features (Heusel et al. 2017, 1706.08500).

Two sets of features are described as Gaussians, of which equation 6 is the
distance. Computed in float64, from the covariance of n - 1 as in pytorch-fid.
"""

import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
import tqdm
from jaxtyping import Float
from scipy import linalg

from sdxl_jax import atomic_write
from sdxl_jax.evaluation import bootstrap

Matrix = Float[np.ndarray, 'd d']
Vector = Float[np.ndarray, ' d']
SYMMETRY = 1e-6  # of the largest entry, by which sigma may differ from sigma.T


class Statistics(NamedTuple):
  """Mean and covariance of features, float64."""

  mu: Vector
  sigma: Matrix


def statistics(features: Float[np.ndarray, 'n d']) -> Statistics:
  """Returns mean and covariance of features.

  Raises:
    ValueError: for fewer than two images.
  """
  if len(features) < 2:
    raise ValueError(
      f'{len(features)} image has no covariance: FID needs two images, and '
      'thousands to mean something'
    )
  features = np.asarray(features, np.float64)
  return Statistics(features.mean(axis=0), np.cov(features, rowvar=False))


def distance(mu1: Vector, s1: Matrix, mu2: Vector, s2: Matrix) -> float:
  """Returns |mu1 - mu2|^2 + tr(s1 + s2 - 2 (s1 s2)^(1/2)), equation 6.

  The trace of the root is the sum of the singular values of R1^T R2, where s =
  R R^T: s1 s2 has the squares of these as eigenvalues. It is exact and finite
  for singular covariances too, as those of fewer images than dimensions are:
  eigenvalues that are zero but for rounding are taken as zero. pytorch-fid's
  root of the product is the same number to its rounding, of about 1e-6 of a
  FID, or 1e-3 where s1 s2 is singular; and where that fails it adds 1e-6 to
  the diagonals.

  Raises:
    ValueError: for shapes that do not fit, and covariances that are none.
  """
  check(mu1, s1, 'first')
  check(mu2, s2, 'second')
  if len(mu1) != len(mu2):
    raise ValueError(
      f'the first statistics have {len(mu1)} dimensions and the second '
      f'{len(mu2)}: both must be of the same net'
    )
  difference = np.asarray(mu1, np.float64) - np.asarray(mu2, np.float64)
  cross = linalg.svdvals(root(s1).T @ root(s2)).sum()
  return float(
    difference @ difference + np.trace(s1) + np.trace(s2) - 2 * cross
  )


def root(sigma: Matrix) -> Float[np.ndarray, 'd rank']:
  """Returns R with R R^T = sigma, as many columns as sigma's rank."""
  sigma = np.asarray(sigma, np.float64)
  values, vectors = linalg.eigh((sigma + sigma.T) / 2)
  # numpy.linalg.matrix_rank has the same limit.
  limit = len(sigma) * np.finfo(np.float64).eps * np.abs(values).max()
  kept = values > limit
  return vectors[:, kept] * np.sqrt(values[kept])


def check(mu: Vector, sigma: Matrix, which: str) -> None:
  """Raises ValueError for what is no mean and covariance."""
  mu, sigma = np.asarray(mu), np.asarray(sigma)
  if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
    raise ValueError(
      f'the {which} statistics have mu {list(mu.shape)} and sigma '
      f'{list(sigma.shape)}: they must be [d] and [d, d]'
    )
  if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
    raise ValueError(f'the {which} statistics have NaN or infinity')
  largest = np.abs(sigma).max(initial=0)
  if np.abs(sigma - sigma.T).max(initial=0) > SYMMETRY * largest:
    raise ValueError(
      f'sigma of the {which} statistics is not symmetric: no covariance'
    )


def compute(
  features: Float[np.ndarray, 'n d'],
  reference: Statistics,
  resamples: int = 0,
  seed: int = bootstrap.SEED,
) -> bootstrap.Metric:
  """Returns the FID of features to reference statistics, with its interval.

  A resample costs an eigenvalue problem of d or n rows, whichever are fewer.
  """
  own = statistics(features)
  value = distance(own.mu, own.sigma, reference.mu, reference.sigma)
  drawn = resampled(features, reference, resamples, seed)
  return bootstrap.interval(value, drawn)


def resampled(
  features: Float[np.ndarray, 'n d'],
  reference: Statistics,
  resamples: int,
  seed: int = bootstrap.SEED,
) -> Float[np.ndarray, ' r']:
  """Returns the FID of each resample of the features."""
  features, n = np.asarray(features, np.float64), len(features)
  if not resamples:
    return np.empty(0)
  # In the reference's axes the trace is that of a root of one matrix.
  center = features.mean(axis=0)
  apart = features - center
  turned = apart @ root(reference.sigma)
  squares, difference = (apart**2).sum(axis=1), center - reference.mu
  distances = []
  for weights in tqdm.tqdm(
    bootstrap.counts(n, resamples, seed), desc='FID, resamples', delay=2
  ):
    mean, chosen = weights @ apart / n, np.flatnonzero(weights)
    rows = turned[chosen] - mean_of(weights, turned)
    rows *= np.sqrt(weights[chosen, None] / (n - 1))
    is_wide = rows.shape[0] < rows.shape[1]
    gram = rows @ rows.T if is_wide else rows.T @ rows
    cross = np.sqrt(linalg.eigvalsh(gram).clip(0)).sum()
    trace = (weights @ squares - n * mean @ mean) / (n - 1)
    distances.append(((difference + mean) ** 2).sum() + trace - 2 * cross)
  return np.array(distances) + np.trace(reference.sigma)


def mean_of(
  weights: Float[np.ndarray, ' n'], rows: Float[np.ndarray, 'n d']
) -> Float[np.ndarray, ' d']:
  """Returns the mean of rows, each counted as often as its weight says."""
  return weights @ rows / weights.sum()


def load_statistics(path: str | pathlib.Path) -> Statistics:
  """Loads mu and sigma of an .npz file, as pytorch-fid and MLPerf have them.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it holds anything else.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist, or is not a file')
  try:
    with np.load(path, allow_pickle=False) as file:
      found = Statistics(*(np.asarray(file[name]) for name in ('mu', 'sigma')))
    check(found.mu, found.sigma, 'stored')
  # Of numpy and zipfile, for broken files and for arrays of one name.
  except (
    ValueError,
    KeyError,
    OSError,
    EOFError,
    AttributeError,
    TypeError,
    zipfile.BadZipFile,
  ) as e:
    reason = ' '.join(str(e).split())[:200]
    raise ValueError(
      f'{path} has no statistics of FID ({reason}): it must be an .npz of mu '
      '[2048] and sigma [2048, 2048], as pytorch-fid --save-stats writes it'
    ) from e
  return Statistics(*(x.astype(np.float64) for x in found))


def save_statistics(path: str | pathlib.Path, found: Statistics) -> None:
  """Writes an .npz of mu and sigma, atomically, for other programs too."""
  with atomic_write.atomic_path(path) as partial:
    with open(partial, 'wb') as file:
      np.savez_compressed(file, mu=found.mu, sigma=found.sigma)
