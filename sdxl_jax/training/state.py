"""What a run carries from step to step, and what it asks of a task."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax


@flax.struct.dataclass
class State:
  """All that changes; randomness is folded from seed and step instead."""

  step: jax.Array  # int32 [], optimizer steps done
  params: Any  # the trained nets, by name
  opt_state: Any  # of optax, EMA included


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained, as pure functions.

  init(key, given) -> State, from the nets given (by name), else from the key.
  gradients(state, frozen, batch, key) -> (gradients, metrics), where `frozen`
  holds the nets that are not trained, by name, and `key` is the run's.
  update(state, gradients) -> (State, metrics): the same for every bucket, and
  so apart from the gradients, which are compiled once per bucket.
  batch_spec(bucket) -> {name: ShapeDtypeStruct} of a global batch.
  """

  init: Callable
  gradients: Callable
  update: Callable
  batch_spec: Callable
