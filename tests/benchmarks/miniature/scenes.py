"""Scenes whose content is known: references for FID, and what nets learn from.

All are drawn from the combinations that configs/claims/*.py are trained on, but
from other random numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from sdxl_jax.data import transforms
from sdxl_jax.data.sources import emoji, synthetic

Size = tuple[int, int]
Images = UInt8[np.ndarray, 'n h w 3']
OVERSIZE = 1.0, 2.3  # sides of renderings before they are resized, relative


class Labels(NamedTuple):
  """What is on each image: int [n], of the vocabulary's objects and colours."""

  noun: Int[np.ndarray, ' n']
  colour: Int[np.ndarray, ' n']
  count: Int[np.ndarray, ' n']  # objects - 1

  def take(self, rows) -> 'Labels':
    return Labels(self.noun[rows], self.colour[rows], self.count[rows])


class Scenes(NamedTuple):
  """Images with captions and labels."""

  images: Images
  captions: list[str]
  labels: Labels


def draw(
  vocabulary: synthetic.Vocabulary, n: int, seed: int
) -> list[synthetic.Combination]:
  """Draws combinations as often as training does."""
  rng = np.random.default_rng([seed, 1])
  return [vocabulary.draw(rng, held_out=False) for _ in range(n)]


def labels_of(combinations: Sequence[synthetic.Combination]) -> Labels:
  """Returns the labels of combinations of one kind of object each."""
  counts = {'one': 0, 'two': 1}
  nouns = [thing.noun for thing in emoji.OBJECTS]
  colours = list(synthetic.COLOURS)
  return Labels(
    np.array([nouns.index(c.objects[0].noun) for c in combinations]),
    np.array([colours.index(c.colour) for c in combinations]),
    np.array([counts[c.layout] for c in combinations]),
  )


def captions_of(combinations: Sequence[synthetic.Combination]) -> list[str]:
  """Returns the caption of each combination."""
  rng = np.random.default_rng(0)  # of relations, which these have not
  return [synthetic.caption(c, rng) for c in combinations]


def render(
  combination: synthetic.Combination,
  size: Size,
  rng: np.random.Generator,
  jitter: float = 0.0,
  oversize: tuple[float, float] = OVERSIZE,
) -> UInt8[np.ndarray, 'h w 3']:
  """Renders a scene in the aspect of a size and resizes it, so without crop."""
  factor = np.exp(rng.uniform(*np.log(oversize)))
  h, w = (round(factor * side) for side in size)
  image = synthetic.paint(combination, h, w, rng, jitter)
  pixels, _ = transforms.fit(Image.fromarray(image), (h, w), size, rng, False)
  return pixels


def make(
  vocabulary: synthetic.Vocabulary,
  size: Size,
  n: int,
  seed: int,
  jitter: float = 0.0,
) -> Scenes:
  """Makes n scenes of one size in px."""
  combinations = draw(vocabulary, n, seed)
  rng = np.random.default_rng([seed, 2])
  images = [render(c, size, rng, jitter * rng.random()) for c in combinations]
  return Scenes(
    np.stack(images), captions_of(combinations), labels_of(combinations)
  )
