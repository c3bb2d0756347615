"""Distributions of timesteps: their tables, and what is drawn by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sdxl_jax.diffusion import losses, noise_schedule, timestep_sampling
from tests.diffusion import losses_test

Sampling = timestep_sampling.TimestepSampling


@pytest.mark.parametrize(
  'sampling, mean, std',
  [
    (Sampling(None, 'logit_normal', -0.5, 0.7), -0.5, 0.7),
    (Sampling(None, 'sigmoid', sigmoid_scale=1.5), 0.0, 1.5),
  ],
)
def test_logit_normal(sampling, mean, std):
  """The share of timesteps that sigmoid(mean + std z) falls to, of normal z."""
  z = np.random.default_rng(0).normal(size=200_000)
  shares = 1 / (1 + np.exp(-(mean + std * z)))
  expected, _ = np.histogram(shares, 20, (0, 1))
  table = timestep_sampling.probabilities(sampling, 1000)
  assert table.sum() == pytest.approx(1)
  found = table.reshape(20, 50).sum(axis=1)
  np.testing.assert_allclose(found, expected / len(z), atol=4e-3)


def test_weights_are_of_equal_parts():
  sampling = Sampling(timestep_sampling='weights', timestep_weights=(1, 0, 3))
  table = timestep_sampling.probabilities(sampling, 9)
  np.testing.assert_allclose(table * 12, [1, 1, 1, 0, 0, 0, 3, 3, 3])
  # A part more or less where the range cannot be divided.
  table = timestep_sampling.probabilities(sampling, 4)
  np.testing.assert_allclose(table * 5, [1, 1, 0, 3])


@pytest.mark.parametrize(
  'strategy, expected',
  [('earlier', [2, 2, 1, 1, 1, 1, 1, 1]), ('later', [1] * 6 + [2, 2])],
)
def test_bias(strategy, expected):
  sampling = Sampling(
    timestep_bias_strategy=strategy, timestep_bias_multiplier=2.0
  )
  assert not sampling.is_uniform
  table = timestep_sampling.probabilities(sampling, 8)
  np.testing.assert_allclose(table * 10, expected)


def test_timesteps_are_drawn_by_the_table():
  table = np.array([0.1, 0.0, 0.25, 0.6, 0.05, 0.0])
  keys = jax.random.split(losses_test.KEY, 4000)
  drawn = jax.vmap(
    lambda key: timestep_sampling.sample(key, (200, 206), table)
  )(keys)
  counts = np.bincount(np.asarray(drawn) - 200, minlength=6)
  assert counts[[1, 5]].tolist() == [0, 0] and len(counts) == 6
  found = scipy.stats.chisquare(counts[[0, 2, 3, 4]], 4000 * table[table > 0])
  assert found.pvalue > 1e-3


def test_the_loss_draws_them():
  """By its settings, each row by itself, within the range."""
  settings = losses.LossSettings(
    timesteps=Sampling((100, 900), 'weights', timestep_weights=(0, 0, 0, 1))
  )

  def timesteps(rows):
    seen = []

    def run():
      losses.diffusion_loss(
        lambda x, timestep: (seen.append(timestep), x)[1],
        jnp.zeros((rows, 2, 2, 1)),
        losses_test.KEY,
        noise_schedule.Schedule(),
        settings,
      )
      return seen.pop()

    return np.asarray(jax.jit(run)())

  drawn = timesteps(200)
  assert drawn.min() >= 700 and drawn.max() < 900 and len(set(drawn)) > 50
  assert (timesteps(3) == drawn[:3]).all()


def test_unknown_choices():
  with pytest.raises(ValueError, match="timestep_sampling is 'mode'; choose"):
    Sampling(timestep_sampling='mode')
  with pytest.raises(ValueError, match="bias_strategy is 'range'; choose one"):
    Sampling(timestep_bias_strategy='range')
