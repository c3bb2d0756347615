"""Captions of images that have none: one of some templates, drawn each pass.

Textual inversion (Gal et al. 2022) trains a word on images without captions, by
texts such as 'a photo of a {}' in which the word takes the place of {}.
"""

from collections.abc import Sequence

import ml_collections
import numpy as np

from sdxl_jax.data.sources import indexed

PLACE = '{}'  # of the word


def of_config(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns the templates of a config, the word that it learns filled in."""
  words = [word.token_string for word in config.words.values()]
  if not words:
    return tuple(config.data.templates)
  return tuple(t.replace(PLACE, words[0]) for t in config.data.templates)


def fill(
  example: indexed.Example, templates: Sequence[str], seed: Sequence[int]
) -> indexed.Example:
  """Returns an example with one of the templates, if it has no caption.

  Args:
    example: from a source.
    templates: texts, each as likely as the others; (): nothing changes.
    seed: ints, of the draw.
  """
  if not templates or example.get('caption') != '':
    return example
  index = np.random.default_rng(seed).integers(len(templates))
  return example | {'caption': templates[int(index)]}
