"""KID against sums written out, and against torch-fidelity."""

import numpy as np
import pytest

from sdxl_jax.evaluation import bootstrap, kid, mmd
from tests.support import torchvision_package


def features(n, seed=0, shift=0.0, d=24):
  rng = np.random.default_rng(seed)
  return np.abs(rng.normal(size=(n, d)) + shift)


def kernel(a, b):
  return (sum(p * q for p, q in zip(a, b)) / len(a) + 1) ** 3


def written_out(x, y):
  """MMD^2 without pairs of an image with itself, one pair after another."""
  within = [
    sum(
      kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j
    )
    / (len(z) * (len(z) - 1))
    for z in (x, y)
  ]
  across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
  return sum(within) - 2 * across


def test_as_written_out():
  x, y = features(12), features(9, 1, 0.3)
  np.testing.assert_allclose(kid.unbiased(x, y), written_out(x, y), rtol=1e-9)
  # A subset of all images is these images.
  np.testing.assert_allclose(
    kid.distance(x[:9], y, 3, 9), written_out(x[:9], y), rtol=1e-9
  )


def test_as_torch_fidelity():
  torchvision_package.prepare()
  torch = pytest.importorskip('torch')
  theirs = pytest.importorskip('torch_fidelity.metric_kid')
  x, y = features(90), features(70, 1, 0.1)
  expected = theirs.kid_features_to_metric(
    *map(torch.tensor, (x, y)),
    kid_subsets=20,
    kid_subset_size=40,
    kid_kernel='poly',
    kid_kernel_poly_degree=3,
    kid_kernel_poly_gamma=None,
    kid_kernel_poly_coef0=1.0,
    rng_seed=2020,
    verbose=False,
  )
  np.testing.assert_allclose(
    kid.distance(x, y, 20, 40),
    expected[theirs.KEY_METRIC_KID_MEAN],
    rtol=1e-9,
  )


def test_unbiased():
  """The mean over many halves of one set is 0 within its spread."""
  x = features(3000)
  values = [
    kid.unbiased(x[i : i + 30], x[i + 30 : i + 60]) for i in range(0, 3000, 60)
  ]
  assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_the_interval_surrounds_the_value():
  """And is about as wide as values of other images are apart."""
  reference = features(150, 1)
  metric = kid.compute(features(100, 2, 0.1), reference, 100)
  others = [
    kid.unbiased(features(100, 10 + i, 0.1), reference) for i in range(60)
  ]
  low, high = np.quantile(others, [0.025, 0.975])
  assert metric.low < metric.value < metric.high
  assert 0.5 < (metric.high - metric.low) / (high - low) < 2


def test_blocks_make_no_difference(monkeypatch):
  x, y = features(50), features(40, 1)
  before = kid.compute(x, y, 7)
  monkeypatch.setattr(mmd, 'BLOCK', 16)
  np.testing.assert_allclose(kid.compute(x, y, 7), before, rtol=1e-9)


def test_resamples_leave_out_pairs_of_one_image():
  x, y = features(10), features(8, 1)
  drawn = kid.resampled(x, y, 4, seed=0)
  for value, weights in zip(drawn, bootstrap.counts(10, 4, 0)):
    pairs = [
      (w * v, kernel(a, b))
      for i, (w, a) in enumerate(zip(weights, x))
      for j, (v, b) in enumerate(zip(weights, x))
      if i != j
    ]
    within = sum(w * k for w, k in pairs) / sum(w for w, _ in pairs)
    across = [w * kernel(a, b) for w, a in zip(weights, x) for b in y]
    expected = within - 2 * sum(across) / (10 * 8)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_too_few_images():
  with pytest.raises(ValueError, match='5 images and 7 of the reference'):
    kid.distance(features(5), features(7), subset_size=6)
  with pytest.raises(ValueError, match='24 features and the reference 3'):
    kid.compute(features(5), features(5, d=3))
