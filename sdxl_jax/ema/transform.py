"""Optax transforms that average the parameters (EMA)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdxl_jax.ema import post_hoc


class EmaState(NamedTuple):
  count: jax.Array  # int32 []
  params: tuple[optax.Params, ...]  # the averages of the parameters


def ema(decay):
  """Averages the parameters that a chain produces; comes last in it.

  p_ema = d p_ema + (1 - d) p with d = min(decay, (1 + n) / (10 + n)), n
  counting from 1: the warm-up of the reference (sgm, LitEma).
  """
  return averages(lambda n: jnp.minimum(decay, (1 + n) / (10 + n)))


def power_ema(*sigma_rel):
  """Averages whose widths are these shares of the training so far.

  d = (1 - 1 / n)^(gamma + 1) (Karras et al. 2024, equation 7). From snapshots
  of two of them, `post_hoc_ema` puts together one of any width.
  """
  gammas = [post_hoc.gamma_of(width) for width in sigma_rel]
  return averages(*(lambda n, g=g: (1 - 1 / n) ** (g + 1) for g in gammas))


def averages(*decays):
  """p_ema = d p_ema + (1 - d) p for each d(n), n counting updates from 1."""

  def init(params):
    copy = lambda: jax.tree.map(jnp.copy, params)
    return EmaState(jnp.zeros([], jnp.int32), tuple(copy() for _ in decays))

  def update(updates, state, params=None):
    count = state.count + 1
    params = optax.apply_updates(params, updates)

    def average(decay, mean):
      d = decay(count.astype(jnp.float32))
      # Written so that what has not changed stays as it is, bit for bit.
      follow = lambda p_ema, p: p_ema - (1 - d) * (p_ema - p)
      return jax.tree.map(follow, mean, params)

    return updates, EmaState(count, tuple(map(average, decays, state.params)))

  return optax.GradientTransformation(init, update)


def ema_params(opt_state, which=0):
  """The averaged parameters inside the state of a chain that has an EMA.

  `which` chooses among several, as power_ema keeps.
  """
  is_ema = lambda x: isinstance(x, EmaState)
  for x in jax.tree.leaves(opt_state, is_leaf=is_ema):
    if is_ema(x):
      return x.params[which]
  raise ValueError(
    'this optimizer keeps no EMA: put optimizer.ema in its chain'
  )
