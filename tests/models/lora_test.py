"""Low-rank factors beside kernels: in training, and merged into them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.models import lora, unet
from sdxl_jax.weights.lora import merge, trained_factors

TARGETS = (
  lora.Target('attention', r'unet/.*/attn[12]/(to_[qkv]|to_out_0)', 3, 6.0),
  lora.Target('rest', r'unet/.*/(conv1|net_2|proj_in|time_emb_proj)', 2, 1.0),
)
# Every kind of factors, in a convolution and in linear layers, stacked or not.
KINDS = tuple(
  lora.Target(name, f'unet/.*/({layers})', rank, 5.0, algo, dora_wd, factor)
  for name, layers, rank, algo, dora_wd, factor in (
    ('dora', r'attn1/to_[qkv]|conv1', 3, 'lora', True, -1),
    ('loha', r'attn2/to_[qkv]|conv2|time_emb_proj', 2, 'loha', False, -1),
    ('lokr', r'net_0/proj|to_out_0', 1, 'lokr', False, -1),
    ('factor', r'net_2', 9, 'lokr', True, 4),
    ('full', r'proj_in', 1, 'full', False, -1),
    ('both', r'proj_out', 2, 'loha', True, -1),
  )
)
draw = np.random.default_rng(0).normal
INPUTS = tuple(
  draw(size=shape).astype(np.float32) for shape in ((2, 6, 4, 8), (2, 32))
)
CONTEXT = draw(size=(2, 7, 12)).astype(np.float32)


def make(**fields):
  """A middle block, which has all kinds of layers, and random parameters."""
  config = unet.UNetConfig(
    num_heads=(2,), mid_transformer_depth=2, norm_num_groups=4, **fields
  )
  net = unet.MidBlock(config)
  tree = jax.eval_shape(net.init, jax.random.key(0), *INPUTS, CONTEXT)
  rng = np.random.default_rng(1)

  def fill(x):
    return 0.3 * rng.normal(size=x.shape).astype(np.float32)

  return net, {'unet': jax.tree.map(fill, tree['params'])}


def trained(params, targets=TARGETS):
  """Factors as some steps may leave them: b is no longer zero."""
  fresh = lora.init(jax.random.key(2), params, targets)
  flat = traverse_util.flatten_dict(fresh)
  rng = np.random.default_rng(3)

  def move(x):
    return x + 0.3 * rng.normal(size=x.shape).astype(np.float32)

  return traverse_util.unflatten_dict({p: move(x) for p, x in flat.items()})


def run(jit, net, params):
  return jit(lambda p: lora.apply(net, 'unet', p, *INPUTS, CONTEXT))(params)


@pytest.mark.parametrize(
  'fields',
  [
    dict(scan_blocks=False),
    dict(scan_blocks=True, remat='full'),
    dict(scan_blocks=False, remat='dots'),
  ],
  ids=str,
)
def test_added_as_merged(jit, close, fields):
  net, params = make(**fields)
  factors = trained(params)
  ready = lora.fold_scale(factors, TARGETS)
  added = run(jit, net, params | {'lora': ready})
  assert np.abs(added - run(jit, net, params)).max() > 1
  made = trained_factors.from_training(factors, TARGETS)
  assert len(made.factors) == 2 * 8 + 2 + 2 + 1 + 2
  merged = merge.merge(params, [(made, 1.0)])
  close(run(jit, net, merged), added, 1e-5)


@pytest.mark.parametrize('scan', [True, False])
def test_all_kinds_added_as_merged(jit, close, scan):
  net, params = make(scan_blocks=scan, remat='full' if scan else 'none')
  fresh = lora.init(jax.random.key(2), params, KINDS)
  factors = trained(params, KINDS)
  plain, unchanged, added = (
    run(jit, net, params | {'lora': lora.fold_scale(tree, KINDS)})
    for tree in ({}, fresh, factors)
  )
  close(unchanged, plain, 1e-5)
  assert np.abs(added - plain).max() > 1
  made = trained_factors.from_training(factors, KINDS)
  assert not made.factors
  merged = merge.merge(params, [(made, 1.0)])
  close(run(jit, net, merged), added, 1e-5)


def test_fresh_factors_change_nothing_and_learn(jit):
  net, params = make(remat='full')
  fresh = lora.init(jax.random.key(0), params, TARGETS)
  ready = lora.fold_scale(fresh, TARGETS)
  plain = run(jit, net, params)
  np.testing.assert_array_equal(run(jit, net, params | {'lora': ready}), plain)

  def loss(factors):
    return jnp.mean(
      lora.apply(net, 'unet', params | {'lora': factors}, *INPUTS, CONTEXT) ** 2
    )

  grads = traverse_util.flatten_dict(jit(jax.grad(loss))(ready))
  assert len(grads) == 2 * (8 + 1 + 1 + 2 + 2)  # a stack counts once
  for path, grad in grads.items():
    # Of a product whose second factor is zero only that one has a gradient.
    assert np.any(np.asarray(grad)) == (path[-1] == 'b'), path


def test_factors_begin_as_those_of_peft():
  """Uniform in +-1/sqrt(fan_in), each layer and each of a stack its own."""
  params = {
    'unet': {
      'conv1': {'kernel': np.zeros((3, 3, 50, 7))},
      'stack': {'to_q': {'kernel': np.zeros((4, 300, 5))}},
    }
  }
  target = lora.Target('all', 'unet/.*', 64, 64.0)
  fresh = lora.init(jax.random.key(0), params, (target,))['unet']
  for layer, fan_in in (fresh['conv1'], 450), (fresh['stack']['to_q'], 300):
    a, bound = np.asarray(layer['a']), fan_in**-0.5
    assert 0.99 * bound < np.abs(a).max() <= bound
    assert abs(a.std() - bound / 3**0.5) < 0.02 * bound
    assert not np.any(layer['b'])
  a = fresh['stack']['to_q']['a']
  assert a.shape == (4, 300, 64) and not np.array_equal(a[0], a[1])
  assert fresh['conv1']['a'].shape == (3, 3, 50, 64)
  assert fresh['conv1']['b'].shape == (64, 7)


@pytest.mark.parametrize(
  'pattern, message',
  [
    (r'unet/.*/to_z', r"config.lora.mine.layers is 'unet/.*/to_z'.*/to_v"),
    (r'unet/.*/to_', 'no layer matches as a whole'),
    (r'unet/.*', 'config.lora.attention and config.lora.mine both name'),
  ],
)
def test_patterns_that_do_not_fit(pattern, message):
  _, params = make()
  mine = lora.Target('mine', pattern, 4, 4.0)
  with pytest.raises(ValueError, match=message):
    lora.init(jax.random.key(0), params, (TARGETS[0], mine))
