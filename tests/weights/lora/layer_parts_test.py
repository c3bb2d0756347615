"""Shapes of the parts of a layer: those that are accepted can be merged."""

import numpy as np
import pytest

from sdxl_jax.weights.lora import layer_parts

LAYER = layer_parts.Layer((24, 20), (24,))
CONV = layer_parts.Layer((12, 8, 3, 3), (12,))
FITTING = [
  (LAYER, {'down': (2, 20), 'up': (24, 2), 'alpha': ()}),
  (LAYER, {'down': (2, 20), 'up': (24, 2), 'magnitude': (24, 1)}),
  (LAYER, {'down': (2, 20, 1, 1), 'up': (24, 2, 1, 1), 'magnitude': (1, 20)}),
  (LAYER, {'down': (2, 20), 'up': (24, 2), 'up_bias': (24,)}),
  (LAYER, {'hada_w1_a': (24, 2), 'hada_w1_b': (2, 20), 'hada_w2_a': (24, 2),
           'hada_w2_b': (2, 20)}),
  (LAYER, {'lokr_w1': (4, 4), 'lokr_w2_a': (6, 2), 'lokr_w2_b': (2, 5)}),
  (LAYER, {'oft_blocks': (4, 6, 6), 'rescale': (24, 1), 'alpha': ()}),
  (LAYER, {'oft_blocks': (3, 4, 6, 6)}),
  (CONV, {'down': (2, 8, 3, 3), 'up': (12, 2, 1, 1), 'magnitude_out':
          (1, 12, 1, 1)}),
  (CONV, {'down': (2, 8, 1, 1), 'mid': (2, 2, 3, 3), 'up': (12, 2, 1, 1)}),
  (CONV, {'hada_w1_a': (2, 12), 'hada_w1_b': (2, 8), 'hada_t1': (2, 2, 3, 3),
          'hada_w2_a': (2, 12), 'hada_w2_b': (2, 8), 'hada_t2': (2, 2, 3, 3)}),
  (CONV, {'lokr_w1': (2, 2), 'lokr_w2_a': (2, 6), 'lokr_w2_b': (2, 4),
          'lokr_t2': (2, 2, 3, 3)}),
  (CONV, {'lokr_w1': (2, 2), 'lokr_w2': (6, 4, 3, 3)}),
  (CONV, {'lokr_w1': (2, 2), 'lokr_w2': (6, 36)}),
  (CONV, {'lokr_w1': (2, 2), 'lokr_w2': (6, 36, 1, 1)}),
  (LAYER, {'lokr_w1': (4, 4), 'lokr_w2': (6, 5, 1, 1)}),
  (CONV, {'diff': (12, 8, 3, 3), 'diff_b': (12,)}),
]  # fmt: skip


def merge(layer, shapes, rng):
  """Merges random parts of some shapes, and checks what comes out."""
  parts = {
    part: np.float32(0.5 * rng.standard_normal(shape))
    for part, shape in shapes.items()
  }
  scale = layer_parts.scale_of(parts, layer_parts.rank_of(shapes))
  made = layer_parts.make_deltas(parts, scale, layer)
  assert made
  for leaf, delta in made.items():
    array = np.ones(getattr(layer, leaf), np.float32)
    changed = delta.merged(array, 0.7)
    assert changed.shape == array.shape and changed.dtype == np.float32
    assert np.isfinite(changed).all() and not np.array_equal(changed, array)


@pytest.mark.parametrize('layer, shapes', FITTING, ids=lambda x: '')
def test_shapes_that_fit(layer, shapes):
  assert layer_parts.check_shapes(shapes, layer) is None
  merge(layer, shapes, np.random.default_rng(0))


@pytest.mark.parametrize('shapes, part', [
  ({'lokr_w1': (2, 9), 'lokr_w2': (6, 8)}, 'lokr_w1'),
  ({'lokr_w1_a': (2, 1), 'lokr_w1_b': (1, 9), 'lokr_w2': (6, 8)}, 'lokr_w1_b'),
  ({'lokr_w1': (2, 2), 'lokr_w2': (6, 4, 9, 1)}, 'lokr_w2'),
  ({'lokr_w1': (2, 2), 'lokr_w2_a': (6, 2), 'lokr_w2_b': (2, 4, 1, 9)},
   'lokr_w2_b'),
])  # fmt: skip
def test_products_across_a_kernel_do_not_fit(shapes, part):
  """Their sizes multiply to those of the weight."""
  assert layer_parts.check_shapes(shapes, CONV).part == part


def test_random_shapes_fit_or_are_refused():
  rng = np.random.default_rng(0)
  fitting = 0
  for trial in range(3000):
    layer, shapes = FITTING[trial % len(FITTING)]
    shapes = dict(shapes)
    for part in rng.choice(list(shapes), rng.integers(1, 3)):
      shape = shapes[part]
      shapes[part] = [
        tuple(int(n) for n in rng.integers(0, 7, rng.integers(0, 6))),
        shape[::-1],
        (*shape, 1),
        shape[:-1],
        (*shape[:-1], 3),
        (1, *shape),
      ][rng.integers(6)]
    shapes['alpha'] = ()
    if rng.integers(9) == 0:
      shapes.pop(rng.choice(list(shapes)))
    try:
      misfit = layer_parts.check_shapes(shapes, layer)
    except ValueError as error:
      assert str(error).startswith('has '), error
      continue
    if misfit is None and 0 not in sum(shapes.values(), ()):
      merge(layer, shapes, rng)
      fitting += 1
    elif misfit is not None:
      assert misfit.part in shapes and misfit.needed
  assert 50 < fitting < 1000
