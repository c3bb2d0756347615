"""Masks at the size of the latents."""

import numpy as np

from sdxl_jax.diffusion import img2img


def test_a_cell_is_repainted_if_any_of_its_pixels_is():
  mask = np.zeros((2, 16, 24))
  mask[0, 3:5, 2:20] = 1  # between the corners of the cells
  mask[1, 15, 23] = 0.5  # one pixel
  found = img2img.to_latent_mask(mask, 8)
  assert found.shape == (2, 2, 3, 1)
  assert found[0, ..., 0].tolist() == [[1, 1, 1], [0, 0, 0]]
  assert found[1, ..., 0].tolist() == [[0, 0, 0], [0, 0, 1]]


def test_the_threshold_is_met_from_its_value_on():
  mask = np.full((1, 8, 8), 0.25, np.float32)
  for threshold, expected in ((0.2, 1), (0.25, 1), (0.26, 0), (0.5, 0)):
    found = img2img.to_latent_mask(mask, 8, threshold)
    assert found.item() == expected
