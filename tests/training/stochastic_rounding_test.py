"""State in bfloat16, rounded at random."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.ema import transform
from sdxl_jax.training import (
  eight_bit,
  optimizer,
  schedule_free,
  stochastic_rounding,
)


def rounded(x, count=1):
  """Rounds copies of an array, with other random bits for each."""
  seeds = jax.random.bits(jax.random.key(0), (count,), jnp.uint32)
  function = jax.vmap(stochastic_rounding.round_stochastically, (0, None))
  return np.float64(jax.jit(function)(seeds, jnp.float32(x)))


@pytest.mark.parametrize('x', [1.003, -0.7512, 3.2e-5, 6.1e37])
def test_the_two_nearest_with_the_right_mean(x):
  samples = rounded(x, 40_000)
  step = 2.0 ** (np.floor(np.log2(abs(x))) - 7)
  low = np.floor(x / step) * step
  assert set(samples) == {low, low + step}
  # Four standard errors of a coin.
  assert abs(samples.mean() - np.float32(x)) < 4 * 0.5 * step / 200


def test_numbers_that_stay():
  x = [0.0, -0.0, 1.5, -(2.0**-126), np.inf, -np.inf, np.nan]
  largest = float(jnp.finfo(jnp.float32).max)
  out = rounded([*x, largest, -largest], 100)
  np.testing.assert_array_equal(out[:, :7], [np.float32(x)] * 100)
  # bfloat16 ends a little below float32: the nearest there is infinity.
  assert set(np.abs(out[:, 7:]).ravel()) <= {
    np.inf,
    float(jnp.finfo(jnp.bfloat16).max),
  }


def test_random_bits_carry_into_no_other_kind_of_number():
  """What is near the largest stays finite, and all kinds of NaN stay NaN."""
  largest = float(jnp.finfo(jnp.bfloat16).max)
  assert set(rounded([largest * (1 + 2**-11)], 100).ravel()) == {largest}
  nan = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32)
  assert np.isnan(rounded(nan.view(np.float32), 100)).all()


def run(dtype, steps, moments='float32', start=1.0):
  """Averages and moments of a parameter that moves by 1e-5 a step."""
  settings = optimizer.Settings(weight_decay=0.0, moments_dtype=moments)
  chain = optax.chain(
    optimizer.make('adamw', lambda _: 1e-5, settings),
    stochastic_rounding.stored_as(transform.ema(0.999), dtype),
  )
  params = {'kernel': jnp.full(5000, start)}
  gradients = {'kernel': jnp.linspace(-1, 1, 5000) / 5000}

  def step(carry, _):
    params, state = carry
    updates, state = chain.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None

  (params, state), _ = jax.jit(
    lambda carry: jax.lax.scan(step, carry, None, steps)
  )((params, chain.init(params)))
  return params['kernel'], state


def test_an_average_moves_that_rounding_to_the_nearest_would_hold():
  _, expected = run('float32', 2000)
  _, state = run('bfloat16', 2000)
  exact = transform.ema_params(expected)['kernel']
  ours = transform.ema_params(state)['kernel']
  assert ours.dtype == jnp.bfloat16
  # No step is a hundredth of bfloat16's, and all together are two of them.
  assert 2 * 2**-7 < abs(float(exact[0]) - 1) < 2000 * 2**-7 / 100
  error = np.float64(ours) - np.float64(exact)
  assert np.abs(error).max() < 4 * 2**-7
  for side in error[:2500], error[2500:]:
    assert abs(side.mean()) < 2e-4


def test_moments_give_the_same_updates():
  # From 0, where float32 does not round each step of 1e-5 the same way.
  expected, _ = run('float32', 500, start=0.0)
  params, state = run('float32', 500, 'bfloat16', start=0.0)
  assert {x.dtype for x in jax.tree.leaves(state[0])} == {
    jnp.dtype('bfloat16'),
    jnp.dtype('int32'),
  }
  # Each by at most 4 %, and together by nothing: rounding has no bias.
  ratio = np.float64(params) / np.float64(expected)
  assert np.abs(ratio - 1).max() < 0.04 and abs(ratio.mean() - 1) < 1e-3


def test_the_tree_does_not_depend_on_the_type():
  states = [run(dtype, 1, dtype)[1] for dtype in stochastic_rounding.DTYPES]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_a_first_average_is_the_nearest():
  params = {'kernel': jax.random.normal(jax.random.key(0), (100,))}
  init = stochastic_rounding.stored_as(transform.ema(0.99), 'bfloat16').init
  average = transform.ema_params(init(params))['kernel']
  nearest = params['kernel'].astype(jnp.bfloat16)
  np.testing.assert_array_equal(np.float32(average), np.float32(nearest))


@pytest.mark.parametrize(
  'make',
  [
    lambda adamw: stochastic_rounding.stored_as(adamw, 'bfloat16'),
    lambda adamw: schedule_free.with_average(adamw, 0.9, 'bfloat16'),
    eight_bit.stored_in_8_bits,
  ],
)
def test_no_random_bits_in_a_first_state(make):
  """Those of constant keys would be computed while the program compiles."""
  transformation = make(optax.adamw(1e-3))
  params = {'kernel': jnp.ones((128, 128))}
  init = jax.make_jaxpr(transformation.init)(params)
  assert 'random_bits' not in str(init)
  update = jax.make_jaxpr(transformation.update)(
    params, transformation.init(params), params
  )
  assert 'random_bits' in str(update)


def test_random_bits():
  """Uniform, and independent of neighbours, other seeds and the sharding."""
  seeds = jnp.array([1, 2, 2**31], jnp.uint32)
  draw = jax.vmap(
    lambda seed: stochastic_rounding.random_bits(seed, (64, 1024))
  )
  bits = np.float64(draw(seeds)) / 2**16
  counts = [np.histogram(x, 16, (0, 1))[0] for x in bits]
  # Five standard deviations of a count of 65,536 / 16.
  assert np.abs(np.array(counts) - 4096).max() < 5 * 62
  x = bits - 0.5
  for a, b in (
    (x[:, :, 1:], x[:, :, :-1]),
    (x[:, 1:], x[:, :-1]),
    (x[1:], x[:-1]),
  ):
    assert abs((a * b).mean()) * 12 < 5 / np.sqrt(a.size)
