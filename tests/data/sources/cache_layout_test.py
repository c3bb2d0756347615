"""Rows of a cache of latents."""

import numpy as np
import pytest

from sdxl_jax.data.sources import cache_layout


def test_numbers_that_their_dtype_cannot_hold_are_no_row():
  """float16 ends at 65504; bfloat16 has the range of float32."""
  values = {'moments': np.array([1, 1e5], np.float32)}
  row = cache_layout.pack([('moments', 'bfloat16', (2,))], values)
  assert len(row) == 4
  with (
    np.errstate(over='ignore'),
    pytest.raises(
      ValueError, match='moments has .* in float16: check the weights, and'
    ),
  ):
    cache_layout.pack([('moments', 'float16', (2,))], values)
  with pytest.raises(ValueError, match='moments has .* in bfloat16'):
    nan = {'moments': np.array([1, np.nan], np.float32)}
    cache_layout.pack([('moments', 'bfloat16', (2,))], nan)
