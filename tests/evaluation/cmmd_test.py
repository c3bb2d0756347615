"""CMMD against sums written out, and against PyTorch as its code has them."""

import math

import numpy as np
import pytest

from sdxl_jax.evaluation import bootstrap, cmmd, mmd


def embeddings(n, seed=0, shift=0.0, d=16):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, d)) + shift
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def kernel(a, b):
  return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b)) / 200)


def mean(x, y):
  return sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_as_written_out():
  x, y = embeddings(12), embeddings(9, 1, 0.3)
  expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
  np.testing.assert_allclose(cmmd.distance(x, y), expected, rtol=1e-9)
  assert cmmd.distance(x, x) == pytest.approx(0, abs=1e-10)


@pytest.mark.torch
def test_as_in_torch(monkeypatch):
  torch = pytest.importorskip('torch')
  x, y = embeddings(150), embeddings(120, 1, 0.1)
  monkeypatch.setattr(mmd, 'BLOCK', 64)

  def mean(a, b):
    return torch.exp(
      -(torch.cdist(*map(torch.tensor, (a, b))) ** 2) / 200
    ).mean()

  expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
  np.testing.assert_allclose(cmmd.distance(x, y), expected, rtol=1e-7)


def test_resamples():
  x, y = embeddings(12), embeddings(9, 1, 0.3)
  metric = cmmd.compute(x, y, 30, seed=1)
  values = np.array(
    [cmmd.distance(x.repeat(w, 0), y) for w in bootstrap.counts(12, 30, 1)]
  )
  expected = bootstrap.interval(cmmd.distance(x, y), values)
  np.testing.assert_allclose(metric, expected, rtol=1e-8)
  assert metric.low < metric.value < metric.high


def test_embeddings_of_another_net():
  with pytest.raises(ValueError, match='16 features and the reference 4'):
    cmmd.distance(embeddings(3), embeddings(3, d=4))
