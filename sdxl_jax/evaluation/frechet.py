"""FID: the Frechet distance of features (Heusel et al. 2017, 1706.08500).

Two sets of features are described as Gaussians; equation 6 is their distance.
Computed in float64, from the covariance of n - 1 as in pytorch-fid.
"""

import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
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


class Gaussian(NamedTuple):
  """What the distance needs of features, float64.

  Attributes:
    mu: mean.
    trace: of the covariance.
    root: R with R R^T the covariance.
  """

  mu: Vector
  trace: float
  root: Float[np.ndarray, 'd rank']


def statistics(features: Float[np.ndarray, 'n d']) -> Statistics:
  """Returns mean and covariance of features.

  Raises:
    ValueError: for fewer than two images.
  """
  check_count(features)
  features = np.asarray(features, np.float64)
  sigma = np.cov(features, rowvar=False)
  return Statistics(
    features.mean(axis=0), sigma.reshape(2 * features.shape[1:])
  )


def check_count(features: Float[np.ndarray, 'n d']) -> None:
  """Raises ValueError for fewer than two images."""
  if len(features) < 2:
    raise ValueError(
      f'{len(features)} image has no covariance: FID needs two images, and '
      'thousands to mean something'
    )


def distance(mu1: Vector, s1: Matrix, mu2: Vector, s2: Matrix) -> float:
  """Returns |mu1 - mu2|^2 + tr(s1 + s2 - 2 (s1 s2)^(1/2)), equation 6.

  The trace of the root is the sum of the singular values of R1^T R2, where s =
  R R^T: s1 s2 has the squares of these as eigenvalues. It is exact and finite
  for singular covariances too, as those of fewer images than dimensions are:
  eigenvalues that are zero but for rounding are taken as zero. pytorch-fid
  computes the root of the product, which is the same but for the rounding of
  that root; where it fails, it adds 1e-6 to both diagonals.

  Raises:
    ValueError: for shapes that do not fit, and covariances that are none.
  """
  gaussians = [describe(Statistics(mu1, s1)), describe(Statistics(mu2, s2))]
  return between(*gaussians)


def between(one: Gaussian, other: Gaussian) -> float:
  """Returns the distance of two Gaussians, see `distance`."""
  if one.mu.shape != other.mu.shape:
    raise ValueError(
      f'the first statistics have {len(one.mu)} dimensions and the second '
      f'{len(other.mu)}: both must be of the same net'
    )
  difference = one.mu - other.mu
  cross = linalg.svdvals(one.root.T @ other.root).sum()
  return float(difference @ difference + one.trace + other.trace - 2 * cross)


def describe(known: Statistics | Float[np.ndarray, 'n d']) -> Gaussian:
  """Returns the Gaussian of statistics, or of features.

  Raises:
    ValueError: for what is no mean and covariance, or for a single image.
  """
  if isinstance(known, Statistics):
    check(known.mu, known.sigma)
    mu, sigma = (np.asarray(x, np.float64) for x in known)
    return Gaussian(mu, float(np.trace(sigma)), root(sigma))
  check_count(known)
  features = np.asarray(known, np.float64)
  n, d = features.shape
  if n > d:
    return describe(statistics(features))
  # Of few images the centred features are a root themselves.
  apart = (features - features.mean(axis=0)) / np.sqrt(n - 1)
  return Gaussian(features.mean(axis=0), float((apart**2).sum()), apart.T)


def root(sigma: Matrix) -> Float[np.ndarray, 'd rank']:
  """Returns R with R R^T = sigma, as many columns as sigma's rank."""
  sigma = np.asarray(sigma, np.float64)
  values, vectors = linalg.eigh((sigma + sigma.T) / 2)
  # numpy.linalg.matrix_rank has the same limit.
  limit = len(sigma) * np.finfo(np.float64).eps * np.abs(values).max()
  kept = values > limit
  return vectors[:, kept] * np.sqrt(values[kept])


def check(mu: Vector, sigma: Matrix) -> None:
  """Raises ValueError for what is no mean and covariance."""
  mu, sigma = np.asarray(mu), np.asarray(sigma)
  if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
    raise ValueError(
      f'statistics have mu {list(mu.shape)} and sigma {list(sigma.shape)}: '
      'they must be [d] and [d, d]'
    )
  if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
    raise ValueError('statistics have NaN or infinity')
  largest = np.abs(sigma).max(initial=0)
  if np.abs(sigma - sigma.T).max(initial=0) > SYMMETRY * largest:
    raise ValueError('sigma is not symmetric: no covariance')


def compute(
  features: Float[np.ndarray, 'n d'],
  reference: Statistics | Float[np.ndarray, 'm d'],
  resamples: int = 0,
  seed: int = bootstrap.SEED,
) -> bootstrap.Metric:
  """Returns the FID of features to a reference, with its interval.

  Args:
    features: of generated images.
    reference: features of real images, or their statistics.
    resamples: for the interval, see `influence`.
    seed: of the resamples.
  """
  other = describe(reference)
  value = between(describe(features), other)
  if not resamples:
    return bootstrap.interval(value, np.empty(0))
  of_each = influence(features, other)
  drawn = bootstrap.counts(len(features), resamples, seed) @ of_each
  return bootstrap.interval(value, drawn / len(features))


def influence(
  features: Float[np.ndarray, 'n d'], reference: Gaussian
) -> Float[np.ndarray, ' n']:
  """Returns how much each image moves FID, but for a constant.

  To first order, the FID of a resample is the mean of these numbers over its
  images (Efron and Tibshirani 1993, section 22.3). The FID of the resample
  itself would take an eigenvalue problem each, and images that it has twice
  make it larger and its spread wider than those of new images.

  With s the covariance of n images a from their mean, the derivative of tr((R^T
  s R)^(1/2)) by s is T / 2, where T = R (R^T s R)^(-1/2) R^T: an image moves
  FID by 2 (mu1 - mu2).a + (a.a - a.T a) n / (n - 1).
  """
  features, n = np.asarray(features, np.float64), len(features)
  center = features.mean(axis=0)
  apart = features - center
  turned = apart @ reference.root / np.sqrt(n - 1)  # R^T s R = turned^T turned
  # Of both products with the transpose, the smaller has the same eigenvalues.
  is_wide = turned.shape[0] < turned.shape[1]
  gram = turned @ turned.T if is_wide else turned.T @ turned
  squares, vectors = linalg.eigh(gram)
  kept = squares > len(gram) * np.finfo(np.float64).eps * squares[-1]
  roots, vectors = np.sqrt(squares[kept]), vectors[:, kept]
  along = vectors * roots if is_wide else turned @ vectors
  moved = (along**2 / roots).sum(axis=1)
  spread = (apart**2).sum(axis=1) / (n - 1)
  return 2 * apart @ (center - reference.mu) + n * (spread - moved)


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
      found = Statistics(
        mu=np.asarray(file['mu']), sigma=np.asarray(file['sigma'])
      )
    check(found.mu, found.sigma)
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
  return Statistics(
    mu=found.mu.astype(np.float64), sigma=found.sigma.astype(np.float64)
  )


def save_statistics(path: str | pathlib.Path, found: Statistics) -> None:
  """Writes an .npz of mu and sigma, atomically, for other programs too."""
  with atomic_write.atomic_path(path) as partial:
    with open(partial, 'wb') as file:
      np.savez_compressed(file, mu=found.mu, sigma=found.sigma)
