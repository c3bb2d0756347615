"""Computes gradients in the type that the nets compute in.

A net of dtype bfloat16 rounds its float32 parameters where each is used, and
JAX widens the gradient there again. If the parameters are rounded before the
nets instead, what devices gather of them, what they sum up as gradients, and
what a loop over blocks stacks of both takes half the bytes. Norms' scales and
biases are rounded too, the sum over devices is that of bfloat16, and that over
micro-batches stays float32.
"""

import dataclasses

import jax

from sdxl_jax.training import train_state

DTYPES = 'float32', 'bfloat16'


def gradients_in(task: train_state.Task, dtype: str) -> train_state.Task:
  """Makes a Task whose gradients are computed in a type.

  Args:
    task: with float32 parameters, and nets that compute in the type.
    dtype: one of DTYPES.

  Returns:
    A Task whose gradients are float32 again, with the digits of the type.
  """
  if dtype == 'float32':
    return task

  def gradients(params, *args):
    rounded = jax.tree.map(lambda x: x.astype(dtype), params)
    found, metrics = task.gradients(rounded, *args)
    found = jax.tree.map(lambda g, p: g.astype(p.dtype), found, params)
    return found, metrics

  return dataclasses.replace(task, gradients=gradients)


def check(dtypes: dict[str, str | None], dtype: str) -> None:
  """Raises ValueError if a net would not compute in the type.

  Args:
    dtypes: {trained net: type that it computes in; None: it has none}.
    dtype: one of DTYPES.
  """
  others = [
    f'{n} in {d}' if d else f'{n}, which has no type of its own'
    for n, d in dtypes.items()
    if d != dtype
  ]
  if dtype != 'float32' and others:
    raise ValueError(
      f'config.optimizer.gradients_dtype is {dtype!r}, but config.trained '
      f'has {", ".join(others)}: set config.NET.dtype to {dtype!r}, or '
      "gradients_dtype to 'float32'"
    )
