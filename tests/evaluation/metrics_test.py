"""All metrics by one call, and what it refuses."""

import numpy as np
import pytest

from sdxl_jax.evaluation import (
  bootstrap,
  clip_score,
  cmmd,
  frechet,
  kid,
  metrics,
  nearest,
  precision_recall,
)


def features(n, d, seed):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


SAMPLES = metrics.Features(
  inception=features(30, 8, 0),
  cmmd=features(30, 6, 1),
  clip=features(30, 5, 2),
  texts=features(30, 5, 3),
)
REFERENCE = metrics.Features(
  inception=features(40, 8, 4), cmmd=features(9, 6, 5)
)


def test_each_is_what_its_module_computes():
  found = metrics.compute(metrics.NAMES, SAMPLES, REFERENCE, 20)
  x, y = SAMPLES.inception, REFERENCE.inception
  precision, recall = precision_recall.compute(x, y, 20)
  near = nearest.find(x, y)
  assert found.pop('memorised') == nearest.memorised_share(near, 20)
  assert found == {
    'fid': frechet.compute(x, frechet.statistics(y), 20),
    'kid': kid.compute(x, y, 20),
    'precision': precision,
    'recall': recall,
    'cmmd': cmmd.compute(SAMPLES.cmmd, REFERENCE.cmmd, 20),
    'clip': clip_score.compute(SAMPLES.clip, SAMPLES.texts, 20),
  }
  for value, low, high in found.values():
    assert low <= value <= high and low < high


def test_statistics_are_enough_for_fid():
  statistics = frechet.statistics(REFERENCE.inception)
  reference = metrics.Features(statistics=statistics)
  found = metrics.compute(['fid'], SAMPLES, reference)
  assert found == metrics.compute(['fid'], SAMPLES, REFERENCE)
  for name in ('kid', 'pr', 'cmmd', 'memorised'):
    with pytest.raises(ValueError, match=f'{name} needs features'):
      metrics.compute([name], SAMPLES, reference)


@pytest.mark.parametrize(
  'names, message',
  [
    (['fid', 'is'], "'is' is no choice"),
    (['fid', 'fid'], "'fid' is no choice.*each once"),
    ([], 'nothing is no choice'),
  ],
)
def test_names(names, message):
  with pytest.raises(ValueError, match=message):
    metrics.compute(names, SAMPLES, REFERENCE)


def test_no_resamples():
  metric = metrics.compute(['fid'], SAMPLES, REFERENCE, 0)['fid']
  assert np.isfinite(metric.value)
  assert np.isnan(metric.low) and np.isnan(metric.high)


def test_the_interval_of_a_mean():
  """As wide as the theory of means has it."""
  values = np.random.default_rng(0).normal(3, 2, 500)
  metric = bootstrap.mean(values, 2000)
  half = 1.96 * values.std() / np.sqrt(500)
  assert metric.value == pytest.approx(values.mean())
  assert metric.high - metric.value == pytest.approx(half, rel=0.1)
  assert metric.value - metric.low == pytest.approx(half, rel=0.1)


def test_every_image_is_drawn_as_often():
  counts = bootstrap.counts(10, 3000)
  assert (counts.sum(axis=1) == 10).all()
  np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.1)
  np.testing.assert_array_equal(counts, bootstrap.counts(10, 3000))
