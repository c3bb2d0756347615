"""Casts are numpy's, bit for bit."""

import ml_dtypes
import numpy as np
import pytest

from sdxl_jax.weights import checked_cast

HALVES = np.arange(2**16, dtype=np.uint16)


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('finite', [True, False])
def test_all_numbers_of_float16(monkeypatch, dtype, finite):
  """Subnormal numbers and both zeros too, in blocks that do not divide them."""
  monkeypatch.setattr(checked_cast, 'EXTENDED', 10_000)
  array = HALVES.view(np.float16)
  array = array[np.isfinite(array)] if finite else array
  array = array.reshape(2, -1)
  cast = checked_cast.cast(array, dtype)
  with np.errstate(invalid='ignore'):
    expected = array.astype(dtype)
  assert cast.dtype == expected.dtype and cast.shape == expected.shape
  bits = {2: np.uint16, 4: np.uint32}[expected.itemsize]
  np.testing.assert_array_equal(cast.view(bits), expected.view(bits))


def test_strided_arrays():
  array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float16)
  cast = checked_cast.cast(array.T, np.float32)
  np.testing.assert_array_equal(cast, array.T.astype(np.float32))


def test_an_overflow_becomes_infinity():
  cast = checked_cast.cast(np.float32([1e6, -1e6, 1]), np.float16)
  np.testing.assert_array_equal(cast, np.float16([np.inf, -np.inf, 1]))
