"""Layers with kernels in 8 bits, compared with the layers of Flax."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import layers, lora, stored_kernels
from tests.support import quantized

TYPES = list(stored_kernels.LARGEST)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize('stored', TYPES)
@pytest.mark.parametrize(
  'make, dims',
  [
    (lambda c: layers.dense(c, 5, None), (2, 3, 16)),
    (lambda c: layers.dense(c, 5, None, use_bias=False), (2, 16)),
    (lambda c: layers.conv(c, 5, None), (2, 6, 7, 4)),
    (lambda c: layers.conv(c, 5, None, 1, padding=0), (2, 6, 7, 4)),
    (lambda c: layers.conv(c, 5, None, 3, 2, ((0, 1), (1, 1))), (2, 6, 7, 4)),
  ],
)
def test_layers_give_what_those_of_flax_give(stored, make, dims):
  fields = dict(dtype='float32', param_dtype='float32')
  plain = make(types.SimpleNamespace(**fields))
  layer = make(types.SimpleNamespace(weights_dtype=stored, **fields))
  x = RNG.normal(size=dims).astype(np.float32)
  params = jax.tree.map(
    lambda p: np.asarray(RNG.normal(size=p.shape), np.float32),
    plain.init(jax.random.key(0), x)['params'],
  )
  q, scale = quantized.quantize(params['kernel'], stored, (5,))
  known = dict(params, kernel=np.float32(q) * scale)
  kept = dict(params, kernel=q, kernel_scale=scale)
  made = layer.init(jax.random.key(0), x)['params']
  assert jax.tree.map(lambda p: (p.shape, p.dtype), made) == jax.tree.map(
    lambda p: (p.shape, p.dtype), kept
  )
  np.testing.assert_allclose(
    layer.apply({'params': kept}, x),
    plain.apply({'params': known}, x),
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_kernel_waits_for_its_input():
  """Or a loop of steps would have all kernels in full, before the first."""
  config = types.SimpleNamespace(
    dtype='float32', param_dtype='float32', weights_dtype='int8'
  )
  layer, x = layers.dense(config, 64, None), jnp.ones((2, 64))
  params = jax.eval_shape(layer.init, jax.random.key(0), x)

  def run(params, x):
    return jax.lax.fori_loop(0, 3, lambda _, x: layer.apply(params, x), x)

  text = jax.jit(run).lower(params, x).compile().as_text()
  # What enters the loop is of 8 bits, and nothing of 64 x 64 is longer.
  (loop,) = [line for line in text.splitlines() if ' while(' in line]
  assert 's8[64,64]' in loop and 'f32[64,64]' not in loop


GROUPS = {
  'lora': dict(rank=2),
  'dora': dict(rank=2, dora_wd=True),
  'loha': dict(rank=2, algo='loha'),
  'lokr': dict(rank=1, algo='lokr'),
  'dora_lokr': dict(rank=1, algo='lokr', dora_wd=True),
  'full': dict(rank=1, algo='full'),
}


class Block(nn.Module):
  """A convolution and a linear layer, under remat and scan as in a UNet."""

  config: types.SimpleNamespace

  @nn.compact
  def __call__(self, x, _):
    y = layers.conv(self.config, 8, 'conv1', 3, 1, 1)(x)
    return x + layers.dense(self.config, 8, 'proj')(nn.silu(y)), None


def stack(**fields):
  """Returns a net of two blocks, whose layers are of these types."""
  config = types.SimpleNamespace(param_dtype='float32', **fields)
  return nn.scan(
    nn.remat(Block, prevent_cse=False),
    variable_axes={'params': 0, 'lora': 0},
    split_rngs={'params': True},
    length=2,
  )(config)


def stack_params(plain, x, stored):
  """Returns random parameters of `stack`: stored, and dequantised."""
  kept = jax.tree.map(
    lambda p: np.asarray(0.1 * RNG.normal(size=p.shape), np.float32),
    plain.init(jax.random.key(0), x, None)['params'],
  )
  known = jax.tree.map(lambda p: p, kept)
  for name, layer in kept.items():
    q, scale = quantized.quantize(layer['kernel'], stored, (2, 8))
    whole = stored_kernels.dequantize(jnp.asarray(q), scale)
    known[name] = dict(layer, kernel=whole)
    kept[name] = dict(layer, kernel=jnp.asarray(q), kernel_scale=scale)
  return kept, known


@pytest.mark.parametrize('kind', GROUPS)
@pytest.mark.parametrize('stored', TYPES)
def test_gradients_beside_stored_kernels(kind, stored):
  """They are those beside the same kernels in float32, by x and factors."""
  plain, net = (stack(dtype='float32', weights_dtype=w) for w in (None, stored))
  x = jnp.asarray(RNG.normal(size=(2, 5, 6, 8)), jnp.float32)
  kept, known = stack_params(plain, x, stored)
  targets = [lora.Target(kind, 'unet/.*', alpha=1.0, **GROUPS[kind])]
  factors = lora.init(jax.random.key(1), {'unet': kept}, targets)
  expected = lora.init(jax.random.key(1), {'unet': known}, targets)
  jax.tree.map(np.testing.assert_array_equal, factors, expected)
  factors = jax.tree.map(
    lambda f: f + 0.1 * RNG.normal(size=f.shape).astype(np.float32), factors
  )

  def run(net, params, factors, x):
    def loss(factors, x):
      params_of_net = {'unet': params, 'lora': factors}
      y, _ = lora.apply(net, 'unet', params_of_net, x, None)
      return (jnp.sin(y) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(factors, x)

  (loss, grads), (theirs, expected) = (
    run(net, kept, factors, x),
    run(plain, known, factors, x),
  )
  np.testing.assert_allclose(loss, theirs, rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize('stored', TYPES)
def test_nothing_of_a_kernel_is_kept_for_the_backward_pass(stored):
  config = types.SimpleNamespace(
    dtype='bfloat16', param_dtype='float32', weights_dtype=stored
  )
  for layer, dims in (
    (layers.dense(config, 64, None, use_bias=False), (2, 32)),
    (layers.conv(config, 64, None, use_bias=False), (2, 4, 4, 32)),
  ):
    x = jnp.ones(dims, 'bfloat16')
    params = layer.init(jax.random.key(0), x)
    _, backward = jax.vjp(functools.partial(layer.apply, params), x)
    kept = [r for r in jax.tree.leaves(backward) if r.size >= 32 * 64]
    assert {r.dtype.name for r in kept} <= {stored}


@pytest.mark.parametrize('value', ['int4', 'bfloat16', ''])
def test_other_types(value):
  with pytest.raises(ValueError, match="is '.*'; pass int8 or float8_e4m3fn"):
    stored_kernels.check('weights_dtype', value)
