"""What is trained in place of a kernel, by kind: a difference D in factors.

W [in, out] becomes W + D, with D of

  lora  alpha / r * a b (Hu et al. 2021, arXiv 2106.09685)
  loha  alpha / r * (a1 b1) * (a2 b2), elementwise (Hyeon-Woo et al. 2022)
  lokr  alpha / r * kron(w1, w2), w2 whole or w2_a w2_b (Yeh et al. 2023)
  full  d, as large as W

each a [in, r], b [r, out]; of a convolution, a and w2 have the axes of its
kernel. Loha, lokr and full are as LyCORIS has them (arXiv 2309.14859, section
3.2). With a magnitude m [out] besides, each column of W + D is brought to the
norm m (Liu et al. 2024, DoRA, arXiv 2402.09353, equation 5).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from sdxl_jax.models import stored_kernels

ALGOS = ('lora', 'loha', 'lokr', 'full')
MAGNITUDE = 'magnitude'
# What decays as kernels do; a magnitude, like the scale of a norm, does not.
FACTORS = ('a', 'b', 'a1', 'b1', 'a2', 'b2', 'w1', 'w2', 'w2_a', 'w2_b', 'd')
SCALED = ('b', 'b2', 'w1')  # the factors that alpha / r is multiplied into
EPSILON = jnp.finfo(jnp.float32).eps  # added to norms, as in files of DoRA

Factors = Mapping[str, Any]  # {name: array}
# Uniform in +-1/sqrt(fan_in), like PEFT and LyCORIS; of a stack, for each.
UNIFORM = 1 / 3, 'fan_in', 'uniform'


def init(
  key: PRNGKeyArray,
  shape: Sequence[int],
  algo: str,
  rank: int,
  factor: int = -1,
) -> Factors:
  """Returns fresh factors of a kernel, whose difference is zero.

  Args:
    key: jax key.
    shape: [in, out] or [kh, kw, in, out], after the axis of a stack.
    algo: one of ALGOS.
    rank: r.
    factor: of lokr, see `split`.

  Returns:
    {name: float32}; random numbers as LyCORIS and PEFT draw them.
  """
  *inputs, outputs = shape
  # Under nn.scan a kernel [in, out] has the axis of its stack before it.
  stack = tuple(inputs[: len(shape) % 2])
  uniform = nn.initializers.variance_scaling(
    *UNIFORM, batch_axis=range(len(stack))
  )
  down, up = (*inputs, rank), (*stack, rank, outputs)
  if algo == 'lora':
    return {'a': uniform(key, down, jnp.float32), 'b': jnp.zeros(up)}
  if algo == 'full':
    return {'d': jnp.zeros(shape)}
  keys = jax.random.split(key, 3)
  if algo == 'loha':
    return {
      'a1': jax.random.normal(keys[0], down),
      'b1': 0.1 * jax.random.normal(keys[1], up),
      'a2': jax.random.normal(keys[2], down),
      'b2': jnp.zeros(up),
    }
  # The first matrix is small, and has no kernel.
  (i1, i2), (o1, o2) = split(inputs[-1], factor), split(outputs, factor)
  w1 = uniform(keys[0], (*stack, i1, o1), jnp.float32)
  if rank >= max(i2, o2) / 2:
    return {'w1': w1, 'w2': jnp.zeros((*inputs[:-1], i2, o2))}
  return {
    'w1': w1,
    'w2_a': jnp.zeros((*inputs[:-1], i2, rank)),
    'w2_b': uniform(keys[1], (*stack, rank, o2), jnp.float32),
  }


def split(size: int, factor: int = -1) -> tuple[int, int]:
  """Splits a size into (m, n) with m n = size and m <= n, as LyCORIS does.

  Args:
    size: of the inputs or outputs of a kernel.
    factor: -1: m and n are as near to each other as can be; else one of them is
      the factor or, if it is no divisor, m is the largest one below it.
  """
  if factor > 0 and size % factor == 0:
    return min(factor, size // factor), max(factor, size // factor)
  limit = size if factor < 0 else factor
  divisors = (m for m in range(1, int(size**0.5) + 1) if size % m == 0)
  m = max(m for m in divisors if m <= limit)
  return m, size // m


def column_norms(
  kernel: Float[ArrayLike, '*inputs out'], is_stacked: bool = False
) -> Float[Array, '...']:
  """Returns the norm of a kernel for each output, float32."""
  axes = tuple(range(int(is_stacked), kernel.ndim - 1))
  return jnp.sqrt(jnp.sum(jnp.float32(kernel) ** 2, axes))


def add(
  layer: nn.Module, factors: Factors, y: Array, *args: ArrayLike
) -> Float[Array, '*rows out']:
  """Returns the output that a layer has with W + D in place of W.

  Args:
    layer: nn.Dense, nn.Conv, or one of stored_kernels, bound.
    factors: of its kernel, the scale multiplied in.
    y: its output with W.
    args: its input.
  """
  product = multiply(layer, factors, *args)
  if MAGNITUDE not in factors:
    return y + product
  # The norm counts as a constant of the gradient (DoRA, section 4.3).
  if isinstance(layer, stored_kernels.StoredLayer):
    kernel = layer.dequantized()
  else:
    kernel = layer.get_variable('params', 'kernel')
  norms = jax.lax.stop_gradient(changed_norms(kernel, factors))
  ratio = factors[MAGNITUDE] / (norms + EPSILON)
  plain = y
  if layer.use_bias:
    plain = y - layer.get_variable('params', 'bias').astype(y.dtype)
  # The first ratio is near 1, so that few digits of y are lost.
  less = (ratio - 1).astype(y.dtype)
  return y + less * plain + ratio.astype(y.dtype) * product


def multiply(
  layer: nn.Module, factors: Factors, *args: ArrayLike
) -> Float[Array, '*rows out']:
  """Returns what a layer makes of its input with D as kernel, without bias."""
  if 'a' in factors:
    # a is a kernel of the layer's kind with r outputs; b applies to each pixel.
    h = call(layer, factors['a'], *args)
    return h @ factors['b'].astype(h.dtype)
  if 'w1' in factors:
    return multiply_kronecker(layer, factors, *args)
  if 'd' in factors:
    return call(layer, factors['d'], *args)

  # Nothing as large as a kernel is stored for the backward pass.
  @jax.checkpoint
  def hadamard(factors, *args):
    return call(layer, build(factors), *args)

  return hadamard(factors, *args)


def call(
  layer: nn.Module, kernel: Array, *args: ArrayLike
) -> Float[Array, '*rows f']:
  """Applies a layer of the same kind with another kernel, without bias."""
  features = kernel.shape[-1]
  if isinstance(layer, stored_kernels.StoredLayer):
    other = layer.unstored(features)
  else:
    other = layer.clone(
      features=features, use_bias=False, parent=None, name=None
    )
  return other.apply({'params': {'kernel': kernel}}, *args)


def multiply_kronecker(
  layer: nn.Module, factors: Factors, x: ArrayLike
) -> Float[Array, '*rows out']:
  """Multiplies x by kron(w1, w2) as x[i1, i2] w2[i2, o2] w1[i1, o1]."""
  w1 = factors['w1']
  x = x.reshape(*x.shape[:-1], w1.shape[0], -1)

  def second(x):
    if 'w2' in factors:
      return call(layer, factors['w2'], x)
    h = call(layer, factors['w2_a'], x)
    return h @ factors['w2_b'].astype(h.dtype)

  h = jax.vmap(second, in_axes=-2, out_axes=-2)(x)
  y = jnp.einsum('...io,ij->...jo', h, w1.astype(h.dtype))
  return y.reshape(*y.shape[:-2], -1)


def build(factors: Factors) -> Float[Array, '*inputs out']:
  """Returns D as a whole, which `multiply` needs of loha only."""
  if 'a' in factors:
    return factors['a'] @ factors['b']
  if 'd' in factors:
    return factors['d']
  if 'a1' in factors:
    return (factors['a1'] @ factors['b1']) * (factors['a2'] @ factors['b2'])
  w2 = factors.get('w2')
  if w2 is None:
    w2 = factors['w2_a'] @ factors['w2_b']
  # kron of the last two axes of both; w1 has no kernel.
  w1 = factors['w1']
  w1 = w1.reshape(*w1.shape[:-2], *[1] * (w2.ndim - w1.ndim), *w1.shape[-2:])
  d = jnp.einsum('...ij,...kl->...ikjl', w1, w2)
  return d.reshape(*d.shape[:-4], d.shape[-4] * d.shape[-3], -1)


def changed_norms(
  kernel: Float[ArrayLike, '*inputs out'], factors: Factors
) -> Float[Array, ' out']:
  """Returns the norms of the columns of W + D, float32."""
  if 'a' not in factors:
    return column_norms(jnp.float32(kernel) + build(factors))
  # |w + d|^2 = |w|^2 + 2 w d + d d, without D.
  w = jnp.float32(kernel).reshape(-1, kernel.shape[-1])
  a = factors['a'].reshape(-1, factors['a'].shape[-1])
  b = jnp.float32(factors['b'])
  a, precision = jnp.float32(a), jax.lax.Precision.HIGHEST
  along = 2 * jnp.matmul(a.T, w, precision=precision)
  gram = jnp.matmul(a.T, a, precision=precision)
  along += jnp.matmul(gram, b, precision=precision)
  return jnp.sqrt(jnp.maximum((w**2).sum(0) + (along * b).sum(0), 0))
