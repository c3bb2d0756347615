"""Compares the loop over a stack of blocks with jax.lax.scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from sdxl_jax.models import block_stack
from sdxl_jax.planning import cost

DEPTH = 5
POLICIES = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'names': jax.checkpoint_policies.save_only_these_names('product'),
}


def block(params, x, shared):
  """Has residuals that are arguments, and some that are not."""
  h = checkpoint_name(x @ params['w'] + params['b'], 'product')
  return x + jnp.sin(h) @ params['v'] + (shared @ params['u']).mean(0)


def draw():
  """Returns (params, x, shared)."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(0, 0.3, shape).astype(np.float32)

  shapes = {'w': (4, 6), 'b': (6,), 'v': (6, 4), 'u': (5, 4)}
  params = {name: normal(DEPTH, *shape) for name, shape in shapes.items()}
  return params, normal(3, 4), normal(7, 5)


def make(policy, unroll=1):
  """Returns losses of our loop and of a scan, of (params, x, shared)."""
  body = block
  if POLICIES[policy]:
    body = jax.checkpoint(block, policy=POLICIES[policy], prevent_cse=False)

  def ours(params, x, shared):
    return jnp.sum(block_stack.apply(body, params, x, shared, unroll) ** 2)

  def scan(params, x, shared):
    out, _ = jax.lax.scan(
      lambda x, params: (body(params, x, shared), None), x, params
    )
    return jnp.sum(out**2)

  return ours, scan


@pytest.mark.parametrize('unroll', [1, 2, DEPTH])
@pytest.mark.parametrize('policy', POLICIES)
def test_value_and_gradients_are_those_of_a_scan(policy, unroll):
  arguments = draw()
  ours, scan = (
    jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    for loss in make(policy, unroll)
  )
  results = jax.tree.leaves(ours(*arguments))
  for result, expected in zip(results, jax.tree.leaves(scan(*arguments))):
    np.testing.assert_array_equal(result, expected)
  # Arguments that are no tracers, and a second derivative's outer jit.
  grads = jax.grad(make(policy, unroll)[0])(*arguments)
  np.testing.assert_allclose(grads['w'], results[1 + 3], rtol=1e-5)


def test_parameters_that_are_integers():
  """As kernels of 8 bits, of which there is no gradient."""
  params, x, shared = draw()
  q = np.int8(100 * params.pop('u'))

  def loss(params, x, shared, q):
    def stored(params, x, shared):
      q = jnp.float32(params['q']) / 100
      return block({**params, 'u': q}, x, shared)

    params = params | {'q': q}
    return jnp.sum(block_stack.apply(stored, params, x, shared) ** 2)

  ours, _ = make('names')
  found = jax.jit(jax.grad(loss, (0, 1, 2)))(params, x, shared, q)
  params['u'] = np.float32(q) / 100
  expected = jax.jit(jax.grad(ours, (0, 1, 2)))(params, x, shared)
  expected[0].pop('u')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
  )


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_buffers_are_not_filled_with_zeros(platform):
  """Those of the input, of the residuals, and of the gradients."""
  zeros, allocated = [], []
  for loss in make('names'):
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*draw())
    lines = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
    stacked = [line for line in lines if f'-> tensor<{DEPTH}x' in line]
    zeros.append(sum('broadcast_in_dim' in line for line in stacked))
    allocated.append(sum('@AllocateBuffer' in line for line in stacked))
  assert zeros[0] == 0 < zeros[1] and allocated == [6, 0]


def test_gradients_that_nobody_wants_are_not_computed():
  """Such as those of frozen parameters, where LoRA is trained."""
  ours, _ = make('names')
  counts = []
  for wanted in (0, 1, 2), (1,):
    text = jax.jit(jax.grad(ours, wanted)).lower(*draw()).compile().as_text()
    counts.append(text.count(' dot('))
  assert counts[1] == counts[0] - 4  # of w, v, u and shared


def test_what_surrounds_the_call_is_in_the_backward_pass():
  """As interceptors of Flax are, by which low-rank factors are added."""
  params, x, shared = draw()
  factor = [1.0]

  def scaled(params, x, shared):
    return block(params, factor[0] * x, shared)

  def loss(params):
    factor[0] = 2.0
    try:
      return jnp.sum(block_stack.apply(scaled, params, x, shared) ** 2)
    finally:
      factor[0] = 1.0

  def expected(params):
    y = x
    for i in range(DEPTH):
      y = block(block_stack.at(params, i), 2 * y, shared)
    return jnp.sum(y**2)

  for ours, theirs in zip(
    jax.tree.leaves(jax.grad(loss)(params)),
    jax.tree.leaves(jax.grad(expected)(params)),
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_no_forward_mode():
  ours, _ = make('none')
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(lambda x: ours(draw()[0], x, draw()[2]), (draw()[1],), (draw()[1],))


def test_flops_are_counted_in_the_loop():
  ours, _ = make('full')
  one = cost.flops(jax.make_jaxpr(ours)(*draw()))
  assert one == DEPTH * 2 * (3 * 4 * 6 * 2 + 7 * 5 * 4)
