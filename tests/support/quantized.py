"""Quantises kernels of tests."""

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.weights import quantization


def shape(dims, dtype=np.float32):
  return jax.ShapeDtypeStruct(dims, dtype)


def quantize(kernel, stored, scale_shape):
  """Returns (kernel of the stored type, its scales)."""
  return quantization.quantize(
    kernel, shape(kernel.shape, jnp.dtype(stored)), shape(scale_shape)
  )
