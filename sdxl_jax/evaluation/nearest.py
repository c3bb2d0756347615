"""The nearest training image of each generated one: is it a copy?

A generated image counts as memorised if its nearest training image is less than
a third as far as the second nearest (Yoon et al. 2023, "Diffusion Probabilistic
Models Generalize when They Fail to Memorize", section 3, there of pixels). An
image that the training data holds twice hides its copies from this measure,
which the similarity shows all the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from jaxtyping import Float, Int

from sdxl_jax.evaluation import bootstrap, mmd

SHOWN = 12  # images that are named
MEMORISED = 1 / 3  # ratio of distances below which an image is a copy


class Nearest(NamedTuple):
  """What is nearest to each of n generated images.

  Attributes:
    index: of the nearest reference image.
    similarity: cosine of the features of both.
    ratio: of the distance to the nearest and to the second nearest; 1 if both
      are 0.
  """

  index: Int[np.ndarray, ' n']
  similarity: Float[np.ndarray, ' n']
  ratio: Float[np.ndarray, ' n']


def find(samples: mmd.Rows, reference: mmd.Rows) -> Nearest:
  """Finds the nearest reference image of each generated one.

  Args:
    samples: features of generated images.
    reference: features of training images.

  Raises:
    ValueError: for fewer than two training images, or features of different
      nets.
  """
  mmd.check_widths(samples, reference)
  if len(reference) < 2:
    raise ValueError(
      f'{len(reference)} training images: a nearest and a second nearest one '
      'are needed'
    )
  x, y = (np.asarray(z, np.float64) for z in (samples, reference))
  lengths = np.linalg.norm(y, axis=1)
  indices, cosines, ratios = [], [], []
  for start in tqdm.trange(0, len(x), mmd.BLOCK, desc='nearest', delay=2):
    block = x[start : start + mmd.BLOCK]
    distances = mmd.squared_distances(block, y)
    two = np.argpartition(distances, 1, axis=1)[:, :2]
    rows = np.arange(len(block))[:, None]
    two = np.take_along_axis(two, distances[rows, two].argsort(axis=1), 1)
    # Squares that nearly cancel are inexact: these two are computed anew.
    near, next_near = (
      np.linalg.norm(block - y[two[:, k]], axis=1) for k in range(2)
    )
    both_equal = next_near == 0
    ratios.append(np.where(both_equal, 1.0, near / (next_near + both_equal)))
    products = (block * y[two[:, 0]]).sum(axis=1)
    norms = np.linalg.norm(block, axis=1) * lengths[two[:, 0]]
    cosines.append(products / np.maximum(norms, 1e-30))
    indices.append(two[:, 0])
  return Nearest(*map(np.concatenate, (indices, cosines, ratios)))


def closest(
  found: Nearest,
  samples: Sequence[Any],
  reference: Sequence[Any],
  count: int = SHOWN,
) -> list[dict[str, Any]]:
  """Returns the generated images that are most like a training image.

  Args:
    found: of these images.
    samples: names of the generated images.
    reference: names of the training images.
    count: of images, at most; those of the smallest ratio come first.
  """
  order = np.lexsort((-found.similarity, found.ratio))[:count]
  return [
    {
      'sample': str(samples[i]),
      'training_image': str(reference[found.index[i]]),
      'similarity': float(found.similarity[i]),
      'ratio': float(found.ratio[i]),
    }
    for i in order
  ]


def memorised_share(
  nearest: Nearest,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = bootstrap.SEED,
) -> bootstrap.Metric:
  """Returns the share of generated images that are copies, and its interval."""
  return bootstrap.mean(nearest.ratio < MEMORISED, resamples, seed)
