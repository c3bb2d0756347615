"""Stores an optimizer's moments in 8 bits, block by block.

A block of 256 numbers has one factor, its largest magnitude; each number is the
nearest of 255 shares of it, or the next one, at random. The shares are those of
dynamic quantisation (Dettmers et al. 2022, arXiv 2110.02861, section 2.1): of
seven decades below 1, each has twice as many as the one below it, the middles
of equal parts. Here the largest is divided out, so that a block's largest
number is exact.

Squares have no sign, and so twice the shares. A square above 0 stays above 0,
since an update divides by its root.

Blocks run along one axis of an array, not the longest: that is what fsdp splits
(distributed.sharding), and no block should lie on two devices.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from sdxl_jax.training import stochastic_rounding

BLOCK = 256  # numbers, at most
SHORTEST = 64  # block: a factor for each few numbers would cost more
SMALLEST = 4096  # elements of an array; smaller ones stay in float32
DECADES = 7
SIGNED = 'mu', 'exp_avg'  # fields of states, of optax and of our own
SQUARES = 'nu', 'exp_avg_sq'
MOMENTS = (*SIGNED, *SQUARES)


class Stored(NamedTuple):
  """The state of a transformation, with moments in 8 bits."""

  state: Any  # codes in place of the moments, of the same shapes
  scales: Any  # the blocks' factors; optax.MaskedNode() for other arrays


def stored_in_8_bits(
  transformation: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Wraps a transformation, which still computes in float32.

  Args:
    transformation: one of its integers counts the updates; its moments are in
      fields of MOMENTS.
  """

  def init(params):
    return pack(transformation.init(params))

  def update(updates, state, params=None):
    updates, state = transformation.update(updates, unpack(state), params)
    return updates, pack(state)

  return optax.GradientTransformation(init, update)


def pack(state: Any) -> Stored:
  """Quantises the moments of a state.

  The random numbers depend on the number of updates and on the array's place.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(state)
  key = stochastic_rounding.key_of([x for _, x in leaves])
  codes, scales = [], []
  for i, (path, x) in enumerate(leaves):
    field, code, scale = field_of(path), x, optax.MaskedNode()
    if field and block_of(x.shape):
      noise = jax.random.fold_in(key, i)
      code, scale = quantize(noise, x, field in SIGNED)
    codes.append(code)
    scales.append(scale)
  return Stored(tree.unflatten(codes), tree.unflatten(scales))


def unpack(stored: Stored) -> Any:
  """Returns the state with moments in float32."""

  def restore(code, scale):
    if isinstance(scale, optax.MaskedNode):
      return code
    return dequantize(code, scale)

  return jax.tree.map(restore, stored.state, stored.scales)


def codes_of(opt_state: Any) -> Any:
  """Returns a state of any optimizer without the factors of its blocks."""

  def is_stored(node):
    return isinstance(node, Stored)

  return jax.tree.map(
    lambda node: node.state if is_stored(node) else node,
    opt_state,
    is_leaf=is_stored,
  )


def field_of(path: tuple[Any, ...]) -> str | None:
  """Returns the field of MOMENTS that a leaf of a state belongs to, if any."""
  names = (getattr(key, 'name', None) for key in path)
  return next((name for name in names if name in MOMENTS), None)


def block_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
  """Chooses the blocks of an array.

  Returns:
    (axis that they run along, length); None: the array stays in float32.
  """
  if math.prod(shape) < SMALLEST:
    return None
  longest = int(np.argmax(shape))
  blocks = [
    (largest_divisor(n), axis)
    for axis, n in enumerate(shape)
    if axis != longest
  ]
  for length, axis in (
    max(blocks, default=(0, 0)),
    (largest_divisor(shape[longest]), longest),
  ):
    if length >= SHORTEST:
      return axis, length
  return None


def in_blocks(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
  """Returns (axis, shape) with that axis as two: blocks, and their numbers."""
  axis, length = block_of(shape)
  return axis, (
    *shape[:axis],
    shape[axis] // length,
    length,
    *shape[axis + 1 :],
  )


def largest_divisor(n: int) -> int:
  """Returns the largest divisor of an axis that is not above BLOCK."""
  return next(d for d in range(min(n, BLOCK), 0, -1) if n % d == 0)


def quantize(
  key: PRNGKeyArray, x: Float[Array, '*dims'], signed: bool
) -> tuple[Integer[Array, '*dims'], Float[Array, '*blocks']]:
  """Quantises an array that has blocks.

  Args:
    key: of the random bits.
    x: float32.
    signed: whether numbers may be below 0.

  Returns:
    (codes, factors): int8 or, without sign, uint8; float32 of the same shape
    but for the axis of the blocks.
  """
  axis, shape = in_blocks(x.shape)
  blocks = x.reshape(shape)
  scales = jnp.abs(blocks).max(axis + 1, keepdims=True)
  # A compiler may leave NaN out of a largest number.
  finite = jnp.isfinite(blocks).all(axis + 1, keepdims=True)
  scales = jnp.where(finite, scales, jnp.nan)
  shares = jnp.abs(blocks) / jnp.where(scales == 0, 1.0, scales)
  # The share at or below each, and the one above it.
  low = code_below(shares, signed)
  below, above = share_of(low, signed), share_of(low + 1, signed)
  noise = jax.random.bits(key, shape, jnp.uint16).astype(jnp.float32) / 2**16
  codes = low + (noise * (above - below) < shares - below)
  if signed:
    codes = jnp.where(blocks < 0, -codes, codes).astype(jnp.int8)
  else:
    codes = jnp.maximum(codes, (blocks > 0).astype(jnp.int32))
    codes = codes.astype(jnp.uint8)
  return codes.reshape(x.shape), scales.squeeze(axis + 1)


def dequantize(
  codes: Integer[Array, '*dims'], scales: Float[Array, '*blocks']
) -> Float[Array, '*dims']:
  """Returns the numbers of codes, as float32; arguments as `quantize` gives."""
  signed = codes.dtype == jnp.int8
  axis, shape = in_blocks(codes.shape)
  blocks = codes.reshape(shape).astype(jnp.int32)
  shares = share_of(jnp.abs(blocks), signed)
  x = jnp.where(blocks < 0, -shares, shares) * jnp.expand_dims(scales, axis + 1)
  return x.reshape(codes.shape)


def parts(decade: Any, signed: bool) -> Any:
  """The number of shares in a decade, counted from the lowest."""
  return 2**decade if signed else 2 ** (decade + 1)


def largest_code(signed: bool) -> int:
  """The code of 1: 127 with a sign, 254 without."""
  return sum(parts(decade, signed) for decade in range(DECADES))


def chosen(decade: Integer[Array, '*dims'], value: Callable) -> Any:
  """Looks a decade's value up, by comparisons: a TPU gathers slowly."""
  found = jnp.float32(value(0))
  for i in range(1, DECADES):
    found = jnp.where(decade >= i, jnp.float32(value(i)), found)
  return found


