"""CAME: Adafactor with a momentum, damped where it is unsteady.

Luo et al. 2023 (arXiv 2307.02047), algorithm 2. The mean square of the gradient
is kept by rows and columns alone; so is that of what separates an update from
its momentum, by whose root the momentum is divided.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

# The constants of the paper, which do not depend on the net.
EPS_SQUARE, EPS_RESIDUAL = 1e-30, 1e-16
CLIP_RMS = 1.0


class CameState(NamedTuple):
  """State of `scale_by_came`; arrays of less than two axes have no factors."""

  count: jax.Array  # int32 [], updates so far
  mu: Any  # the momentum, of the parameters' shapes
  row: Any  # mean squares of the gradient, over the last axis
  col: Any  # the same over the axis before it
  residual_row: Any  # mean squares of update - momentum
  residual_col: Any
  square: Any  # of the gradient, where there are no factors


def scale_by_came(
  b1: float = 0.9, b2: float = 0.999, b3: float = 0.9999
) -> optax.GradientTransformation:
  """Scales gradients as CAME does, without learning rate and weight decay.

  Args:
    b1: decay of the momentum.
    b2: decay of the mean squares of the gradient.
    b3: decay of the mean squares of what is unsteady.
  """

  def init(params):
    def means(axis):
      return jax.tree.map(lambda x: factor_like(x, axis), params)

    return CameState(
      count=jnp.zeros([], jnp.int32),
      mu=jax.tree.map(jnp.zeros_like, params),
      row=means(-1),
      col=means(-2),
      residual_row=means(-1),
      residual_col=means(-2),
      square=jax.tree.map(
        lambda x: optax.MaskedNode() if x.ndim >= 2 else jnp.zeros_like(x),
        params,
      ),
    )

  def update(updates, state, params=None):
    del params
    leaves, tree = jax.tree.flatten(updates)
    fields = {
      name: tree.flatten_up_to(getattr(state, name))
      for name in CameState._fields[1:]
    }
    # A state of each array, and back to a tree of each field.
    states = [
      CameState(state.count, **{name: x[i] for name, x in fields.items()})
      for i in range(len(leaves))
    ]
    found = [step(g, own, b1, b2, b3) for g, own in zip(leaves, states)]
    new = {
      name: tree.unflatten([getattr(own, name) for _, own in found])
      for name in CameState._fields[1:]
    }
    count = optax.safe_increment(state.count)
    return tree.unflatten([u for u, _ in found]), CameState(count, **new)

  return optax.GradientTransformation(init, update)


def factor_like(x: Array, axis: int) -> Any:
  """Returns zeros for the means over an axis; nothing for a vector."""
  if x.ndim < 2:
    return optax.MaskedNode()
  return jnp.zeros_like(x.mean(axis))


def step(
  g: Float[Array, '*dims'], state: CameState, b1: float, b2: float, b3: float
) -> tuple[Float[Array, '*dims'], CameState]:
  """Returns the update of one array, and the state's fields of it."""

  def average(mean, x, decay):
    return decay * mean + (1 - decay) * x

  square = jnp.square(g) + EPS_SQUARE
  if g.ndim < 2:
    mean = average(state.square, square, b2)
    update = clip_rms(g * jax.lax.rsqrt(mean))
    mu = average(state.mu, update, b1)
    return mu, state._replace(mu=mu, square=mean)
  row = average(state.row, square.mean(-1), b2)
  col = average(state.col, square.mean(-2), b2)
  update = clip_rms(g * inverse_root(row, col))
  mu = average(state.mu, update, b1)
  # How far the update lies from what the momentum expects.
  residual = jnp.square(update - mu) + EPS_RESIDUAL
  residual_row = average(state.residual_row, residual.mean(-1), b3)
  residual_col = average(state.residual_col, residual.mean(-2), b3)
  return mu * inverse_root(residual_row, residual_col), CameState(
    state.count, mu, row, col, residual_row, residual_col, state.square
  )


def inverse_root(
  row: Float[Array, '*stack rows'], col: Float[Array, '*stack cols']
) -> Float[Array, '*stack rows cols']:
  """Returns 1 / sqrt(row col / mean(row)), by rows and columns."""
  by_row = jax.lax.rsqrt(row / row.mean(-1, keepdims=True))
  return by_row[..., None] * jax.lax.rsqrt(col)[..., None, :]


def clip_rms(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Scales an array whose root mean square is above CLIP_RMS down to it."""
  rms = jnp.sqrt(jnp.square(x).mean())
  return x / jnp.maximum(1.0, rms / CLIP_RMS)
