"""Stores an optimizer's moments in 8 bits, block by block.

A block of up to 256 numbers has one factor, its largest magnitude (Dettmers et
al. 2022, arXiv 2110.02861). Each number is kept as a share of it: the fourth
power of a code over the largest code, of the two next to it one at random. So
moments move in expectation by what rounding to the nearest would lose.

The paper looks shares up in a table, whose steps grow with the share as these
do, over seven decades; a TPU is slow at looking up. Here the largest share is
1, so that the largest number of a block is exact, and a step is at most 3.2 %
of it with a sign, 1.6 % without. Squares have no sign. A square above 0 stays
above 0, since an update divides by its root.

Blocks run along one axis of an array, the last but one where that is possible,
which a TPU reduces without moving numbers. Their number is a multiple of eight,
so that few of them lie on two devices where that axis is sharded.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Integer, UInt32

from sdxl_jax.training import stochastic_rounding

BLOCK, SHORTEST = 256, 64  # numbers of a block, at most and at least
TALL = 8  # times as long as wide: a table
ALIGNED = 8
SMALLEST = 4096  # elements of an array; smaller ones stay in float32
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
    transformation: treats all numbers of an array alike, whatever its shape;
      one of its integers counts the updates; its moments are in fields of
      MOMENTS.
  """

  def init(params):
    return first_state(transformation.init(params))

  def update(updates, state, params=None):
    def compute(updates, state, params):
      return transformation.update(
        in_blocks(updates), unpack(state), in_blocks(params)
      )

    # Computed twice, for the factors and for the codes: a compiler would keep
    # moments in float32 from one to the other, of all arrays at once.
    _, new = compute(updates, state, params)
    state, scales = jax.lax.optimization_barrier(
      (state, scales_of(new, state.state))
    )
    updates, new = compute(updates, state, params)
    return as_before(updates, params), pack(new, scales, state.state)

  return optax.GradientTransformation(init, update)


def first_state(state: Any) -> Stored:
  """Returns the state before all updates, where all moments are 0.

  If it quantised them, a compiler would compute with constants for minutes.

  Args:
    state: of the transformation.
  """

  def packed(state):
    blocks = in_blocks(state)
    return pack(blocks, scales_of(blocks, state), state)

  def zeros(x):
    return jnp.zeros(x.shape, x.dtype)

  shapes = jax.eval_shape(packed, state)
  codes = jax.tree.map(
    lambda x, code: x if x.dtype == code.dtype else zeros(code),
    state,
    shapes.state,
  )
  return Stored(codes, jax.tree.map(zeros, shapes.scales))


def in_blocks(tree: Any) -> Any:
  """Returns arrays with the axis of their blocks as two.

  So an update is one loop over an array: between two shapes of it, a compiler
  stores what it has computed.
  """
  return jax.tree.map(lambda x: x.reshape(split_shape(x.shape)), tree)


def as_before(tree: Any, like: Any) -> Any:
  """Returns arrays in the shapes of another tree."""
  return jax.tree.map(lambda x, y: x.reshape(y.shape), tree, like)


def scales_of(state: Any, like: Any) -> Any:
  """Returns the factors of a state in blocks; see Stored.

  Args:
    state: of the transformation, in blocks.
    like: the same tree, in the parameters' shapes.
  """

  def scale(path, x, before):
    if field_of(path) and (found := block_of(before.shape)):
      return largest(x, found[0] + 1)
    return optax.MaskedNode()

  return jax.tree_util.tree_map_with_path(scale, state, like)


