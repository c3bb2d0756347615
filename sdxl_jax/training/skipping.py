"""Steps that leave the state as it is where loss or gradient are not finite."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdxl_jax.ema import transform
from sdxl_jax.training import train_state


def skip_non_finite(task: train_state.Task) -> train_state.Task:
  """Makes a Task that skips the update of a step that is not finite.

  Parameters, moments and averages stay; the step is counted, and the learning
  rate is that of the steps. The program decides, so that no host waits for it
  and all decide alike. Metric `skipped` counts the steps that were skipped
  since the start of the run.
  """

  def gradients(*arguments):
    values, metrics = task.gradients(*arguments)
    finite = jnp.array([jnp.isfinite(x).all() for x in metrics.values()]).all()
    # The gradient of an infinite loss may be finite.
    values = jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), values)
    return values, metrics

  def update(state, gradients):
    new, metrics = task.update(state, gradients)
    finite = jnp.isfinite(metrics['grad_norm'])
    params, opt_state = keep_unless(
      finite, (new.params, new.opt_state), (state.params, state.opt_state)
    )
    # Averages count the updates.
    skipped = new.step - transform.updates(opt_state)
    new = new.replace(params=params, opt_state=opt_state)
    return new, metrics | {'skipped': skipped}

  return dataclasses.replace(task, gradients=gradients, update=update)


def keep_unless(finite: jax.Array, new: Any, old: Any) -> Any:
  """Chooses between two trees; counts of schedules are always new."""

  def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)

  def choose(new, old):
    return new if is_schedule(new) else jnp.where(finite, new, old)

  return jax.tree.map(choose, new, old, is_leaf=is_schedule)
