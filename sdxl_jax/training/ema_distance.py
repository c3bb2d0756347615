"""The metric ema_distance: how far the average is from the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sdxl_jax.ema import partial_trees, transform
from sdxl_jax.training import train_state


def of_line(
  state: train_state.State, step: int, every: int
) -> dict[str, jax.Array]:
  """Returns the metric for the last step of a line of metrics, {} for others.

  Args:
    state: after the step.
    step: its number, from 0.
    every: steps between two lines.
  """
  if (step + 1) % every:
    return {}
  average = transform.ema_params(state.opt_state)
  # Of what is frozen there is no average.
  averaged = partial_trees.like(state.params, average)
  return {'ema_distance': relative_distance(averaged, average)}


@jax.jit
def relative_distance(params: Any, average: Any) -> Float[Array, '']:
  """Returns |params - average| / |params|, norms over all arrays."""

  def difference(x, y):
    return x.astype(jnp.float32) - y.astype(jnp.float32)

  length = optax.tree.norm(
    jax.tree.map(lambda x: x.astype(jnp.float32), params)
  )
  moved = optax.tree.norm(jax.tree.map(difference, params, average))
  return moved / jnp.maximum(length, 1e-30)
