"""The optax chain: clip, AdamW under a warm-up, and an EMA of the result."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class EmaState(NamedTuple):
  count: jax.Array  # int32 []
  params: optax.Params  # the averaged parameters


def ema(decay):
  """Averages the parameters that a chain produces; comes last in it.

  p_ema = d p_ema + (1 - d) p with d = min(decay, (1 + n) / (10 + n)), n
  counting from 1: the warm-up of the reference (sgm, LitEma).
  """

  def init(params):
    return EmaState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params))

  def update(updates, state, params=None):
    count = state.count + 1
    d = jnp.minimum(decay, (1 + count) / (10 + count))
    params = optax.apply_updates(params, updates)
    # Written so that what has not changed stays as it is, bit for bit.
    average = lambda p_ema, p: p_ema - (1 - d) * (p_ema - p)
    return updates, EmaState(count, jax.tree.map(average, state.params, params))

  return optax.GradientTransformation(init, update)


def ema_params(opt_state):
  """The averaged parameters inside the state of a chain that has an `ema`."""
  is_ema = lambda x: isinstance(x, EmaState)
  for x in jax.tree.leaves(opt_state, is_leaf=is_ema):
    if is_ema(x):
      return x.params
  raise ValueError(
    'this optimizer keeps no EMA: put optimizer.ema in its chain'
  )


def decays(params):
  """Mask of weight decay: kernels, but no bias, norm or embedding."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def learning_rate_schedule(learning_rate, warmup_steps, decay_steps=0):
  """Linear warm-up, then constant, or cosine to 0 at `decay_steps` if given."""
  if decay_steps:
    return optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, warmup_steps, decay_steps
    )
  return optax.linear_schedule(0.0, learning_rate, warmup_steps)


def make_optimizer(
  schedule, *, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0,
  ema_decay=0.9999,
):  # fmt: skip
  """AdamW (Loshchilov & Hutter 2019) after clipping by the global norm."""
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=decays),
    ema(ema_decay),
  )
