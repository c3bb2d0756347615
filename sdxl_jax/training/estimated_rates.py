"""Prodigy and D-Adapt Adam, which estimate the learning rate themselves.

Mishchenko & Defazio 2024 (arXiv 2306.06101), Defazio & Mishchenko 2023 (arXiv
2301.07733): the rate is a share of an estimate d of how far the parameters are
from where they should be, which only grows. config.optimizer.learning_rate is
that share; 1 is usual.

optax has both. Its estimates become NaN in an update without any gradient, or
with a rate of 0, as a warm-up begins with; such updates are left out here. Its
weight decay takes all parameters; here it is masked.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, ArrayLike, Float

from sdxl_jax.training import decay_mask

States = optax.contrib.ProdigyState, optax.contrib.DAdaptAdamWState


def prodigy(
  rate: Float[ArrayLike, ''],
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  d0: float = 1e-6,  # the first estimate
  d_coef: float = 1.0,  # of the estimate
  safeguard_warmup: bool = False,  # without the rate in the denominator of d
) -> optax.GradientTransformation:
  """Makes Prodigy for one update, at a share of the estimate."""
  inner = optax.contrib.prodigy(
    rate,
    (b1, b2),
    eps=eps,
    estim_lr0=d0,
    estim_lr_coef=d_coef,
    safeguard_warmup=safeguard_warmup,
  )
  return guard(inner, rate, make_decay(rate, b1, b2, weight_decay))


def dadapt_adam(
  rate: Float[ArrayLike, ''],
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  d0: float = 1e-6,
) -> optax.GradientTransformation:
  """Makes AdamW by D-Adaptation for one update; arguments as `prodigy`."""
  inner = optax.contrib.dadapt_adamw(rate, (b1, b2), eps=eps, estim_lr0=d0)
  return guard(inner, rate, make_decay(rate, b1, b2, weight_decay))


def make_decay(
  rate: Float[ArrayLike, ''], b1: float, b2: float, weight_decay: float
) -> Callable[[Any], Float[Array, '']]:
  """Makes the function of a state: the share of a kernel that decays."""

  def share(state):
    count = state.count + 1
    correction = (1 - b2**count) ** 0.5 / (1 - b1**count)
    return weight_decay * state.estim_lr * rate * correction

  return share


def guard(
  inner: optax.GradientTransformation,
  rate: Float[ArrayLike, ''],
  decay: Callable[[Any], Float[Array, '']],
) -> optax.GradientTransformation:
  """Adds weight decay, and leaves out updates that have nothing to go by.

  Args:
    inner: without weight decay.
    rate: of this update.
    decay: of the state before it.
  """

  def init(params):
    # Prodigy keeps where it began, which is not donated with the parameters.
    return inner.init(jax.tree.map(jnp.copy, params))

  def update(updates, state, params=None):
    total = sum(jnp.abs(g).sum() for g in jax.tree.leaves(updates))
    # NaN is none of these: it shows in the parameters. A compiler would repeat
    # the sum for each array, for minutes, but it repeats no root.
    is_still = (rate == 0) | (jnp.sqrt(total) == 0)
    share = decay(state)
    updates, new = inner.update(updates, state, params)
    mask = decay_mask.make_decay_mask(params)
    updates = jax.tree.map(
      lambda u, p, decays: u - share * p if decays else u, updates, params, mask
    )
    return jax.tree.map(
      lambda x, y: jnp.where(is_still, y, x),
      (updates, new),
      (jax.tree.map(jnp.zeros_like, updates), state),
    )

  return optax.GradientTransformation(init, update)


def estimate(opt_state: Any) -> Float[Array, ''] | None:
  """Returns d in the state of an optimizer, None if it estimates none."""
  for node in jax.tree.leaves(opt_state, is_leaf=is_estimating):
    if is_estimating(node):
      return node.estim_lr
  return None


def is_estimating(node: Any) -> bool:
  """Whether a node of a state is that of Prodigy or D-Adaptation."""
  return isinstance(node, States)
