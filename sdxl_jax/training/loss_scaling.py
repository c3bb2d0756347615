"""Dynamic loss scaling, without which small gradients vanish in float16.

float16 has no number between 0 and 6e-8, and gradients of a mean over latents
are smaller than that. The loss is multiplied by a power of two, the gradients,
float32 by then, are divided by it. Gradients that overflow show that it is too
large: that step leaves parameters, moments and averages as they are, and the
next has half the factor. After many steps without, it doubles (Micikevicius et
al. 2018, Mixed Precision Training, section 3.2).

A step that is left out counts as any other for the data, the learning rate and
checkpoints, and not for Adam's bias correction and the averages. It is no step
of a loss that is not finite, which no scale can mend.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdxl_jax.training import train_state

SMALLEST, LARGEST = 1.0, 2.0**32
FACTOR = 2.0


def initial(scale: float) -> train_state.LossScale:
  """Returns the state of a run that begins with this scale."""
  return train_state.LossScale(jnp.float32(scale), jnp.int32(0))


def with_scale(
  state: train_state.State, shapes: train_state.State, scale: float
) -> train_state.State:
  """Adds the scale to a State that was saved without one, if it needs one.

  Args:
    state: as restored.
    shapes: the State as jax.ShapeDtypeStruct with shardings.
    scale: to begin with.
  """
  if shapes.loss_scale is None or state.loss_scale is not None:
    return state
  places = jax.tree.map(lambda x: x.sharding, shapes.loss_scale)
  return state.replace(loss_scale=jax.device_put(initial(scale), places))


def scaled_gradients(
  loss: Callable, params: Any, scale: jax.Array | None
) -> tuple[Any, dict[str, jax.Array]]:
  """Returns (gradients, metrics) of a loss, computed with the loss scaled.

  Args:
    loss: params -> (loss, metrics).
    params: tree of arrays of float32, or of another type with its range.
    scale: float32 [], a power of two; None: the loss is not scaled.

  Returns:
    Gradients of the loss itself, infinite or NaN where the scaled ones
    overflowed.
  """
  if scale is None:
    return jax.grad(loss, has_aux=True)(params)

  def scaled(params):
    value, metrics = loss(params)
    return value * scale, metrics

  gradients, metrics = jax.grad(scaled, has_aux=True)(params)
  # By a power of two: no digit is lost.
  return jax.tree.map(lambda x: x / scale, gradients), metrics


def scale_loss(
  task: train_state.Task, scale: float, steps: int
) -> train_state.Task:
  """Makes a Task whose loss is scaled, and whose State has the scale.

  Args:
    task: skips updates that are not finite; its gradients take a scale.
    scale: of the first step.
    steps: without overflow, after which the scale doubles.
  """

  def init(key, pretrained=None):
    state = task.init(key, pretrained)
    return state.replace(loss_scale=initial(scale))

  def update(state, gradients):
    new, metrics = task.update(state, gradients)
    finite = jnp.isfinite(metrics['grad_norm'])
    loss_scale = follow(state.loss_scale, finite, steps)
    metrics = metrics | {'loss_scale': state.loss_scale.scale}
    return new.replace(loss_scale=loss_scale), metrics

  return dataclasses.replace(task, init=init, update=update, is_scaled=True)


def follow(
  state: train_state.LossScale, finite: jax.Array, steps: int
) -> train_state.LossScale:
  """Returns the scale of the next step.

  Args:
    state: of this step.
    finite: bool [], whether its gradients are, on all devices.
    steps: without overflow, after which the scale doubles.
  """
  count = jnp.where(finite, state.finite + 1, 0)
  grows = count >= steps
  scale = jnp.where(
    finite,
    jnp.where(grows, state.scale * FACTOR, state.scale),
    state.scale / FACTOR,
  )
  return train_state.LossScale(
    jnp.clip(scale, SMALLEST, LARGEST), jnp.where(grows, 0, count)
  )


def can_fall(scale: float | None) -> bool:
  """Whether a smaller scale may mend gradients that are not finite.

  A loss that is not finite is none of its faults: it is not scaled yet.

  Args:
    scale: of a step; None: the loss is not scaled.
  """
  return scale is not None and scale > SMALLEST
