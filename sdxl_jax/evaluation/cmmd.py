"""CMMD: a distance of CLIP embeddings (Jayasumana et al. 2024, 2401.09603).

The MMD of a Gaussian kernel between embeddings of length 1 of ViT-L/14 at 336
px; by 1000, as the paper reports it. The estimate is the biased one of least
variance (Gretton et al. 2012, equation 5), as in Google's code: pairs of an
image with itself count.
"""

import numpy as np
from jaxtyping import Float

from sdxl_jax.evaluation import bootstrap, mmd

SIGMA = 10.0  # of the kernel
SCALE = 1000.0
NET = 'ViT-L/14@336'


def gaussian(x: mmd.Rows, y: mmd.Rows) -> Float[np.ndarray, 'n m']:
  """Returns exp(-|x - y|^2 / (2 sigma^2))."""
  return np.exp(-mmd.squared_distances(x, y) / (2 * SIGMA**2))


def distance(x: mmd.Rows, y: mmd.Rows) -> float:
  """Returns 1000 MMD^2 of two sets of embeddings.

  Raises:
    ValueError: for embeddings of different nets.
  """
  return compute(x, y).value


def compute(
  embeddings: mmd.Rows,
  reference: mmd.Rows,
  resamples: int = 0,
  seed: int = bootstrap.SEED,
) -> bootstrap.Metric:
  """Returns the CMMD of embeddings to a reference, with its interval."""
  mmd.check_widths(embeddings, reference)
  n, m = len(embeddings), len(reference)
  # The first row is the set itself, the others are resamples.
  weights = np.ones((1 + resamples, n))
  weights[1:] = bootstrap.counts(n, resamples, seed)
  within = mmd.weighted_sums(gaussian, embeddings, weights, True, 'CMMD')
  of_reference = mmd.weighted_sums(
    gaussian, reference, np.ones((1, m)), True, 'CMMD, reference'
  )
  across = mmd.row_means(gaussian, embeddings, reference, 'CMMD, both')
  values = within / n**2 + of_reference / m**2 - 2 * weights @ across / n
  values *= SCALE
  return bootstrap.interval(values[0], values[1:])
