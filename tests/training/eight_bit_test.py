"""Moments in 8 bits: the shares, rounding, and updates beside AdamW's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.training import eight_bit, optimizer


@pytest.mark.parametrize('signed, count', [(True, 127), (False, 255)])
def test_shares_are_fourth_powers(signed, count):
  codes = np.arange(count + 1)
  shares = np.asarray(eight_bit.share_of(jnp.float32(codes), signed))
  np.testing.assert_allclose(shares, (codes / count) ** 4, rtol=1e-6)
  steps = np.diff(shares)
  assert steps.max() < (0.032 if signed else 0.016) and shares[1] < 4e-9


def quantized(x, signed, seed=0):
  """What an array becomes with blocks along the first axis, and its codes."""
  x = jnp.float32(x)
  scales = eight_bit.largest(x, 0)
  codes = jax.jit(eight_bit.quantize, static_argnums=3)(
    jnp.uint32(seed), x, scales, signed
  )
  return np.asarray(eight_bit.dequantize(codes, scales)), codes


@pytest.mark.parametrize('signed, count', [(True, 127), (False, 255)])
def test_each_number_becomes_one_of_its_neighbours(signed, count):
  """Without a bias, and the largest of a block exactly."""
  shares = (np.arange(count + 2) / count) ** 4
  rng = np.random.default_rng(0)
  x = 10 ** rng.uniform(-7, 0, (64, 256)).astype(np.float32)
  x[0] = 1.0
  sign = rng.choice([-1, 1], x.shape) if signed else 1
  found, codes = quantized(3 * sign * x, signed)
  assert codes.dtype == (jnp.int8 if signed else jnp.uint8)
  found = found * sign / 3
  place = np.searchsorted(shares, x * (1 + 1e-6), side='right') - 1
  below, above = shares[place], shares[place + 1]
  near = np.minimum(np.abs(found - below), np.abs(found - above))
  assert (near <= 2e-6 * above).all()
  np.testing.assert_allclose(found[0], 1.0, rtol=1e-6)
  # Five standard errors of a sum of coins.
  spread = np.sqrt(np.square(above - below).sum() / 4)
  assert abs((found - x).sum()) < 5 * spread


def test_squares_above_0_stay_above_0():
  """An update divides by their root: 0 would make it huge."""
  x = np.full((64, 16), 1e-14, np.float32)
  x[0], x[1] = 1.0, 0.0
  found, _ = quantized(x, signed=False)
  assert (found[2:] > 0).all() and (found[1] == 0).all()
  assert (quantized(np.zeros((64, 16)), False)[0] == 0).all()


def test_what_is_not_finite_is_not_hidden():
  for bad in np.nan, np.inf:
    x = np.ones((64, 16), np.float32)
    x[3, 7] = bad
    found, _ = quantized(x, signed=True)
    assert not np.isfinite(found[:, 7]).any()
    assert np.isfinite(np.delete(found, 7, 1)).all()


@pytest.mark.parametrize(
  'shape, axis, length',
  [
    ((1280, 1280), 0, 160),
    ((1280, 10240), 0, 160),
    ((10240, 1280), 0, 256),
    ((10, 1280, 1280), 1, 160),  # a stack of blocks
    ((3, 3, 640, 320), 2, 80),
    ((3, 3, 4, 320), 3, 160),  # the other axes are too short
    ((1280, 16), 0, 160),
    ((49408, 768), 1, 96),  # a table of tokens
    ((10240,), 0, 256),
  ],
)
def test_blocks_lie_within_an_axis(shape, axis, length):
  assert eight_bit.block_of(shape) == (axis, length)


@pytest.mark.parametrize('shape', [(), (1280,), (64, 63), (3, 3, 4, 4)])
def test_small_arrays_stay_in_float32(shape):
  assert math.prod(shape) < 4096 and eight_bit.block_of(shape) is None


def train(moments_dtype, steps, square=1.0):
  """A kernel after steps of AdamW on noisy gradients, and the state."""
  settings = optimizer.Settings(
    clip_norm=0.0, weight_decay=0.0, moments_dtype=moments_dtype
  )
  chain = optimizer.make('adamw', lambda _: 1e-3, settings)
  params = {'kernel': jnp.zeros((64, 64))}
  direction = jax.random.normal(jax.random.key(1), (64, 64))

  def step(carry, i):
    params, state = carry
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(2), i), (64, 1))
    gradients = {'kernel': square * (direction + 0.3 * noise)}
    updates, state = chain.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None

  (params, state), _ = jax.jit(
    lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))
  )((params, chain.init(params)))
  return np.asarray(params['kernel']), state


def test_updates_are_nearly_those_of_adamw():
  expected, whole = train('float32', 100)
  found, state = train('int8', 100)
  error = np.abs(found - expected) / np.abs(expected).mean()
  assert error.mean() < 0.04 and error.max() < 0.2

  # A quarter of the memory, and a factor for each 64 numbers.
  def size(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))

  assert size(state) < 0.29 * size(whole)
  assert {x.dtype.name for x in jax.tree.leaves(state)} == {
    'int8', 'uint8', 'float32', 'int32',
  }  # fmt: skip


def test_a_mean_follows_that_the_nearest_code_would_hold():
  """Each step changes a square by a thousandth, codes are 1 % apart or more."""
  chain = optimizer.make(
    'adamw', lambda _: 0.0, optimizer.Settings(clip_norm=0.0, b2=0.999,
                                               moments_dtype='int8')
  )  # fmt: skip
  params = {'kernel': jnp.zeros((64, 64))}
  # One number of each block stays; the others fall to a half of it.
  later = jnp.full((64, 64), 0.5).at[:, ::64].set(1.0).at[::16].set(1.0)

  def steps(state, gradient, count):
    def step(state, _):
      return chain.update({'kernel': gradient}, state, params)[1], None

    return jax.lax.scan(step, state, None, count)[0]

  state = chain.init(params)
  state = jax.jit(steps, static_argnums=2)(state, jnp.ones((64, 64)), 300)
  state = jax.jit(steps, static_argnums=2)(state, later, 300)
  nu = optax.tree.get(eight_bit.unpack(state), 'nu')['kernel']
  nu = np.asarray(nu).reshape(64, 64)
  first = 1 - 0.999**300
  expected = 0.999**300 * first + (1 - 0.999**300) * np.square(later)
  fallen = np.asarray(later) == 0.5
  assert expected[fallen][0] < 0.9 * expected[~fallen][0]
  np.testing.assert_allclose(
    nu[fallen].mean(), expected[fallen].mean(), rtol=0.01
  )


@pytest.mark.torch
def test_beside_bitsandbytes():
  """Its AdamW8bit rounds to the nearest code; both stay near to AdamW."""
  torch = pytest.importorskip('torch')
  bitsandbytes = pytest.importorskip('bitsandbytes')
  rng = np.random.default_rng(0)
  gradients = [rng.normal(1, 0.5, (128, 256)) for _ in range(10)]
  gradients = [np.float32(g) for g in gradients]
  moved = {}
  for name, make in {
    'exact': torch.optim.AdamW,
    'theirs': bitsandbytes.optim.AdamW8bit,
  }.items():
    kernel = torch.nn.Parameter(torch.zeros(128, 256))
    adamw = make([kernel], lr=1e-3, weight_decay=0.0)
    for g in gradients:
      kernel.grad = torch.tensor(g)
      adamw.step()
    moved[name] = kernel.detach().numpy()
  chain = optimizer.make(
    'adamw', lambda _: 1e-3, optimizer.Settings(
      clip_norm=0.0, weight_decay=0.0, moments_dtype='int8'
    )
  )  # fmt: skip
  params = {'kernel': jnp.zeros((128, 256))}
  state, update = chain.init(params), jax.jit(chain.update)
  for g in gradients:
    updates, state = update({'kernel': g}, state, params)
    params = optax.apply_updates(params, updates)

  def error(x):
    return np.sqrt(np.square(x - moved['exact']).mean())

  assert error(params['kernel']) < 2 * error(moved['theirs'])