def top(signed: bool) -> float:
  """The largest share before it is divided out."""
  return 0.1 + 0.9 * (1 - 0.5 / parts(DECADES - 1, signed))


def share_of(
  code: Integer[Array, '*dims'], signed: bool
) -> Float[Array, '*dims']:
  """Returns the share that a code without sign stands for; 0 for code 0."""
  # Codes of a decade begin at 2^i with a sign, and at 2^(i+1) - 1 without.
  shifted = jnp.maximum(code if signed else code + 1, 1)
  exponent = 31 - jax.lax.clz(shifted)
  decade = exponent if signed else exponent - 1
  place = (shifted - (1 << exponent)).astype(jnp.float32)
  width = chosen(decade, lambda i: 0.9 * size(i, signed) / parts(i, signed))
  start = chosen(decade, lambda i: 0.1 * size(i, signed))
  return jnp.where(code > 0, start + (place + 0.5) * width, 0.0)


def size(decade: int, signed: bool) -> float:
  """The upper end of a decade's shares."""
  return 10.0 ** (decade - DECADES + 1) / top(signed)


def code_below(
  shares: Float[Array, '*dims'], signed: bool
) -> Integer[Array, '*dims']:
  """Returns the code of the share next below each, and 0 below the lowest."""
  decade = sum(
    (shares >= jnp.float32(0.1 * size(i, signed))).astype(jnp.int32)
    for i in range(1, DECADES)
  )
  start = chosen(decade, lambda i: 0.1 * size(i, signed))
  width = chosen(decade, lambda i: 0.9 * size(i, signed) / parts(i, signed))
  place = jnp.floor((shares - start) / width - 0.5)
  place = jnp.clip(place, -1, None).astype(jnp.int32)
  first = chosen(decade, lambda i: parts(i, signed)).astype(jnp.int32)
  code = first + place if signed else first - 1 + place
  # The largest one has no share above it.
  return jnp.minimum(code, largest_code(signed) - 1)
