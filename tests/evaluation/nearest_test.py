"""Copies of training images are found among generated ones."""

import numpy as np
import pytest

from sdxl_jax.evaluation import mmd, nearest

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(mmd, 'BLOCK', 7)


def test_the_nearest_are_those_of_all_pairs():
  x, y = RNG.normal(size=(20, 5)), RNG.normal(size=(30, 5))
  found = nearest.find(x.astype(np.float32), y.astype(np.float32))
  distances = np.linalg.norm(x[:, None] - y, axis=2)
  order = np.sort(distances, axis=1)
  np.testing.assert_array_equal(found.index, distances.argmin(axis=1))
  np.testing.assert_allclose(found.ratio, order[:, 0] / order[:, 1], rtol=1e-5)
  near = y[found.index]
  cosine = (x * near).sum(1) / np.linalg.norm(x, axis=1)
  cosine /= np.linalg.norm(near, axis=1)
  np.testing.assert_allclose(found.similarity, cosine, rtol=1e-5)


def test_copies_are_counted():
  """Slightly changed ones too; images that lie between others are none."""
  y = RNG.normal(size=(50, 64))
  copies = y[[3, 7]] + 1e-3 * RNG.normal(size=(2, 64))
  x = np.concatenate([copies, (y[:6] + y[6:12]) / 2])
  found = nearest.find(x, y)
  assert found.index[:2].tolist() == [3, 7]
  assert (found.similarity[:2] > 0.999).all()
  share = nearest.memorised_share(found, 100)
  assert share.value == 2 / 8 and share.low < 2 / 8 < share.high


def test_an_exact_copy_is_at_a_distance_of_zero():
  """Also far from the origin, where squares of distances are inexact."""
  y = 1e4 + RNG.normal(size=(10, 8))
  found = nearest.find(y[4:5], y)
  assert found.index.tolist() == [4] and found.ratio.tolist() == [0.0]
  x = y[4:5] * (1 + 1e-9 * RNG.normal(size=(1, 8)))
  distances = np.sort(np.linalg.norm(x - y, axis=1))
  found = nearest.find(x, y)
  np.testing.assert_allclose(found.ratio, distances[0] / distances[1])
  # Twice in the training images: not told from an image between both.
  twice = np.concatenate([y, y[4:5]])
  assert nearest.find(y[4:5], twice).ratio.tolist() == [1.0]


def test_the_closest_are_named():
  y = RNG.normal(size=(50, 64))
  x = np.concatenate([(y[:6] + y[6:12]) / 2, y[[3]] + 1e-3, y[[7]]])
  names = [f's{i}' for i in range(8)], [f't{i}' for i in range(50)]
  first, second, third = nearest.closest(nearest.find(x, y), *names, count=3)
  assert (first['sample'], first['training_image']) == ('s7', 't7')
  assert (second['sample'], second['training_image']) == ('s6', 't3')
  assert first['ratio'] == 0 < second['ratio'] < 1 / 3 < third['ratio']
  assert first['similarity'] == pytest.approx(1)


def test_the_closest_have_the_smallest_ratio():
  """Of equal ones, the greatest similarity."""
  found = nearest.Nearest(
    index=np.array([4, 3, 2, 1]),
    similarity=np.array([0.99, 0.2, 0.5, 0.6]),
    ratio=np.array([0.9, 0.1, 0.3, 0.3]),
  )
  named = nearest.closest(found, 'abcd', 'vwxyz')
  assert [pair['sample'] for pair in named] == ['b', 'd', 'c', 'a']
  assert [pair['training_image'] for pair in named] == ['y', 'w', 'x', 'z']


def test_too_few_or_other_features():
  x = np.ones((2, 3))
  with pytest.raises(ValueError, match='1 training images'):
    nearest.find(x, x[:1])
  with pytest.raises(ValueError, match='3 features and the reference 4'):
    nearest.find(x, np.ones((2, 4)))
