"""The training state, and the functions that a task trains it by."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax
import optax

from sdxl_jax.ema import partial_trees
from sdxl_jax.training import estimated_rates


@flax.struct.dataclass
class LossScale:
  """What dynamic loss scaling goes on from; see loss_scaling."""

  scale: jax.Array  # float32 [], a power of two
  finite: jax.Array  # int32 [], steps without overflow since it last changed


@flax.struct.dataclass
class State:
  """All that changes from step to step.

  Random numbers are folded from the seed and the step instead.
  """

  step: jax.Array  # int32 [], optimizer steps done
  params: Any  # the trained nets, by name
  opt_state: Any  # of optax, EMA included
  loss_scale: LossScale | None = None  # of float16; None: no scaling
  # Of timestep_importance; None: timesteps are not drawn by their loss.
  loss_history: jax.Array | None = None

  @property
  def scale(self) -> tuple[jax.Array, ...]:
    """What `gradients` of a Task take besides: the scale, if there is one."""
    return () if self.loss_scale is None else (self.loss_scale.scale,)

  @property
  def shared(self) -> dict[str, jax.Array]:
    """What all examples of a batch have in common, besides its rows."""
    if self.loss_history is None:
      return {}
    return {'loss_history': self.loss_history}


def whole(params: Any) -> Any:
  """Returns the parameters: all of them are trained."""
  return params


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained, as pure functions.

  An optimizer step takes `micro_batches` batches, each of one bucket, and one
  update. Gradients and update are apart, since only the gradients are compiled
  per bucket.

  init(key, pretrained) -> State, with the nets in `pretrained` ({name: params})
  as they are and the others initialised from the key.
  gradients(params, frozen, batch, key, micro_step) -> (gradients, metrics),
  where `frozen` holds the nets that are not trained, by name, `key` is the
  run's and `micro_step` counts the micro-batches of the whole run. If the task
  `is_scaled`, the State's `scale` follows them.
  update(state, gradients) -> (State, metrics), from the gradients' sum over the
  micro-batches.
  batch_spec(bucket) -> {name: ShapeDtypeStruct} of a micro-batch of all hosts.
  The batch also has the State's `shared`, of the shapes in `shared`; then the
  gradients' metrics have `measured`, from which the loss history goes on.
  trained(params) -> the part of the parameters that has gradients.
  validate(params, frozen, batch) -> {name: float32 [b]} of each example, from
  the batch of `batch_spec` with `key`, uint32 [b, 2]; one of them is 'loss'.
  """

  init: Callable
  gradients: Callable
  update: Callable
  batch_spec: Callable
  micro_batches: int = 1
  is_scaled: bool = False  # see loss_scaling
  shared: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(
    default_factory=dict
  )
  trained: Callable = whole  # see learning_rates.train_part
  validate: Callable | None = None


def make_update(
  optimizer: optax.GradientTransformation, micro_batches: int
) -> Callable:
  """Makes the `update` of a Task, which takes the mean over micro-batches.

  What has no gradient stays as it is, and the optimizer does without it.
  """

  def update(state, gradients):
    # The mean over micro-batches, as one large batch would give.
    gradients = jax.tree.map(lambda x: x / micro_batches, gradients)
    trained = partial_trees.like(state.params, gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    params = partial_trees.merge(state.params, trained)
    metrics = {'grad_norm': optax.tree.norm(gradients)}
    estimate = estimated_rates.estimate(opt_state)
    if estimate is not None:
      metrics['d'] = estimate
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return new, metrics

  return update
