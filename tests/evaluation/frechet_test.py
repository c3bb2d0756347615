"""FID against the formula by scipy's root, pytorch-fid, and by hand."""

import numpy as np
import pytest
from scipy import linalg

from sdxl_jax.evaluation import frechet
from tests.support import torchvision_package


def features(n, d, seed=0, shift=0.0):
  """Features of an uneven spectrum, all positive as Inception's are."""
  rng = np.random.default_rng(seed)
  mixed = rng.normal(size=(n, d)) * np.geomspace(1, 1e-2, d)
  turn = np.linalg.qr(np.random.default_rng(9).normal(size=(d, d)))[0]
  return np.abs(mixed @ turn + shift).astype(np.float32)


def by_scipy(x, y):
  """Heusel et al. 2017, equation 6, with the root of the product."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  s1, s2 = np.cov(x.T), np.cov(y.T)
  root = linalg.sqrtm(s1 @ s2).real
  squares = ((x.mean(0) - y.mean(0)) ** 2).sum()
  return squares + np.trace(s1 + s2 - 2 * root)


def distance(x, y):
  return frechet.distance(*frechet.statistics(x), *frechet.statistics(y))


@pytest.mark.parametrize('d', [1, 4, 64])
def test_as_the_formula(d):
  x, y = features(300, d), features(200, d, 1, 0.3)
  if d == 1:
    # Of two normal distributions on a line.
    a, b = (z.astype(np.float64).std(ddof=1) for z in (x, y))
    expected = (np.mean(x, dtype=float) - np.mean(y, dtype=float)) ** 2
    expected += (a - b) ** 2
  else:
    expected = by_scipy(x, y)
  ours = distance(x, y)
  np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_as_pytorch_fid(monkeypatch):
  theirs = torchvision_package.pytorch_fid('fid_score')
  root = linalg.sqrtm

  def sqrtm(matrix, disp=False):
    """As before scipy 1.18, which has the argument no more."""
    return root(matrix), 0.0

  monkeypatch.setattr(theirs.linalg, 'sqrtm', sqrtm)
  x, y = features(5000, 512), features(4000, 512, 1, 0.2)
  ours = frechet.statistics(x), frechet.statistics(y)
  expected = theirs.calculate_frechet_distance(*ours[0], *ours[1])
  np.testing.assert_allclose(
    frechet.distance(*ours[0], *ours[1]), expected, rtol=1e-8
  )


def test_fewer_images_than_dimensions():
  """The trace of the root is known of few images: they span few dimensions."""
  x, y = features(20, 300), features(50, 300, 1, 0.2)
  a, b = (z.astype(np.float64) - z.mean(0, dtype=np.float64) for z in (x, y))
  means = x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)
  trace = (a**2).sum() / 19 + (b**2).sum() / 49
  cross = np.linalg.svd(a @ b.T)[1].sum() / np.sqrt(19 * 49)
  np.testing.assert_allclose(
    distance(x, y), means @ means + trace - 2 * cross, rtol=1e-10
  )
  assert distance(x, x) == pytest.approx(0, abs=1e-12 * trace)


def test_identical_and_moved():
  x = features(400, 32)
  assert abs(distance(x, x)) < 1e-10
  assert distance(x, x + 2) == pytest.approx(4 * 32, rel=1e-6)


def test_a_set_of_features_is_its_statistics():
  """Whether there are more or fewer images than dimensions."""
  for n in (20, 90):
    x, y = features(n, 48), features(300, 48, 1, 0.1)
    expected = distance(x, y)
    for reference in (y, frechet.statistics(y)):
      assert frechet.compute(x, reference).value == pytest.approx(expected)
    assert frechet.compute(y, x).value == pytest.approx(expected)


def test_influence_is_the_derivative():
  """An image that counts a little more moves FID by its influence."""
  for n, d in ((40, 6), (12, 30)):
    x = features(n, d).astype(np.float64)
    reference = frechet.describe(features(100, d, 1, 0.3))
    of_each = frechet.influence(x, reference)

    def weighted(weights, x=x, n=n, reference=reference):
      mean = weights @ x / weights.sum()
      apart = (x - mean) * np.sqrt(weights / (n - 1))[:, None]
      own = frechet.Gaussian(mean, (apart**2).sum(), apart.T)
      return frechet.between(own, reference)

    step, ones = 1e-5, np.ones(n)
    for i in (0, 3, 7):
      move = step * np.eye(n)[i]
      # Influences are up to a constant; the mean moves against all others.
      slope = (weighted(ones + move) - weighted(ones - move)) / (2 * step)
      move = np.roll(move, 1)
      other = (weighted(ones + move) - weighted(ones - move)) / (2 * step)
      expected = (of_each[i] - of_each[(i + 1) % n]) / n
      assert slope - other == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize('n, d', [(400, 8), (40, 64)])
def test_the_interval_is_as_wide_as_fids_of_other_images(n, d):
  reference = frechet.statistics(features(2000, d, 99, 0.2))
  values = [
    frechet.compute(features(n, d, seed), reference).value for seed in range(60)
  ]
  low, high = np.quantile(values, [0.025, 0.975])
  metrics = [
    frechet.compute(features(n, d, seed), reference, 200)
    for seed in range(60, 80)
  ]
  assert all(metric.low < metric.value < metric.high for metric in metrics)
  width = np.median([metric.high - metric.low for metric in metrics])
  assert 0.7 < width / (high - low) < 1.4


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'sigma': np.eye(3)}, r'mu \[4\] and sigma \[3, 3\]'),
    ({'mu': np.full(4, np.nan)}, 'have NaN or infinity'),
    ({'sigma': np.triu(np.ones((4, 4)))}, 'not symmetric'),
  ],
)
def test_what_is_no_statistics(changed, message, tmp_path):
  good = {'mu': np.zeros(4), 'sigma': np.eye(4)}
  bad = good | changed
  with pytest.raises(ValueError, match=message):
    frechet.distance(*good.values(), *bad.values())
  np.savez(tmp_path / 'bad.npz', **bad)
  with pytest.raises(ValueError, match=f'bad.npz has no statistics.*{message}'):
    frechet.load_statistics(tmp_path / 'bad.npz')


def test_statistics_of_different_nets():
  with pytest.raises(ValueError, match='4 dimensions and the second 5'):
    frechet.distance(np.zeros(4), np.eye(4), np.zeros(5), np.eye(5))
  with pytest.raises(ValueError, match='1 image has no covariance'):
    frechet.statistics(np.zeros((1, 4)))


def test_files(tmp_path):
  found = frechet.statistics(features(40, 8))
  frechet.save_statistics(tmp_path / 'reference.npz', found)
  again = frechet.load_statistics(tmp_path / 'reference.npz')
  assert frechet.distance(*found, *again) == pytest.approx(0, abs=1e-12)
  assert (again.sigma == found.sigma).all()
  for content in (b'', b'PK\x03\x04', b'text'):
    (tmp_path / 'other.npz').write_bytes(content)
    with pytest.raises(ValueError, match='other.npz has no statistics'):
      frechet.load_statistics(tmp_path / 'other.npz')
  np.savez(tmp_path / 'lacking.npz', mu=np.zeros(3))
  with pytest.raises(ValueError, match='lacking.npz has no statistics.*sigma'):
    frechet.load_statistics(tmp_path / 'lacking.npz')
  with pytest.raises(FileNotFoundError, match='none.npz does not exist'):
    frechet.load_statistics(tmp_path / 'none.npz')
