"""Compares the gradients that are written out with those that JAX derives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import written_gradients


def derived_layer_norm(x, scale, bias):
  """Flax's, whose gradient JAX derives."""
  norm = nn.LayerNorm(epsilon=1e-5, dtype=x.dtype, use_fast_variance=False)
  return norm.apply({'params': {'scale': scale, 'bias': bias}}, x)


def derived_geglu(x):
  """By the formula, whose gradient JAX derives."""
  value, gate = jnp.split(x, 2, axis=-1)
  return value * jax.nn.gelu(gate, approximate=False)


def draw(*shapes, mean=0.0):
  """Returns float32 arrays of N(mean, 1)."""
  rng = np.random.default_rng(0)
  return [rng.normal(mean, 1, shape).astype(np.float32) for shape in shapes]


def gradients(function, weights, *inputs):
  """Returns (value, gradients) of a weighted sum of the results."""

  def loss(*inputs):
    return jnp.sum(weights * function(*inputs).astype(jnp.float32))

  return jax.jit(jax.value_and_grad(loss, range(len(inputs))))(*inputs)


CASES = {
  'layer_norm': (
    written_gradients.layer_norm,
    derived_layer_norm,
    [(2, 5, 24), (24,), (24,)],
    (2, 5, 24),
  ),
  'geglu': (written_gradients.geglu, derived_geglu, [(3, 7, 32)], (3, 7, 16)),
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize(
  'dtype, limit', [('float32', 2e-6), ('bfloat16', 0.02)]
)
def test_gradients_are_those_that_jax_derives(close, name, dtype, limit):
  ours, theirs, shapes, result = CASES[name]
  (weights, *inputs) = draw(result, *shapes, mean=0.5)
  if name == 'layer_norm':
    ours = functools.partial(with_options, ours, dtype)
  # Parameters stay float32, as in training.
  inputs[0] = jnp.asarray(inputs[0], dtype)
  value, grads = gradients(ours, weights, *inputs)
  inputs[0] = inputs[0].astype(jnp.float32)
  expected, references = gradients(theirs, weights, *inputs)
  np.testing.assert_allclose(
    value, expected, rtol=1e-5 if limit < 1e-3 else 0.05
  )
  assert grads[0].dtype == dtype
  for grad, reference in zip(grads, references, strict=True):
    close(np.float32(grad), reference, limit, name)


def with_options(layer_norm, dtype, x, scale, bias):
  """Calls layer_norm as the nets do."""
  return layer_norm(x, scale, bias, 1e-5, dtype)


def test_layer_norm_is_that_of_flax_to_the_bit():
  x, scale, bias = draw((4, 9, 40), (40,), (40,), mean=3.0)
  ours = jax.jit(written_gradients.layer_norm, static_argnums=(3, 4))
  expected = jax.jit(derived_layer_norm)(x, scale, bias)
  np.testing.assert_array_equal(ours(x, scale, bias, 1e-5, 'float32'), expected)


def test_large_means_do_not_cancel_in_the_gradient(close):
  """E[x^2] - E[x]^2 would have no digit left."""
  (weights, x), ones = draw((8, 64), (8, 64)), np.ones(64, np.float32)

  def norm(x):
    return written_gradients.layer_norm(x, ones, 0 * ones, 1e-5, 'float32')

  _, (grad,) = gradients(norm, weights, x + 3000)
  _, (expected,) = gradients(norm, weights, x)
  close(grad, expected, 2e-3, 'gradient')


def test_statistics_of_bfloat16_are_float32():
  """With a mean far from 0, in which bfloat16 has no digits left."""
  (x,) = draw((4, 64), mean=100.0)
  x = jnp.asarray(x, jnp.bfloat16)
  ones, zeros = jnp.ones(64), jnp.zeros(64)
  found = written_gradients.layer_norm(x, ones, zeros, 1e-5, 'float32')
  wide = np.asarray(x, np.float64)
  centered = wide - wide.mean(-1, keepdims=True)
  expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(found, expected, atol=1e-4)
