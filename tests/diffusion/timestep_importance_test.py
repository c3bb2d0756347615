"""Timesteps drawn by their measured loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import losses, timestep_importance, timestep_sampling
from tests.diffusion import losses_test

COUNT = 40  # timesteps, two for each part
SETTINGS = losses.LossSettings(
  timesteps=timestep_sampling.TimestepSampling((100, 140), 'importance')
)


def history_of(mean, examples=100.0):
  mean = np.broadcast_to(np.float32(mean), 20)
  return jnp.stack([mean, np.full(20, examples, np.float32)])


def test_probabilities(close):
  """Equation 18, but for the share that stays uniform."""
  squares = np.arange(1, 21) ** 2.0
  found = timestep_importance.probabilities(history_of(squares), COUNT)
  roots = np.repeat(np.arange(1, 21), 2)
  close(found, 0.999 * roots / roots.sum() + 0.001 / 40, 1e-6)
  # Uniform while a part has few examples, or nothing is known.
  for history in (
    history_of(squares).at[1, 7].set(9),
    timestep_importance.empty(COUNT),
    history_of(0.0),
  ):
    found = timestep_importance.probabilities(history, COUNT)
    close(found, np.full(40, 1 / 40), 1e-6)


def test_parts():
  assert timestep_importance.parts_of(7) == 7
  parts = timestep_importance.part_of_timesteps(1000)
  assert np.bincount(parts).tolist() == [50] * 20


def test_the_history_is_a_running_mean(close):
  """Exactly the mean at first, then one over so many of the latest."""
  rng = np.random.default_rng(0)
  history = timestep_importance.empty(COUNT)
  measure = jax.jit(timestep_importance.measure, static_argnums=2)
  observe = jax.jit(timestep_importance.observe)
  seen = [[] for _ in range(20)]
  for _ in range(4):
    measured = []
    for _ in range(2):  # micro-batches
      values, index = rng.normal(size=8), rng.integers(0, 36, 8)
      measured.append(measure(jnp.float32(values), index, COUNT))
      for value, i in zip(values, index):
        seen[i // 2].append(value**2)
    measured.append(jnp.full((2, 20), jnp.nan))  # left out
    history = observe(history, measured)
  close(history[0], [np.mean(s) if s else 0 for s in seen], 1e-5)
  assert history[1].tolist() == [len(s) for s in seen]
  # A mean of 2 over a full window, and 50 examples of 4.
  full = history_of(2.0, 500.0)
  new = jnp.stack([jnp.full(20, 200.0), jnp.full(20, 50.0)])
  found = observe(full, [new])
  close(found[0], np.full(20, 2 + 50 / 500 * 2), 1e-6)
  assert (found[1] == 500).all()


@pytest.fixture(scope='module')
def run():
  """(history, rows) -> (loss, measured, timesteps) of a net with an error."""

  def loss_of(history, rows):
    seen = []

    def net(x, timestep):
      seen.append(timestep)
      # The error is 1 at early and 3 at late timesteps.
      size = jnp.where(timestep < 120, 1.0, 3.0)[:, None, None, None]
      return jnp.broadcast_to(size, x.shape)

    loss, metrics = losses.diffusion_loss(
      net,
      jnp.zeros((rows, 1, 1, 1)),
      losses_test.KEY,
      losses_test.X0,
      SETTINGS,
      history=history,
    )
    return loss, metrics['measured'], seen.pop()

  return jax.jit(loss_of, static_argnums=1)


def test_the_loss_stays_that_of_uniform_timesteps(run):
  """Late ones come more often, and count less in return."""
  history = history_of(np.repeat([1.0, 81.0], 10))
  uniform, _, plain = run(timestep_importance.empty(COUNT), 4000)
  loss, measured, timesteps = run(history, 4000)
  late = float((timesteps >= 120).mean())
  assert late == pytest.approx(0.9, abs=0.02)
  assert float((plain >= 120).mean()) == pytest.approx(0.5, abs=0.03)
  # (1 + 9) / 2, in both cases.
  assert float(uniform) == pytest.approx(5, abs=0.3)
  assert float(loss) == pytest.approx(5, abs=0.3)
  # The history is of the loss itself.
  squares, examples = measured
  assert examples.sum() == 4000
  np.testing.assert_allclose(squares[:10] / examples[:10], 1, rtol=1e-5)
  np.testing.assert_allclose(squares[10:] / examples[10:], 81, rtol=1e-5)


def test_an_example_depends_on_its_row_and_the_history(run):
  history = history_of(np.repeat([1.0, 81.0], 10))
  _, _, many = run(history, 4000)
  _, _, few = run(history, 3)
  assert (many[:3] == few).all()
