"""Improved precision and recall (Kynkaanniemi et al. 2019, 1904.06991).

A set of features is taken to cover balls around its points, each reaching to
the point's third nearest neighbour. Precision is the share of generated images
within the real ones' balls, recall the share of real ones within the generated
ones'.
"""

import numpy as np
import tqdm
from jaxtyping import Bool, Float

from sdxl_jax.evaluation import bootstrap, mmd

NEIGHBOURS = 3  # k of the paper


def radii(points: mmd.Rows, k: int = NEIGHBOURS) -> Float[np.ndarray, ' n']:
  """Returns the squared distance of each point to its k-th nearest other one.

  Raises:
    ValueError: for k points or fewer.
  """
  if len(points) <= k:
    raise ValueError(
      f'{len(points)} images have no {k} neighbours each: precision and recall '
      f'need {k + 1} images on both sides, and thousands to mean something'
    )
  points, found = np.asarray(points, np.float64), []
  for start in tqdm.trange(0, len(points), mmd.BLOCK, desc='radii', delay=2):
    block = mmd.squared_distances(points[start : start + mmd.BLOCK], points)
    rows = np.arange(len(block))
    block[rows, rows + start] = np.inf  # itself
    found.append(np.partition(block, k - 1, axis=1)[:, k - 1])
  return np.concatenate(found)


def covered(
  queries: mmd.Rows, points: mmd.Rows, limits: Float[np.ndarray, ' m']
) -> Bool[np.ndarray, ' n']:
  """Returns which queries lie in a ball of the points, f of equation 1."""
  queries = np.asarray(queries, np.float64)
  points, found = np.asarray(points, np.float64), []
  for start in tqdm.trange(0, len(queries), mmd.BLOCK, desc='balls', delay=2):
    block = mmd.squared_distances(queries[start : start + mmd.BLOCK], points)
    found.append((block <= limits).any(axis=1))
  return np.concatenate(found)


def compute(
  features: mmd.Rows,
  reference: mmd.Rows,
  resamples: int = 0,
  seed: int = bootstrap.SEED,
  k: int = NEIGHBOURS,
) -> tuple[bootstrap.Metric, bootstrap.Metric]:
  """Returns (precision, recall), equation 2 of the paper, with their intervals.

  The intervals are of the shares, the balls as they are: an image that a
  resample had twice would have no distance to its nearest neighbour.

  Args:
    features: of generated images.
    reference: features of real images.
    resamples: for the intervals.
    seed: of the resamples.
    k: neighbour to which a ball reaches.

  Raises:
    ValueError: for k images or fewer, or features of different nets.
  """
  mmd.check_widths(features, reference)
  is_real = covered(features, reference, radii(reference, k))
  is_found = covered(reference, features, radii(features, k))
  precision, recall = (
    bootstrap.mean(x, resamples, seed) for x in (is_real, is_found)
  )
  return precision, recall
