"""What the gradients so far have left in an optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdxl_jax.ema import partial_trees
from sdxl_jax.training import eight_bit

# Fields of states that are above or below 0 only if there was a gradient; of
# several the first is taken.
FIELDS = 'nu', 'exp_avg_sq', 'mu'
# Adafactor adds it to all squares.
EPS = 1e-30


def of(
  opt_state: Any, params: dict[str, jax.Array]
) -> dict[str, tuple[jax.Array, ...]]:
  """Returns arrays that are 0 where a parameter never had a gradient.

  Args:
    opt_state: of any of our optimizers.
    params: {path: array}.

  Returns:
    {path: traces}, of what is trained; each broadcasts to the parameter's
    shape, and where any of them is 0 there was no gradient.
  """
  found, opt_state = {}, eight_bit.codes_of(opt_state)
  for node in jax.tree.leaves(opt_state, is_leaf=has_traces):
    if isinstance(node, optax.FactoredState):
      found |= of_factors(node, params)
    elif has_traces(node):
      field = next(name for name in FIELDS if hasattr(node, name))
      leaves = partial_trees.flat(getattr(node, field))
      found |= {path: (x,) for path, x in leaves.items()}
  return found


def has_traces(node: Any) -> bool:
  """Whether a node of a state is one whose fields hold traces."""
  fields = getattr(node, '_fields', ())
  return isinstance(node, optax.FactoredState) or bool({*FIELDS} & {*fields})


def of_factors(
  state: optax.FactoredState, params: dict[str, jax.Array]
) -> dict[str, tuple[jax.Array, ...]]:
  """Returns the traces of Adafactor, whose squares are of rows and columns."""

  def above(x):
    return jnp.maximum(x - 2 * EPS, 0.0)

  found = {}
  rows, columns = map(partial_trees.flat, (state.v_row, state.v_col))
  for path, square in partial_trees.flat(state.v).items():
    shape = params[path].shape
    if square.shape == shape:
      found[path] = (above(square),)
      continue
    # Means over the longest axis, and over the next.
    next_longest, longest = np.argsort(shape)[-2:]
    found[path] = (
      above(jnp.expand_dims(rows[path], int(longest))),
      above(jnp.expand_dims(columns[path], int(next_longest))),
    )
  return found
