"""The optax chain: EMA, weight decay, warm-up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.ema import transform
from sdxl_jax.training import optimizer


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
  decays = optimizer.decays(params)
  assert decays == {
    'a': {'kernel': True, 'bias': False},
    'norm': {'scale': False},
  }


def test_gradients_are_clipped_together():
  chain = optimizer.make_adamw(lambda _: 1.0, clip_norm=1.0)
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


def test_learning_rate():
  constant = optimizer.learning_rate_schedule(1e-3, 10)
  assert [float(constant(s)) for s in (0, 5, 10, 999)] == pytest.approx(
    [0, 5e-4, 1e-3, 1e-3]
  )
  cosine = optimizer.learning_rate_schedule(1e-3, 10, 110)
  assert [float(cosine(s)) for s in (10, 60, 110)] == pytest.approx(
    [1e-3, 5e-4, 0], abs=1e-9
  )
