"""Schedule-free AdamW, and the average that it is evaluated with.

Defazio et al. 2024 (arXiv 2405.15682): gradients are taken at y, a mean of the
fast z and their average x. y are the parameters of a run; x takes the place of
its EMA, so that it is what is sampled, saved as EMA and exported. It is not
read in training: optax computes it from y and z.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import ArrayLike, Float

from sdxl_jax.ema import partial_trees, transform
from sdxl_jax.training import decay_mask, learning_rates, stochastic_rounding


def schedule_free_adamw(
  rate: Float[ArrayLike, ''],
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  rules: Any = (),
) -> optax.GradientTransformation:
  """Makes the optimizer for one update at a rate.

  Args:
    rate: of this update; those of the warm-up weigh little in the average.
    b1: share of x in y.
    b2, eps, weight_decay: as of AdamW; what decays are kernels, at y.
    rules: of learning_rates, of the steps of z.
  """
  steps = optax.chain(
    optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
    optax.add_decayed_weights(weight_decay, decay_mask.make_decay_mask),
    optax.scale_by_learning_rate(rate),
  )
  return optax.contrib.schedule_free(
    learning_rates.scaled(steps, rules), rate, b1
  )


def with_average(
  optimizer: optax.GradientTransformation, b1: float, dtype: str
) -> optax.GradientTransformation:
  """Adds the average x to the state, in the place of an EMA.

  Args:
    optimizer: a chain with `schedule_free_adamw`, or several.
    b1: share of x in y.
    dtype: of x, one of stochastic_rounding.DTYPES.
  """

  def stored(count, x, is_first=False):
    state = transform.EmaState(count, (x,))
    if dtype == 'float32':
      return state
    return stochastic_rounding.narrow(state, is_first=is_first)

  def init(params):
    x, count = jax.tree.map(jnp.copy, params), jnp.zeros([], jnp.int32)
    return optimizer.init(params), stored(count, x, is_first=True)

  def update(updates, state, params=None):
    inner, average = state
    updates, inner = optimizer.update(updates, inner, params)
    y = optax.apply_updates(params, updates)
    return updates, (inner, stored(average.count + 1, average_of(inner, y, b1)))

  return optax.GradientTransformation(init, update)


def average_of(opt_state: Any, y: Any, b1: float) -> Any:
  """Returns x of y = b1 x + (1 - b1) z; y where a state has no z of it."""
  fast = {}
  for node in jax.tree.leaves(opt_state, is_leaf=is_schedule_free):
    if is_schedule_free(node):
      fast |= partial_trees.flat(node.z)

  def average(path, y):
    z = fast.get(partial_trees.path_of(path))
    return y if z is None else (y - (1 - b1) * z) / b1

  return jax.tree_util.tree_map_with_path(average, y)


def is_schedule_free(node: Any) -> bool:
  """Whether a node of a state is that of a schedule-free optimizer."""
  return isinstance(node, optax.contrib.ScheduleFreeState)
