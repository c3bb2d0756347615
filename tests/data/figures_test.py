"""Figures: grids of images, bar charts."""

import numpy as np

from sdxl_jax.data import figures


def test_grid():
  samples = [
    np.full((20, 30, 3), 10, np.uint8),
    np.full((30, 20, 3), -1.0, np.float32),
    np.full((8, 8, 3), 30, np.uint8),
  ]
  plain = figures.grid(samples, columns=2, zoom=2)
  assert plain.shape == (4 + 2 * 64, 4 + 2 * 64, 3)
  assert plain[4, 4, 0] == 10 and plain[4, 68, 0] == 0
  assert plain[68, 4, 0] == 30 and plain[100, 100, 0] == figures.GREY
  captioned = figures.grid(samples, 2, ['a dog ' * 20, 'b', 'c'])
  assert (captioned[36:48] < 100).any()


def test_bars():
  """The longest bar has the given width, the others their share of it."""
  chart = figures.bars([('a', 4), ('b', 1), ('c', 0)], width=100)
  assert chart.shape[0] == 3 * figures.LINE + 2 * figures.GAP
  teal = (chart == (0, 128, 128)).all(-1)
  middles = [
    figures.GAP + figures.LINE // 2 + i * figures.LINE for i in range(3)
  ]
  # Pillow's rectangles have both of their ends.
  assert [teal[y].sum() for y in middles] == [101, 26, 1]
