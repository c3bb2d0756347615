"""Optax transforms that average the parameters (EMA)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdxl_jax.ema import partial_trees, post_hoc


class EmaState(NamedTuple):
  """State of `averages`; the field names are paths in checkpoints."""

  count: jax.Array  # int32 [], updates so far
  params: tuple[optax.Params, ...]  # the averages of the parameters


def ema(decay: float) -> optax.GradientTransformation:
  """Averages the parameters that a chain produces; comes last in it.

  p_ema = d p_ema + (1 - d) p with d = min(decay, (1 + n) / (10 + n)), n
  counting from 1: the warm-up of the reference (sgm, LitEma).
  """
  return averages(lambda n: jnp.minimum(decay, (1 + n) / (10 + n)))


def power_ema(*sigma_rel: float) -> optax.GradientTransformation:
  """Averages whose widths are these shares of the training so far.

  d = (1 - 1 / n)^(gamma + 1) (Karras et al. 2024, equation 7). From snapshots
  of two of them, `post_hoc` reconstructs an average of any width.
  """

  def make_decay(gamma):
    return lambda n: (1 - 1 / n) ** (gamma + 1)

  gammas = [post_hoc.gamma_of(width) for width in sigma_rel]
  return averages(*map(make_decay, gammas))


def averages(*decays: Callable) -> optax.GradientTransformation:
  """Computes p_ema = d p_ema + (1 - d) p for each d(n), n updates from 1."""

  def init(params):
    copies = tuple(jax.tree.map(jnp.copy, params) for _ in decays)
    return EmaState(jnp.zeros([], jnp.int32), copies)

  def update(updates, state, params=None):
    count = state.count + 1
    params = optax.apply_updates(params, updates)

    def average(decay, mean):
      d = decay(count.astype(jnp.float32))
      # In this form a parameter that has not changed stays, bit for bit.
      return jax.tree.map(
        lambda p_ema, p: p_ema - (1 - d) * (p_ema - p), mean, params
      )

    return updates, EmaState(count, tuple(map(average, decays, state.params)))

  return optax.GradientTransformation(init, update)


def ema_params(opt_state: Any, which: int = 0) -> Any:
  """Returns the averaged parameters in the state of a chain with an EMA.

  Args:
    opt_state: tree of arrays.
    which: of the averages of power_ema.

  Raises:
    ValueError: if the chain has no EMA.
  """

  return ema_state(opt_state).params[which]


def averaged(params: Any, opt_state: Any) -> Any:
  """Returns the parameters, averaged where the chain has an EMA of them.

  Args:
    params: tree of nested dicts; of those that are frozen there is no EMA.
    opt_state: of a chain with an EMA.
  """
  return partial_trees.merge(params, ema_params(opt_state))


def updates(opt_state: Any) -> jax.Array:
  """Returns the updates that the EMA in the state of a chain has counted."""
  return ema_state(opt_state).count


def ema_state(opt_state: Any) -> EmaState:
  """Returns the state of the EMA in that of a chain.

  Raises:
    ValueError: if the chain has no EMA.
  """

  def is_ema(x):
    return isinstance(x, EmaState)

  for x in jax.tree.leaves(opt_state, is_leaf=is_ema):
    if is_ema(x):
      return x
  raise ValueError(
    'this optimizer keeps no EMA: add ema.transform.ema to its chain'
  )
