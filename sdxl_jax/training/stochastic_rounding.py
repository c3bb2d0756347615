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
from jaxtyping import Array, Float, PRNGKeyArray

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
  key = key_of([x for _, x in leaves])
  rounded = []
  for i, (path, x) in enumerate(leaves):
    if is_rounded(path, x):
      x = (
        x.astype(jnp.bfloat16)
        if is_first
        else round_stochastically(jax.random.fold_in(key, i), x)
      )
    rounded.append(x)
  return jax.tree.unflatten(tree, rounded)


def key_of(leaves: Sequence[Any]) -> PRNGKeyArray:
  """Returns the key of an update, by the count among a state's arrays."""
  count = next(x for x in leaves if jnp.issubdtype(x.dtype, jnp.integer))
  return jax.random.fold_in(jax.random.key(SEED), count)


def round_stochastically(
  key: PRNGKeyArray, x: Float[Array, '*dims']
) -> Float[Array, '*dims']:
  """Rounds float32 to one of the two nearest bfloat16.

  A bfloat16 is the upper half of a float32: adding 16 random bits to the lower
  half carries with a probability of what is cut off. NaN and infinities, and
  what bfloat16 has already, stay as they are.

  Args:
    key: of the random bits.
    x: float32.

  Returns:
    bfloat16.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  upper = ((bits + noise) >> 16).astype(jnp.uint16)
  rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
  # The largest numbers would carry into infinity, and NaN into others.
  fits = jnp.isfinite(x) & jnp.isfinite(rounded)
  return jnp.where(fits, rounded, x.astype(jnp.bfloat16))
