"""The optax chain: EMA, weight decay, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.ema import transform
from sdxl_jax.training import optimizer, rate_schedules


def test_ema_is_the_recurrence():
  chain = optax.chain(optax.sgd(0.1), transform.ema(0.9))
  params = {'kernel': jnp.arange(3.0)}
  state = chain.init(params)
  expected = np.arange(3.0)
  for n in range(1, 40):
    grads = {'kernel': jnp.full(3, float(n))}
    updates, state = chain.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    d = min(0.9, (1 + n) / (10 + n))
    expected = d * expected + (1 - d) * np.asarray(params['kernel'])
    averaged = transform.ema_params(state)['kernel']
    np.testing.assert_allclose(averaged, expected, rtol=1e-5)


def test_no_ema_in_the_chain():
  state = optax.sgd(0.1).init({'kernel': jnp.zeros(2)})
  with pytest.raises(ValueError, match='keeps no EMA'):
    transform.ema_params(state)


def test_only_kernels_decay():
  leaf = jnp.ones((2, 2))
  params = {'a': {'kernel': leaf, 'bias': leaf}, 'norm': {'scale': leaf}}
  decays = optimizer.make_decay_mask(params)
  assert decays == {
    'a': {'kernel': True, 'bias': False},
    'norm': {'scale': False},
  }


def test_gradients_are_clipped_together():
  settings = optimizer.Settings(clip_norm=1.0)
  chain = optimizer.make('adamw', lambda _: 1.0, settings)
  params = {'kernel': jnp.zeros(2)}
  grads = {'kernel': jnp.array([300.0, 400.0])}
  _, state = chain.update(grads, chain.init(params), params)
  adam = next(
    s
    for s in jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    if isinstance(s, optax.ScaleByAdamState)
  )
  np.testing.assert_allclose(adam.mu['kernel'], [0.06, 0.08], rtol=1e-5)


def adam_step(gradient, params=None, **settings):
  """The parameters after one step of AdamW at learning rate 1e-3."""
  schedule = rate_schedules.make(1e-3, 0, 100)
  chain = optimizer.make('adamw', schedule, optimizer.Settings(**settings))
  params = {'kernel': jnp.ones(2)} if params is None else params
  updates, state = chain.update(
    {'kernel': gradient}, chain.init(params), params
  )
  return optax.apply_updates(params, updates)['kernel'], state


def test_the_first_step_without_warmup():
  """It has the full learning rate."""
  after, _ = adam_step(jnp.array([3.0, -4.0]), weight_decay=0.0)
  np.testing.assert_allclose(after, [1 - 1e-3, 1 + 1e-3], rtol=1e-6)


def test_no_clipping():
  """A clip_norm of 0 leaves gradients as they are, as infinity does."""
  gradient = jnp.array([300.0, 400.0])
  after, state = adam_step(gradient, clip_norm=0.0)
  expected, unlimited = adam_step(gradient, clip_norm=float('inf'))
  np.testing.assert_array_equal(after, expected)
  assert np.all(after < 1)
  mu = optax.tree.get(state, 'mu')
  np.testing.assert_allclose(mu['kernel'], [30.0, 40.0], rtol=1e-5)
  # A checkpoint fits whatever the clip_norm.
  structure = jax.tree.structure(state)
  assert structure == jax.tree.structure(unlimited)
  assert structure == jax.tree.structure(adam_step(gradient, clip_norm=1.0)[1])


def test_no_weight_decay():
  after, _ = adam_step(jnp.zeros(2), weight_decay=0.0)
  np.testing.assert_array_equal(after, [1.0, 1.0])


@pytest.mark.parametrize('field', ['b1', 'b2'])
def test_no_moments(field):
  """A decay of 0 takes the moment from the last gradient alone."""
  after, _ = adam_step(
    jnp.array([3.0, -4.0]), **{field: 0.0, 'weight_decay': 0.0}
  )
  np.testing.assert_allclose(after, [1 - 1e-3, 1 + 1e-3], rtol=1e-6)


def test_no_ema():
  """A decay of 0 keeps the last parameters in place of an average."""
  chain = optax.chain(optax.sgd(0.1), transform.ema(0.0))
  params = {'kernel': jnp.arange(3.0)}
  state = chain.init(params)
  for n in range(3):
    updates, state = chain.update({'kernel': jnp.full(3, n)}, state, params)
    params = optax.apply_updates(params, updates)
    average = transform.ema_params(state)['kernel']
    np.testing.assert_allclose(average, params['kernel'], rtol=1e-6)
