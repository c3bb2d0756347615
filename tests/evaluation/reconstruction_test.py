"""PSNR and SSIM against scikit-image; the grid of comparisons."""

import numpy as np
import pytest

from sdxl_jax.evaluation import reconstruction


def pairs():
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (3, 40, 24, 3)).astype(np.float32)
  noise = np.array([0.02, 0.2, 1.0])[:, None, None, None]
  y = x + noise * rng.normal(size=x.shape)
  return x, y.clip(-1, 1).astype(np.float32)


def test_as_scikit_image():
  metrics = pytest.importorskip('skimage.metrics')
  x, y = pairs()

  def unit(image):
    return (image.astype(np.float64) + 1) / 2

  psnr = [
    metrics.peak_signal_noise_ratio(unit(a), unit(b), data_range=1)
    for a, b in zip(x, y)
  ]
  ssim = [
    metrics.structural_similarity(
      unit(a),
      unit(b),
      data_range=1,
      channel_axis=-1,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
    )
    for a, b in zip(x, y)
  ]
  np.testing.assert_allclose(reconstruction.psnr(x, y), psnr, rtol=1e-5)
  np.testing.assert_allclose(reconstruction.ssim(x, y), ssim, atol=1e-5)


def test_alike():
  x, _ = pairs()
  np.testing.assert_allclose(reconstruction.ssim(x, x), 1.0, atol=1e-6)
  assert np.isinf(reconstruction.psnr(x, x)).all()


def test_known_values():
  """An error of 1/10 of the range is 20 dB."""
  x = np.zeros((1, 16, 16, 3), np.float32)
  np.testing.assert_allclose(reconstruction.psnr(x, x + 0.2), 20.0, rtol=1e-5)


def test_too_small_for_the_window():
  x = np.zeros((1, 16, 10, 3), np.float32)
  with pytest.raises(ValueError, match='16 x 10 px; SSIM needs at least 11 px'):
    reconstruction.ssim(x, x)


def test_comparison():
  x, y = pairs()
  cells = reconstruction.comparison(x, y)
  assert len(cells) == 9 and all(c.shape == (40, 24, 3) for c in cells)
  assert np.array_equal(cells[3], x[1]) and np.array_equal(cells[4], y[1])
  np.testing.assert_allclose(cells[2].min(), -1, atol=0.01)
