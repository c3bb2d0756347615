"""The error of kernels that are quantised to 8 bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import stored_kernels
from sdxl_jax.weights import quantization
from tests.support import quantized

TYPES = list(stored_kernels.LARGEST)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize('stored', TYPES)
@pytest.mark.parametrize(
  'dims, scale', [((70, 9), (9,)), ((3, 3, 8, 9), (9,)), ((4, 70, 9), (4, 9))]
)
def test_the_error_of_each_number(stored, dims, scale, monkeypatch):
  monkeypatch.setattr(quantization, 'BLOCK', 50)
  kernel = RNG.normal(size=dims).astype(np.float32)
  kernel *= 10.0 ** RNG.integers(-6, 3, dims[-1])  # each channel has its own
  kernel[..., 2] = 0
  q, found = quantized.quantize(kernel, stored, scale)
  assert q.dtype == jnp.dtype(stored) and found.shape == scale
  assert np.isfinite(np.float32(q)).all() and (np.float32(q[..., 2]) == 0).all()
  inner = tuple(range(len(scale) - 1, len(dims) - 1))
  largest = np.abs(np.float32(q)).max(inner)
  used = np.arange(dims[-1]) != 2
  assert (largest[..., used] == stored_kernels.LARGEST[stored]).all()
  step = np.expand_dims(found, inner)
  error = np.abs(np.float32(q) * step - kernel)
  # Half a step; of floats, half of the last of 4 digits, or of the smallest.
  bound = step / 2
  if stored != 'int8':
    bound = np.maximum(np.abs(kernel) / 16, step * 2.0**-10)
  assert (error <= 1.001 * bound + 1e-30).all()