def pack(state: Any, scales: Any, like: Any) -> Stored:
  """Quantises the moments of a state by their blocks' factors.

  The random numbers depend on the number of updates and on the array's place.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(state)
  seeds = stochastic_rounding.seeds_of([x for _, x in leaves])
  codes, shapes = [], tree.flatten_up_to(like)
  for i, ((path, x), scale) in enumerate(
    zip(leaves, tree.flatten_up_to(scales))
  ):
    if not isinstance(scale, optax.MaskedNode):
      scale = jnp.expand_dims(scale, block_of(shapes[i].shape)[0] + 1)
      x = quantize(seeds[i], x, scale, field_of(path) in SIGNED)
    codes.append(x.reshape(shapes[i].shape))
  return Stored(tree.unflatten(codes), scales)


def unpack(stored: Stored) -> Any:
  """Returns the state in blocks, with moments in float32."""

  def restore(code, scale):
    blocks = code.reshape(split_shape(code.shape))
    if isinstance(scale, optax.MaskedNode):
      return blocks
    axis, _ = block_of(code.shape)
    return dequantize(blocks, jnp.expand_dims(scale, axis + 1))

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
  last = len(shape) - 1
  axes = [last - 1, last] if last else [0]
  # In a table of tokens, a block is of one token.
  if last and shape[last - 1] > TALL * shape[last]:
    axes.reverse()
  lengths = [(axis, length_of(shape[axis])) for axis in axes]
  return next((found for found in lengths if found[1] >= SHORTEST), None)


def length_of(n: int) -> int:
  """Returns the length of an axis's blocks: the largest divisor that fits.

  If possible their number is a multiple of ALIGNED.
  """
  divisors = [d for d in range(1, min(n, BLOCK) + 1) if n % d == 0]
  even = [d for d in divisors if n // d % ALIGNED == 0 and d >= SHORTEST]
  return max(even or divisors)


def split_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns a shape with the axis of its blocks as two: blocks, and numbers."""
  found = block_of(shape)
  if not found:
    return shape
  axis, length = found
  return (*shape[:axis], shape[axis] // length, length, *shape[axis + 1 :])


def largest(x: Float[Array, '*dims'], axis: int) -> Float[Array, '*blocks']:
  """Returns the largest magnitude along an axis; NaN if one has no limit."""
  # A compiler may leave NaN out of a largest number.
  finite = jnp.isfinite(x).all(axis)
  return jnp.where(finite, jnp.abs(x).max(axis), jnp.nan)


def quantize(
  seed: UInt32[ArrayLike, ''],
  x: Float[Array, '*dims'],
  scales: Float[Array, '*#dims'],
  signed: bool,
) -> Integer[Array, '*dims']:
  """Quantises an array.

  Args:
    seed: of the random bits.
    x: float32.
    scales: the largest magnitude of each block.
    signed: whether numbers may be below 0.

  Returns:
    Codes, int8 or, without sign, uint8.
  """
  shares = jnp.abs(x) / jnp.where(scales == 0, 1.0, scales)
  # The share at or below each, and the one above it.
  low = code_below(shares, signed)
  below, above = share_of(low, signed), share_of(low + 1, signed)
  bits = stochastic_rounding.random_bits(seed, x.shape)
  noise = bits.astype(jnp.float32) / 2**16
  codes = low + (noise * (above - below) < shares - below)
  if signed:
    return jnp.where(x < 0, -codes, codes).astype(jnp.int8)
  return jnp.where((codes == 0) & (x > 0), 1, codes).astype(jnp.uint8)


def dequantize(
  codes: Integer[Array, '*dims'], scales: Float[Array, '*#dims']
) -> Float[Array, '*dims']:
  """Returns the numbers of codes, as float32; arguments as of `quantize`."""
  shares = share_of(jnp.abs(codes.astype(jnp.float32)), codes.dtype == jnp.int8)
  return jnp.where(codes < 0, -shares, shares) * scales


def largest_code(signed: bool) -> int:
  """The code of 1."""
  return 127 if signed else 255


def share_of(
  code: Float[Array, '*dims'], signed: bool
) -> Float[Array, '*dims']:
  """Returns the share that a code without sign stands for."""
  return jnp.square(jnp.square(code / largest_code(signed)))


def code_below(
  shares: Float[Array, '*dims'], signed: bool
) -> Float[Array, '*dims']:
  """Returns the code of the share next below each."""
  count = largest_code(signed)
  root = jnp.sqrt(jnp.sqrt(shares))
  # The largest one has no share above it.
  return jnp.minimum(jnp.floor(root * count), count - 1)
