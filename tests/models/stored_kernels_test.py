"""Layers with kernels in 8 bits, compared with the layers of Flax."""

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


def test_factors_are_not_left_out():
  config = types.SimpleNamespace(
    dtype='float32', param_dtype='float32', weights_dtype='int8'
  )

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return layers.dense(config, 4, 'proj')(x)

  x = jnp.ones((1, 4))
  params = Net().init(jax.random.key(0), x)['params']
  factors = {'net': {'proj': {'a': jnp.ones((4, 1)), 'b': jnp.ones((1, 4))}}}
  with pytest.raises(ValueError, match='its kernel is stored in 8 bits'):
    lora.apply(Net(), 'net', {'net': params, 'lora': factors}, x)


@pytest.mark.parametrize('value', ['int4', 'bfloat16', ''])
def test_other_types(value):
  with pytest.raises(ValueError, match="is '.*'; pass int8 or float8_e4m3fn"):
    stored_kernels.check('weights_dtype', value)
