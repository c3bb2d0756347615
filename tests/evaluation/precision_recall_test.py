"""Precision and recall by hand, by loops, and against torch-fidelity."""

import numpy as np
import pytest

from sdxl_jax.evaluation import mmd, precision_recall
from tests.support import torchvision_package


def features(n, seed=0, shift=0.0, d=4):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, d)) + shift


def by_loops(x, y, k):
  """Share of x in balls around y that reach to the k-th nearest of y."""

  def apart(a, b):
    return float(np.sqrt(((a - b) ** 2).sum()))

  reach = [
    sorted(apart(p, q) for j, q in enumerate(y) if j != i)[k - 1]
    for i, p in enumerate(y)
  ]
  return np.mean([any(apart(a, p) <= r for p, r in zip(y, reach)) for a in x])


def values(x, y, **settings):
  return [m.value for m in precision_recall.compute(x, y, **settings)]


@pytest.mark.parametrize('k', [1, 3, 5])
def test_as_by_loops(k, monkeypatch):
  x, y = features(40), features(30, 1, 0.8)
  expected = [by_loops(x, y, k), by_loops(y, x, k)]
  assert values(x, y, k=k) == pytest.approx(expected, abs=1e-12)
  assert 0 < expected[0] < 1 and 0 < expected[1] < 1
  monkeypatch.setattr(mmd, 'BLOCK', 7)
  assert values(x, y, k=k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.torch
def test_as_torch_fidelity():
  torchvision_package.prepare()
  torch = pytest.importorskip('torch')
  theirs = pytest.importorskip('torch_fidelity.metric_prc')
  x, y = features(200), features(150, 1, 0.8)
  expected = theirs.calculate_precision_recall_full(
    torch.tensor(x), torch.tensor(y), 3
  )
  assert values(x, y) == pytest.approx(expected, abs=1e-6)


def test_what_they_mean():
  x = features(50)
  assert values(x, x) == [1, 1]
  assert values(x, x + 100) == [0, 0]
  # Generated images of one kind: all are real, few real ones are found.
  both = np.concatenate([x, x + 100])
  assert values(x, both) == [1, 0.5]
  assert values(both, x) == [0.5, 1]


def test_intervals():
  precision, recall = precision_recall.compute(
    features(200), features(150, 1, 0.8), resamples=200
  )
  for metric, n in ((precision, 200), (recall, 150)):
    assert metric.low < metric.value < metric.high
    deviation = np.sqrt(metric.value * (1 - metric.value) / n)
    width = (metric.high - metric.low) / 2
    assert width == pytest.approx(1.96 * deviation, rel=0.3)


def test_too_few():
  with pytest.raises(ValueError, match='3 images have no 3 neighbours'):
    precision_recall.compute(features(9), features(3))
  with pytest.raises(ValueError, match='4 features and the reference 5'):
    precision_recall.compute(features(9), features(9, d=5))
