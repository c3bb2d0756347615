"""The loss of validation: its timesteps, its noise, and what it compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import (
  losses,
  noise_schedule,
  timestep_sampling,
  training_noise,
  validation_loss,
)

HASHES = np.array([[1, 2], [3, 2**32 - 1], [1, 3]], np.uint32)
ALL = timestep_sampling.TimestepSampling()
REFINER = timestep_sampling.TimestepSampling(timestep_range=(0, 200))
X0 = jnp.float32(np.random.default_rng(0).normal(size=(3, 8, 8, 4)))
PLAIN = losses.LossSettings()


def measure(net, schedule, settings=PLAIN, at=(0, 500), **more):
  keys = validation_loss.row_keys(more.pop('hashes', HASHES))
  latents = more.pop('latents', X0)
  errors = validation_loss.squared_errors(
    net, latents, keys, list(at), schedule, settings, **more
  )
  return np.asarray(errors)


def zeros(x, timestep):
  del timestep
  return jnp.zeros_like(x)


def test_timesteps_are_those_of_mlperf():
  """k / 8 of all; SDXL's refiner has 200 of them."""
  assert validation_loss.timesteps(ALL, 1000, 8) == list(range(0, 1000, 125))
  assert validation_loss.timesteps(REFINER, 1000, 8) == list(range(0, 200, 25))
  assert validation_loss.timesteps(REFINER, 1000, 1) == [0]
  late = timestep_sampling.TimestepSampling(timestep_range=(100, 500))
  assert validation_loss.timesteps(late, 1000, 4) == [100, 200, 300, 400]
  uneven = validation_loss.timesteps(ALL, 1000, 3)
  assert uneven == [0, 333, 666]


@pytest.mark.parametrize('prediction', noise_schedule.PREDICTIONS)
def test_a_net_without_error(prediction):
  """Told the images, it computes what it has to predict from its input."""
  schedule = noise_schedule.Schedule(prediction=prediction)
  signals, noises = losses.rates(schedule)
  inputs = losses.net_timestep(schedule, jnp.arange(1000))

  def net(x, timestep):
    t = jnp.argmin(jnp.abs(inputs[:, None] - timestep), axis=0)
    signal, noise = (r[t, None, None, None] for r in (signals, noises))
    eps = (x - signal * X0) / noise
    return losses.target_of(prediction, X0, eps, signal, noise)

  errors = measure(net, schedule, at=(125, 875))
  assert errors.shape == (2, 3)
  assert (errors < 1e-6).all()
  others = measure(zeros, schedule, at=(125, 875))
  assert (others > 0.5).all()


@pytest.mark.parametrize('prediction', ['eps', 'v', 'flow'])
def test_it_is_the_metric_mse_of_training(prediction):
  """With the noise, and the mask, as training has it, but no weight."""
  schedule = noise_schedule.Schedule(prediction=prediction)
  settings = losses.LossSettings(
    timesteps=timestep_sampling.TimestepSampling(timestep_range=(0, 1)),
    noise=training_noise.Noise(
      offset_noise=0.3, multires_noise_iterations=2, ip_noise_gamma=0.1
    ),
  )
  mask = np.random.default_rng(1).uniform(size=(3, 8, 8)).astype(np.float32)

  def net(x, timestep):
    return 0.5 * x + timestep[:, None, None, None] / 1000

  found = measure(net, schedule, settings, at=(0, 3), mask=mask)
  keys = validation_loss.row_keys(HASHES)
  for i in range(3):  # training numbers its rows from 0
    row = slice(i, i + 1)
    _, metrics = losses.diffusion_loss(
      net, X0[row], keys[i], schedule, settings, mask[row]
    )
    np.testing.assert_allclose(found[0, i], metrics['mse'], rtol=1e-5)


def test_noise_depends_on_the_record_alone():
  schedule = noise_schedule.Schedule()
  one = measure(zeros, schedule)
  assert len(np.unique(one)) == one.size  # of each record and timestep its own
  order = [2, 0]
  other = measure(
    zeros, schedule, hashes=HASHES[order], latents=X0[np.array(order)]
  )
  np.testing.assert_array_equal(other, one[:, order])
  more = measure(zeros, schedule, at=(0, 250, 500, 750))
  np.testing.assert_array_equal(more[::2], one)


def test_posterior_noise_depends_on_the_record_alone():
  keys = validation_loss.row_keys(HASHES)
  noise = validation_loss.posterior_noise(keys, (8, 8, 4))
  assert noise.shape == (3, 8, 8, 4)
  again = validation_loss.posterior_noise(keys[1:2], (8, 8, 4))
  np.testing.assert_array_equal(again[0], noise[1])
  # Not the noise that is added at a timestep.
  eps = jax.random.normal(jax.random.fold_in(keys[0], 0), (8, 8, 4))
  assert abs(np.corrcoef(np.ravel(eps), np.ravel(noise[0]))[0, 1]) < 0.2
