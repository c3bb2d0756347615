"""What configs claim of themselves."""

import numpy as np

from configs import tiny
from sdxl_jax.data import scenes


def test_prompts_of_tiny_are_never_drawn():
  vocabulary = scenes.Scenes(**tiny.get_config().data.scenes).vocabulary
  rng = np.random.default_rng(0)
  unseen = {
    scenes.caption(vocabulary.draw(rng, held_out=True), rng)
    for _ in range(3000)
  }
  assert set(tiny.PROMPTS) <= unseen
