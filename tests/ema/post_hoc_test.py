"""An EMA put together afterwards is the one that was not tracked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.ema import post_hoc, transform

WIDTHS = (0.05, 0.10)  # those that the paper stores
STEPS, EVERY = 2048, 64


def test_widths():
  """The paper's examples: gamma 6.94 for 10 %, 16.97 for 5 %."""
  assert post_hoc.gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
  assert post_hoc.gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
  assert post_hoc.gamma_of(post_hoc.WIDEST) == pytest.approx(0, abs=1e-6)
  for width in (0, -1, 0.3):
    with pytest.raises(ValueError, match=f'sigma_rel is {width}'):
      post_hoc.gamma_of(width)


@pytest.mark.parametrize('a', [(500.0, 6.94), (900.0, 16.97)])
@pytest.mark.parametrize('b', [(900.0, 6.94), (300.0, 1.5)])
def test_inner_product(a, b):
  tau = np.linspace(0, 1000, 2_000_001)

  def weigh(t, g):
    return np.where(tau <= t, (g + 1) * tau**g / t ** (g + 1), 0)

  numeric = np.trapezoid(weigh(*a) * weigh(*b), tau)
  assert post_hoc.inner(*a, *b) == pytest.approx(numeric, rel=1e-4)


def walk(widths, steps=STEPS):
  """{width: parameters [steps, n]} of averages tracked over a random walk."""
  chain = optax.chain(optax.sgd(1.0), transform.power_ema(*widths))
  params = {'kernel': jnp.zeros(64)}

  def step(carry, key):
    params, state = carry
    noise = {'kernel': jax.random.normal(key, (64,))}
    updates, state = chain.update(noise, state, params)
    params = optax.apply_updates(params, updates)
    means = [transform.ema_params(state, i) for i in range(len(widths))]
    return (params, state), (params['kernel'], [m['kernel'] for m in means])

  keys = jax.random.split(jax.random.key(0), steps)
  _, (raw, means) = jax.lax.scan(step, (params, chain.init(params)), keys)
  return np.asarray(raw, np.float64), dict(zip(widths, map(np.asarray, means)))


def test_the_recurrence():
  """Step by step; the first step is the parameters themselves."""
  raw, means = walk(WIDTHS, 300)
  for width, tracked in means.items():
    gamma, expected = post_hoc.gamma_of(width), 0.0
    for n, p in enumerate(raw, 1):
      d = (1 - 1 / n) ** (gamma + 1)
      expected = d * expected + (1 - d) * p
      np.testing.assert_allclose(tracked[n - 1], expected, atol=1e-4)
    np.testing.assert_allclose(tracked[0], raw[0], rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_rebuilt_is_tracked(dtype):
  """To 1 % of the parameters' spread, at any width from 3 to 25 %."""
  wished = (0.03, 0.04, 0.07, 0.15, 0.20, 0.25)
  raw, means = walk(WIDTHS + wished)
  snapshots = [(s, w) for s in range(EVERY, STEPS + 1, EVERY) for w in WIDTHS]

  def read(s, w):
    return {'kernel': jnp.array(means[w][s - 1], dtype)}

  for width in wished:
    for step in (STEPS, STEPS - 5 * EVERY):
      there = [s for s in snapshots if s[0] <= step]
      rebuilt = post_hoc.rebuild(there, read, step, width)['kernel']
      assert rebuilt.dtype == jnp.float32
      error = np.linalg.norm(rebuilt - means[width][step - 1])
      assert error < 0.01 * np.linalg.norm(means[width][step - 1]), width
      nearest = min(
        np.linalg.norm(means[w][step - 1] - means[width][step - 1])
        for w in WIDTHS
      )
      assert error < 0.2 * nearest, width


def test_what_never_changes_stays():
  few = [(step, width) for step in (4, 8, 12) for width in WIDTHS]
  for width in (0.03, 0.1, 0.25):
    weights, _ = post_hoc.solve(few, 12, width)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
  weights, error = post_hoc.solve(few, 12, 0.1)  # which is one of them
  np.testing.assert_allclose(weights, [0, 0, 0, 0, 0, 1], atol=1e-6)
  assert error < 1e-6


def test_what_cannot_be_rebuilt():
  with pytest.raises(ValueError, match='no snapshots'):
    post_hoc.solve([], 10, 0.1)
  with pytest.raises(ValueError, match='of step 20, which is after 10'):
    post_hoc.solve([(20, 0.1)], 10, 0.1)


def test_solve_tells_how_near_it_comes():
  few = [(STEPS, w) for w in WIDTHS]
  many = [(s, w) for s in range(EVERY, STEPS + 1, EVERY) for w in WIDTHS]

  def error(snapshots):
    return post_hoc.solve(snapshots, STEPS, 0.2)[1]

  assert error(many) < 0.01 < 0.1 < error(few)
