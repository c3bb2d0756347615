"""A large product and a large copy: what the card reaches at best, by JAX."""

import jax
import jax.numpy as jnp

from tests.benchmarks.gpu import peaks, settings

REPEATS = 10  # products or copies of one measurement


def measure(setting):
  """Reports TFLOP/s of products of each type, and GB/s of a copy."""
  side = 256 if setting.tiny else 8192
  for dtype in ('bfloat16', 'float16', 'float32'):
    with setting.attempt(what='product', dtype=dtype):
      fields = settings.timed(product(side, dtype), setting.turns)
      flops = REPEATS * 2 * side**3 / fields['s']
      setting.report(
        what='product',
        dtype=dtype,
        side=side,
        tflops=round(flops / 1e12, 3),
        share_of_peak=peaks.share(flops),
        **fields,
      )
  size = 2**20 if setting.tiny else 2**31
  with setting.attempt(what='copy'):
    fields = settings.timed(copy(size), setting.turns)
    moved = REPEATS * 2 * size / fields['s']  # read and written
    setting.report(what='copy', gb_per_s=round(moved / 1e9, 1), **fields)


def product(side, dtype):
  """Returns a function that multiplies two random matrices some times."""
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
  # Each product takes the last one, of the same variance, as its input.
  b = b * side**-0.5
  multiply = jax.jit(jnp.matmul)

  def run():
    x = a
    for _ in range(REPEATS):
      x = multiply(x, b)
    x.block_until_ready()

  return run


def copy(size):
  """Returns a function that copies so many bytes some times."""
  x = jnp.zeros(size // 4, jnp.uint32)
  # A mere copy might be left out; one bit is turned over.
  turn = jax.jit(lambda x: x ^ 1)

  def run():
    y = x
    for _ in range(REPEATS):
      y = turn(y)
    y.block_until_ready()

  return run
