"""What a run carries from step to step, and what it asks of a task."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax
import optax


@flax.struct.dataclass
class State:
  """All that changes; randomness is folded from seed and step instead."""

  step: jax.Array  # int32 [], optimizer steps done
  params: Any  # the trained nets, by name
  opt_state: Any  # of optax, EMA included


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained, as pure functions.

  An optimizer step takes `parts` micro-batches, each of one bucket, and one
  update. The two are apart, since only the gradients are compiled per bucket.

  init(key, given) -> State, from the nets given (by name), else from the key.
  gradients(params, frozen, batch, key, part) -> (gradients, metrics), where
  `frozen` holds the nets that are not trained, by name, `key` is the run's and
  `part` counts the micro-batches of the whole run.
  update(state, gradients) -> (State, metrics), given the sum over the parts.
  batch_spec(bucket) -> {name: ShapeDtypeStruct} of a micro-batch, all hosts.
  """

  init: Callable
  gradients: Callable
  update: Callable
  batch_spec: Callable
  parts: int = 1


def make_update(optimizer, parts):
  """The `update` of a Task, with gradients summed over so many parts."""

  def update(state, gradients):
    gradients = jax.tree.map(lambda x: x / parts, gradients)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    metrics = {'grad_norm': optax.tree.norm(gradients)}
    return State(state.step + 1, params, opt_state), metrics

  return update
