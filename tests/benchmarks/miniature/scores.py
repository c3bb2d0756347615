"""What is measured of samples: FID, right content, cut objects, sharpness."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from sdxl_jax.evaluation import frechet
from tests.benchmarks import scene_score
from tests.benchmarks.miniature import feature_net, scenes

# An object is cut off where it reaches the edge: so many px in a row of it
# differ by so much, of 255, from the background. Scenes keep 8 % of each side
# free.
EDGE_PX, EDGE_CONTRAST = 3, 64


def fid(
  features: feature_net.Features,
  samples: scenes.Images,
  reference: scenes.Images,
) -> float:
  """Returns the Frechet distance of our features."""
  of_samples, _ = features(samples)
  of_reference, _ = features(reference)
  return frechet.compute(of_samples, of_reference).value


def right(
  features: feature_net.Features, samples: scenes.Images, labels: scenes.Labels
) -> Bool[np.ndarray, ' n']:
  """Returns whether object, colour and count are those of the prompt."""
  _, heads = features(samples)
  matches = [head.argmax(1) == label for head, label in zip(heads, labels)]
  return np.all(matches, axis=0)


def inception_score(
  features: feature_net.Features, samples: scenes.Images
) -> float:
  """Returns exp(mean KL(p(y | x), p(y))) of our net's objects.

  Salimans et al. 2016, section 4; at most the number of objects.
  """
  _, (log_p, *_) = features(samples)
  p = np.exp(log_p.astype(np.float64))
  divergence = (p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1)
  return float(np.exp(divergence.mean()))


def cut_off(samples: scenes.Images) -> Bool[np.ndarray, ' n']:
  """Returns whether an object reaches an edge of each image."""
  found = []
  for image in samples:
    background = np.median(scene_score.border(image), axis=0)
    differs = np.abs(image - background).max(axis=-1) > EDGE_CONTRAST
    edges = differs[0], differs[-1], differs[:, 0], differs[:, -1]
    found.append(any(longest_run(edge) >= EDGE_PX for edge in edges))
  return np.array(found)


def longest_run(values: Sequence[bool]) -> int:
  """Returns the most True values in a row."""
  longest = length = 0
  for value in values:
    length = length + 1 if value else 0
    longest = max(longest, length)
  return longest


def sharpness(samples: scenes.Images) -> Float[np.ndarray, ' n']:
  """Returns the mean |Laplacian| of each image's grey values, of 255.

  Blur lowers it; noise and detail raise it, so that only its distance from that
  of real images says anything.
  """
  grey = samples.astype(np.float64).mean(axis=-1)
  middle = grey[:, 1:-1, 1:-1]
  around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
  around += grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
  return np.abs(around - 4 * middle).mean(axis=(1, 2))
