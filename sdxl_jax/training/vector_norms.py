"""Keeps the norms of the vectors of learned words, update by update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def keep_norms() -> optax.GradientTransformation:
  """Makes the last step of an optimizer, which keeps the norms of vectors.

  A vector of a word may grow far beyond those of a text encoder's table, which
  then drowns the other words of a prompt. Here each vector p and its update u
  give (p + u) |p| / |p + u|, so that it keeps the norm that it began with. All
  other parameters are updated as they were.
  """

  def update(updates, state, params):
    def keep(path, update, x):
      if path[0].key != 'words':
        return update
      moved = (x + update).astype(jnp.float32)
      scale = norms(x.astype(jnp.float32)) / norms(moved)
      return (moved * scale).astype(x.dtype) - x

    return jax.tree_util.tree_map_with_path(keep, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def norms(vectors: Any) -> Any:
  """Returns the norm of each vector, [n, 1]; 1 where it is 0."""
  found = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  return jnp.where(found == 0, 1.0, found)
