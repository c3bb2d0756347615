"""Kinds of losses against sd-scripts' formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import loss_kinds, losses, noise_schedule
from tests.diffusion import losses_test

EPS = noise_schedule.Schedule()
TIMESTEPS = np.array([0, 1, 20, 500, 998, 999])
ALPHAS = noise_schedule.alphas_cumprod(EPS)[TIMESTEPS]
SIGMAS = ((1 - ALPHAS) / ALPHAS) ** 0.5
CONSTANTS = {
  'snr': (1 - 0.2) / (1 + SIGMAS) ** 2 + 0.2,  # not scaled
  'exponential': np.exp(np.log(0.2) / 1000 * TIMESTEPS) * 3.0,
  'constant': np.full(6, 0.2 * 3.0),
}


@pytest.mark.parametrize('schedule', loss_kinds.HUBER_SCHEDULES)
def test_constant_over_timesteps(schedule, close):
  distance = loss_kinds.Distance('huber', schedule, 0.2, huber_scale=3.0)
  sigmas = jnp.float32(SIGMAS)
  c = loss_kinds.huber_constant(distance, TIMESTEPS, sigmas, 1000)
  close(c, CONSTANTS[schedule], 1e-5)
  without_signal = loss_kinds.huber_constant(
    distance, np.array([999]), jnp.array([jnp.inf]), 1000
  )
  assert np.isfinite(without_signal).all()


ERRORS = jax.jit(losses.errors, static_argnums=(1, 4))


def by_formula(loss_type, d, c):
  return {
    'l2': d**2,
    'l1': np.abs(d),
    'huber': 2 * c * (np.sqrt(d**2 + c**2) - c),
    'smooth_l1': 2 * (np.sqrt(d**2 + c**2) - c),
  }[loss_type]


@pytest.mark.parametrize('loss_type', loss_kinds.LOSS_TYPES)
@pytest.mark.parametrize('schedule', loss_kinds.HUBER_SCHEDULES)
def test_loss_of_a_batch(loss_type, schedule, close):
  """The mean over all, each example with the c of its timestep."""
  rng = np.random.default_rng(0)
  difference = rng.normal(size=(6, 3, 4, 2)) * 0.5
  distance = loss_kinds.Distance(loss_type, schedule, 0.2, huber_scale=3.0)
  error, mse = ERRORS(
    jnp.float32(difference),
    distance,
    jnp.asarray(TIMESTEPS),
    jnp.float32(SIGMAS)[:, None, None, None],
    EPS,
    None,
  )
  c = CONSTANTS[schedule][:, None, None, None]
  expected = by_formula(loss_type, difference, c)
  close(error, expected.mean(axis=(1, 2, 3)), 1e-5)
  close(mse, (difference**2).mean(axis=(1, 2, 3)), 1e-5)


def test_a_mask_multiplies_the_loss(close):
  rng = np.random.default_rng(1)
  difference = rng.normal(size=(2, 3, 4, 2))
  mask = rng.uniform(size=(2, 3, 4))
  error, mse = losses.errors(
    jnp.float32(difference),
    loss_kinds.Distance('l1'),
    jnp.array([0, 1]),
    jnp.ones((2, 1, 1, 1)),
    EPS,
    jnp.float32(mask),
  )
  # The mean is over all positions, not those of the mask.
  expected = np.abs(difference) * mask[..., None]
  close(error, expected.mean(axis=(1, 2, 3)), 1e-5)
  close(mse, (difference**2 * mask[..., None]).mean(axis=(1, 2, 3)), 1e-5)


def test_the_loss_has_the_kind():
  """From its settings to the mean over the batch, at a timestep of its own."""
  latents = jnp.zeros((4, 8, 8, 2))

  def value(**distance):
    settings = losses.LossSettings(
      distance=loss_kinds.Distance(**distance),
      timesteps=losses_test.settings(timestep_range=(300, 301)).timesteps,
    )
    run = jax.jit(losses.diffusion_loss, static_argnums=(0, 3, 4))
    loss, _ = run(
      lambda x, timestep: 0 * x, latents, losses_test.KEY, EPS, settings
    )
    return float(loss)

  # The target is eps alone, since nothing is predicted.
  x, _ = losses_test.net_inputs(latents, timestep_range=(300, 301))
  signal, noise = (float(r[300]) for r in losses.rates(EPS))
  eps = np.float64(x) / noise
  c = (1 - 0.1) / (1 + noise / signal) ** 2 + 0.1
  expected = by_formula('huber', eps, c).mean()
  assert value(loss_type='huber') == pytest.approx(expected, 1e-5)
  assert value() == pytest.approx((eps**2).mean(), 1e-5)


def test_an_unknown_kind():
  with pytest.raises(ValueError, match="loss_type is 'l3'; choose one of"):
    loss_kinds.Distance('l3')
  with pytest.raises(ValueError, match="huber_schedule is 'log'; choose"):
    loss_kinds.Distance('huber', 'log')
