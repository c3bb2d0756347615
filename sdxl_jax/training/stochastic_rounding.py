"""Stores what an optimizer keeps in bfloat16, rounded at random.

To the nearest, an average that moves by less than half a step of its type, as
moments and EMA do, would stay where it is. Rounded up with a probability of the
part that is cut off, it moves as much in expectation (Gupta et al. 2015, arXiv
1502.02551, section 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

DTYPES = 'float32', 'bfloat16'
SEED = 20150209


def stored_as(
  transformation: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
  """Wraps a transformation, which still computes in float32.

  The state has the same tree, so that a checkpoint of one type is restored to
  the other.

  Args:
    transformation: one of its integers counts the updates.
    dtype: one of DTYPES, of the arrays of its state.
  """
  if dtype == 'float32':
    return transformation

  def init(params):
    # Moments begin at 0 and an EMA as a copy of the parameters: to the nearest,
    # since nothing adds up yet, and random bits of update 0, a constant, would
    # be computed for all arrays while the program compiles.
    return jax.tree.map(
      lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x,
      transformation.init(params),
    )

  def update(updates, state, params=None):
    updates, state = transformation.update(updates, widen(state), params)
    return updates, narrow(state)

  return optax.GradientTransformation(init, update)


def widen(state: Any) -> Any:
  """Returns the state with arrays of bfloat16 as float32, which is exact."""
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state
  )


def narrow(state: Any) -> Any:
  """Returns the state with arrays of float32 rounded to bfloat16.

  The random numbers depend on the number of updates and on the array's place.
  """
  leaves, tree = jax.tree.flatten(state)
  count = next(x for x in leaves if jnp.issubdtype(x.dtype, jnp.integer))
  key = jax.random.fold_in(jax.random.key(SEED), count)
  rounded = [
    round_stochastically(jax.random.fold_in(key, i), x)
    if x.dtype == jnp.float32
    else x
    for i, x in enumerate(leaves)
  ]
  return jax.tree.unflatten(tree, rounded)


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
