"""Stores what an optimizer keeps in bfloat16, rounded at random.

To the nearest, an average that moves by less than half a step of its type, as
moments and EMA do, would stay where it is. Rounded up with a probability of the
part that is cut off, it moves as much in expectation (Gupta et al. 2015, arXiv
1502.02551, section 3).
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, UInt32

DTYPES = 'float32', 'bfloat16'
SEED = 20150209


def stored_as(
  transformation: optax.GradientTransformation,
  dtype: str,
  fields: Collection[str] | None = None,
) -> optax.GradientTransformation:
  """Wraps a transformation, which still computes in float32.

  The state has the same tree, so that a checkpoint of one type is restored to
  the other.

  Args:
    transformation: one of its integers counts the updates.
    dtype: one of DTYPES, of the arrays of its state.
    fields: of named tuples in its state, whose arrays they are; None: all.
  """
  if dtype == 'float32':
    return transformation

  def init(params):
    return narrow(transformation.init(params), fields, is_first=True)

  def update(updates, state, params=None):
    updates, state = transformation.update(updates, widen(state), params)
    return updates, narrow(state, fields)

  return optax.GradientTransformation(init, update)


def widen(state: Any) -> Any:
  """Returns the state with arrays of bfloat16 as float32, which is exact."""
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state
  )


def narrow(
  state: Any,
  fields: Collection[str] | None = None,
  is_first: bool = False,
) -> Any:
  """Returns the state with arrays of float32 rounded to bfloat16.

  The random numbers depend on the number of updates and on the array's place.

  Args:
    state: tree of arrays.
    fields: of named tuples in it, whose arrays are rounded; None: all are.
    is_first: whether it is before all updates: 0, or an EMA that begins as a
      copy of the parameters. It is rounded to the nearest, for nothing adds up
      yet, and random bits of constant keys would be computed for all arrays
      while the program compiles.
  """

  def is_rounded(path, x):
    names = {getattr(key, 'name', None) for key in path}
    return x.dtype == jnp.float32 and (fields is None or names & {*fields})

  leaves, tree = jax.tree_util.tree_flatten_with_path(state)
  seeds = None if is_first else seeds_of([x for _, x in leaves])
  rounded = []
  for i, (path, x) in enumerate(leaves):
    if is_rounded(path, x):
      x = (
        x.astype(jnp.bfloat16)
        if is_first
        else round_stochastically(seeds[i], x)
      )
    rounded.append(x)
  return jax.tree.unflatten(tree, rounded)


def seeds_of(leaves: Sequence[Any]) -> UInt32[Array, ' n']:
  """Returns a seed for each array of a state, of the update that it counts."""
  count = next(x for x in leaves if jnp.issubdtype(x.dtype, jnp.integer))
  key = jax.random.fold_in(jax.random.key(SEED), count)
  return jax.random.bits(key, (len(leaves),), jnp.uint32)


def random_bits(
  seed: UInt32[ArrayLike, ''], shape: Sequence[int]
) -> UInt32[Array, '*dims']:
  """Returns 16 random bits for each element, from a hash of its place.

  What jax.random draws for hundreds of arrays of a state takes a CPU's compiler
  minutes. The constants are those of lowbias32 (Wellons 2018, "Prospecting for
  Hash Functions"). The bits do not depend on how the array is sharded.
  """
  x = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    x = x * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  x = (x * jnp.uint32(0x9E3779B9)) ^ seed
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return (x ^ (x >> 16)) & 0xFFFF


def round_stochastically(
  seed: UInt32[ArrayLike, ''], x: Float[Array, '*dims']
) -> Float[Array, '*dims']:
  """Rounds float32 to one of the two nearest bfloat16.

  A bfloat16 is the upper half of a float32: adding 16 random bits to the lower
  half carries with a probability of what is cut off. NaN and infinities, and
  what bfloat16 has already, stay as they are.

  Args:
    seed: of the random bits.
    x: float32.

  Returns:
    bfloat16.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  upper = ((bits + random_bits(seed, x.shape)) >> 16).astype(jnp.uint16)
  rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
  # The largest numbers would carry into infinity, and NaN into others.
  fits = jnp.isfinite(x) & jnp.isfinite(rounded)
  return jnp.where(fits, rounded, x.astype(jnp.bfloat16))
