"""Vectors of words keep their norms; all else is updated as it was."""

import jax
import numpy as np
import optax

from sdxl_jax.training import vector_norms


def test_norms_are_kept():
  rng = np.random.default_rng(0)
  words = {'text_encoder': {'main': {'vectors': rng.normal(size=(3, 8))}}}
  params = {'words': words, 'unet': {'kernel': rng.normal(size=(2, 8))}}
  params = jax.tree.map(np.float32, params)
  optimizer = optax.chain(optax.sgd(0.5), vector_norms.keep_norms())
  state, moved = optimizer.init(params), params
  for seed in range(5):
    rng = np.random.default_rng(seed)
    gradients = jax.tree.map(
      lambda x, rng=rng: np.float32(rng.normal(size=x.shape)), params
    )
    before = moved
    updates, state = optimizer.update(gradients, state, moved)
    moved = optax.apply_updates(moved, updates)
    expected = before['unet']['kernel'] - 0.5 * gradients['unet']['kernel']
    np.testing.assert_allclose(moved['unet']['kernel'], expected, rtol=1e-6)
    # The direction is that of plain descent.
    (old,) = jax.tree.leaves(before['words'])
    (gradient,) = jax.tree.leaves(gradients['words'])
    (new,) = jax.tree.leaves(moved['words'])
    plain = old - 0.5 * gradient
    scale = np.linalg.norm(old, axis=1) / np.linalg.norm(plain, axis=1)
    np.testing.assert_allclose(new, plain * scale[:, None], rtol=1e-5)
  (first,) = jax.tree.leaves(params['words'])
  norms = [np.linalg.norm(x, axis=1) for x in (first, new)]
  np.testing.assert_allclose(*norms, rtol=1e-5)


def test_a_vector_of_zeros_may_move():
  params = {'words': {'vectors': np.zeros((1, 4), np.float32)}}
  optimizer = vector_norms.keep_norms()
  gradients = jax.tree.map(np.ones_like, params)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  assert np.isfinite(updates['words']['vectors']).all()
