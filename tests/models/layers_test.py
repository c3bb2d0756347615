"""Layers whose mistakes would hide in a whole net."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import layers


@pytest.mark.parametrize('width', [256, 320])
def test_sinusoid(width):
  """Exact up to the rounding of float32 angles, which reach 4096."""
  scalars = np.arange(4097)
  i = np.arange(width // 2)
  angles = scalars[:, None] * 10000.0 ** (-2 * i / width)
  expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
  error = np.abs(layers.sinusoid(scalars, width) - expected).max(axis=-1)
  assert error[:1000].max() < 1e-4 and error.max() < 5e-4


@pytest.mark.parametrize('dtype, mean', [('bfloat16', 100), ('float16', 800)])
def test_norm_statistics_are_float32(dtype, mean):
  """The type has steps of 0.5 there: a mean that coarse would show.

  And float16 ends below the square of 800.
  """
  config = types.SimpleNamespace(
    dtype=dtype, param_dtype='float32', norm_num_groups=2
  )
  x = np.random.default_rng(0).normal(mean, 1, (1, 32, 32, 64))
  x = jnp.asarray(x, dtype)
  norms = {
    (1, 2, 4): layers.group_norm(config, 1e-5, None),
    (4,): layers.LayerNorm(config),
  }
  groups = np.asarray(x, np.float64).reshape(1, 32, 32, 2, 32)
  for axes, norm in norms.items():
    y = groups if axes == (1, 2, 4) else groups.reshape(1, 32, 32, 1, 64)
    y = (y - y.mean(axes, keepdims=True)) / y.std(axes, keepdims=True)
    out = norm.init_with_output(jax.random.key(0), x)[0]
    assert out.dtype == dtype
    # A bfloat16 between 4 and 8 is right to 1/64.
    np.testing.assert_allclose(
      np.asarray(out, np.float64), y.reshape(x.shape), atol=0.02
    )
