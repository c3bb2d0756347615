"""Functions whose gradients are written out.

Those that JAX derives compute and store more: LayerNorm's goes through mean and
variance one by one, GEGLU's through splits and pads. There is no forward mode
of them (jax.jvp).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

Rows = Float[ArrayLike, '*rows c']
Channels = Float[ArrayLike, ' c']
Halves = Float[ArrayLike, '*rows two_c']


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
  x: Rows, scale: Channels, bias: Channels, epsilon: float, dtype: str
) -> Float[Array, '*rows c']:
  """Normalises each row: (x - mean) / sqrt(variance + epsilon) scale + bias.

  Ba et al. 2016 (arXiv 1607.06450), equation 4. Everything up to the result is
  float32, and the variance is taken about the mean.

  Args:
    x: of any float type.
    scale, bias: of each channel.
    epsilon: added to the variance.
    dtype: of the result.
  """
  centered, gain = center(x, epsilon)
  return (centered * (gain * scale) + bias).astype(dtype)


def center(x: Rows, epsilon: float) -> tuple[Array, Array]:
  """Returns (x - mean, 1 / sqrt(variance + epsilon)) of each row, float32."""
  x = jnp.asarray(x, jnp.float32)
  centered = x - x.mean(-1, keepdims=True)
  variance = (centered**2).mean(-1, keepdims=True)
  return centered, jax.lax.rsqrt(variance + epsilon)


def layer_norm_forward(
  x: Rows, scale: Channels, bias: Channels, epsilon: float, dtype: str
) -> tuple[Float[Array, '*rows c'], tuple]:
  """Returns (result, residuals); the statistics are computed again."""
  return layer_norm(x, scale, bias, epsilon, dtype), (x, scale, bias)


def layer_norm_backward(
  epsilon: float, dtype: str, residuals: tuple, gradient: Rows
) -> tuple[Array, Array, Array]:
  """Returns the gradients by x, scale and bias.

  With y = (x - mean) gain: dx = gain (dy - mean(dy) - y mean(dy y)).
  """
  x, scale, bias = residuals
  gradient = gradient.astype(jnp.float32)
  centered, gain = center(x, epsilon)
  y, dy = centered * gain, gradient * scale
  along = (dy * y).mean(-1, keepdims=True)
  dx = gain * (dy - dy.mean(-1, keepdims=True) - y * along)
  rows = range(x.ndim - 1)
  dscale, dbias = (gradient * y).sum(rows), gradient.sum(rows)
  return (
    dx.astype(x.dtype),
    dscale.astype(scale.dtype),
    dbias.astype(bias.dtype),
  )


layer_norm.defvjp(layer_norm_forward, layer_norm_backward)


def gelu(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Returns x Phi(x) by erf, like the reference; erfc would be slower."""
  wide = x.astype(jnp.float32)  # bfloat16 has too few digits for 1 + erf
  return (wide * normal_cdf(wide)).astype(x.dtype)


def normal_cdf(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Returns Phi(x), the distribution function of N(0, 1)."""
  return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


@jax.custom_vjp
def geglu(x: Halves) -> Float[Array, '*rows c']:
  """Returns value * gelu(gate), the halves of x (arXiv 2002.05202)."""
  value, gate = jnp.split(x, 2, axis=-1)
  return value * gelu(gate)


def geglu_forward(x: Halves) -> tuple[Float[Array, '*rows c'], Halves]:
  """Returns (result, residuals)."""
  return geglu(x), x


def geglu_backward(
  x: Halves, gradient: Rows
) -> tuple[Float[Array, '*rows two_c']]:
  """Returns the gradient by x, float32 until it is whole.

  The derivative of gelu is Phi(x) + x N(x; 0, 1).
  """
  value, gate, gradient = (
    part.astype(jnp.float32) for part in (*jnp.split(x, 2, axis=-1), gradient)
  )
  cdf = normal_cdf(gate)
  density = jnp.exp(-0.5 * gate**2) * (2 * jnp.pi) ** -0.5
  by_value = gradient * gate * cdf
  by_gate = gradient * value * (cdf + gate * density)
  return (jnp.concatenate([by_value, by_gate], axis=-1).astype(x.dtype),)


geglu.defvjp(geglu_forward, geglu_backward)
