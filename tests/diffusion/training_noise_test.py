"""Tests noise added to white noise against sd-scripts' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import losses, training_noise
from tests.diffusion import losses_test

KEY = losses_test.KEY
Noise = training_noise.Noise


def test_adaptive_offset(close):
  x0 = np.random.default_rng(0).normal(size=(5, 6, 3))
  x0 += [2.0, -3.0, 0.1]
  mean = np.abs(x0.mean(axis=(0, 1)))
  for scale in 0.1, -0.02:
    noise = Noise(offset_noise=0.04, adaptive_noise_scale=scale)
    found = training_noise.offset_strength(noise, jnp.float32(x0))
    close(np.ravel(found), np.maximum(0.04 + scale * mean, 0), 1e-5)
  assert training_noise.offset_strength(Noise(0.04), jnp.float32(x0)) == 0.04


@pytest.mark.torch
@pytest.mark.parametrize('rows, columns', [(12, 16), (5, 7), (1, 3), (11, 1)])
def test_enlarging_is_that_of_torch(rows, columns, close):
  torch = pytest.importorskip('torch')
  image = np.random.default_rng(0).normal(size=(12, 16, 2)).astype(np.float32)
  found = training_noise.enlarge(jnp.asarray(image), rows, columns)
  small = torch.from_numpy(image[:rows, :columns].transpose(2, 0, 1)[None])
  expected = torch.nn.Upsample(size=(12, 16), mode='bilinear')(small)
  close(found, expected[0].numpy().transpose(1, 2, 0), 1e-5)


def enlarge_by_loops(image, h, w):
  """Bilinear, from pixel centres, without what is tested."""
  rows, columns, _ = image.shape
  result = np.zeros((h, w, image.shape[2]))
  for y in range(h):
    for x in range(w):
      a = max((y + 0.5) * rows / h - 0.5, 0)
      b = max((x + 0.5) * columns / w - 0.5, 0)
      i, j = int(a), int(b)
      below, right = min(i + 1, rows - 1), min(j + 1, columns - 1)
      top = (1 - b + j) * image[i, j] + (b - j) * image[i, right]
      bottom = (1 - b + j) * image[below, j] + (b - j) * image[below, right]
      result[y, x] = (1 - a + i) * top + (a - i) * bottom
  return result


def test_octaves(close):
  """Sd-scripts' loop over octaves of falling size, with the same draws."""
  noise = Noise(multires_noise_iterations=6, multires_noise_discount=0.7)
  eps = jax.random.normal(KEY, (12, 9, 2))
  found = jax.jit(lambda eps: training_noise.add_octaves(noise, KEY, eps))(eps)
  expected, octaves = np.float64(eps), 0
  for i in range(6):
    ratio_key, noise_key = jax.random.split(jax.random.fold_in(KEY, i))
    r = float(jax.random.uniform(ratio_key, minval=2.0, maxval=4.0))
    rows, columns = (max(1, int(n / r**i)) for n in (12, 9))
    octave = np.float64(jax.random.normal(noise_key, eps.shape))
    octave = octave[:rows, :columns]
    expected += enlarge_by_loops(octave, 12, 9) * 0.7**i
    octaves += 1
    if rows == 1 or columns == 1:
      break
  assert 2 < octaves < 6
  close(found, expected / expected.std(ddof=1), 1e-5)


def batch_noise(x0, noise):
  """Returns (timesteps, eps, eps of the input) of a batch."""

  def draw(key):
    return jax.random.randint(key, (), 0, 1000)

  def sample_row(row, x0):
    return losses.sample_noise(KEY, row, x0, draw, noise)

  return jax.jit(jax.vmap(sample_row))(jnp.arange(len(x0)), x0)


def test_each_option_has_its_own_draws():
  """An option changes what it is for and leaves the other draws."""
  x0 = jnp.ones((4, 8, 8, 2))
  t, eps, same = batch_noise(x0, Noise())
  assert (eps == same).all()
  t_2, eps_2, perturbed = batch_noise(x0, Noise(ip_noise_gamma=0.1))
  assert (t == t_2).all() and (eps == eps_2).all()
  xi = (np.asarray(perturbed - eps) / 0.1).ravel()
  assert abs(xi.std() - 1) < 0.15 and abs(xi.mean()) < 0.15
  assert abs(np.corrcoef(xi, np.ravel(eps))[0, 1]) < 0.2
  t_3, mixed, _ = batch_noise(
    x0, Noise(multires_noise_iterations=4, multires_noise_discount=0.9)
  )
  assert (t == t_3).all()
  assert np.allclose(mixed.std(axis=(1, 2, 3), ddof=1), 1, atol=1e-5)
  # It has large structures, which white noise has not.
  assert mixed.mean(axis=(1, 2)).std() > 2 * eps.mean(axis=(1, 2)).std()


@pytest.mark.parametrize(
  'noise',
  [
    Noise(0.1, adaptive_noise_scale=0.1),
    Noise(multires_noise_iterations=3, ip_noise_gamma=0.1),
  ],
)
def test_an_example_depends_on_its_row_alone(noise):
  x0 = jax.random.normal(KEY, (6, 8, 6, 2))
  for whole, fewer in zip(batch_noise(x0, noise), batch_noise(x0[:2], noise)):
    np.testing.assert_allclose(whole[:2], fewer, rtol=1e-6, atol=1e-6)


def test_the_target_has_the_unperturbed_noise():
  """The net gets x0 noised by eps + gamma xi, and is to predict eps."""
  x0 = jnp.zeros((2, 4, 4, 2))
  noise = Noise(ip_noise_gamma=0.5)
  settings = losses.LossSettings(noise=noise)
  _, eps, perturbed = batch_noise(x0, noise)
  signal_to_noise = losses.rates(losses_test.EPS)

  def net(x, timestep):
    sigma = signal_to_noise[1][timestep, None, None, None]
    # Infinite, and so no loss of 0, if the input is another.
    is_expected = jnp.abs(x - sigma * perturbed).max() < 1e-5
    return jnp.where(is_expected, eps, jnp.inf)

  run = jax.jit(losses.diffusion_loss, static_argnums=(0, 3, 4))
  loss, _ = run(net, x0, KEY, losses_test.EPS, settings)
  assert loss < 1e-10
