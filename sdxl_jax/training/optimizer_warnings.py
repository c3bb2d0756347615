"""Warns of learning rates and averages that are possible, but hardly meant.

As config_warnings: each is one line with what is set, what follows from it, and
what to set instead.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from sdxl_jax.training import optimizer, optimizer_fields

# Most weights of SDXL's nets are larger.
TYPICAL_WEIGHT = 0.01
LARGE_RATE = 0.1  # above it AdamW moves a weight by more than its magnitude
LARGE_DECAY = 0.05  # share of a kernel that decays in a step
SMALL_SHARE = 0.01  # of an estimated rate; rates of AdamW are below it
# Optimizers by their names in a sentence.
NAMES = {'adamw': 'AdamW'}


def of_rate(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns of a learning rate that is 0, huge, tiny, or never reached."""
  c, total = config.optimizer, config.total_steps
  name, estimates = NAMES.get(c.name, c.name), c.name in optimizer.ESTIMATING
  if c.learning_rate == 0:
    yield 'config.optimizer.learning_rate is 0: nothing will be learned'
  elif estimates and c.learning_rate < SMALL_SHARE:
    yield (
      f'config.optimizer.learning_rate is {c.learning_rate}: {name} multiplies '
      'the rate that it estimates by it; 1.0 is usual'
    )
  if c.learning_rate > LARGE_RATE and not estimates:
    yield (
      f'config.optimizer.learning_rate is {c.learning_rate}: {name} moves each '
      'parameter by about that much in every step; 1e-4 is usual'
    )
  if c.learning_rate * c.weight_decay > LARGE_DECAY and not estimates:
    yield (
      f'config.optimizer.weight_decay is {c.weight_decay}: every step takes '
      f'{c.learning_rate * c.weight_decay:.0%} of each kernel away; 0.01 is '
      'usual'
    )
  schedule = optimizer_fields.schedule_of(c)
  if c.name == optimizer.SCHEDULE_FREE and schedule != 'constant':
    yield (
      f'config.optimizer.schedule is {schedule!r}, but {name} averages in '
      "place of a decay: 'constant' is usual"
    )
  if c.warmup_steps >= total:
    reached = c.learning_rate * (total - 1) / c.warmup_steps
    yield (
      f'config.optimizer.warmup_steps is {c.warmup_steps:,}, but the run has '
      f'{total:,} steps: the learning rate ends at {reached:.2g} instead of '
      f'{c.learning_rate:g}'
    )


def of_average(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns of an EMA that is longer than the run."""
  c, total = config.optimizer, config.total_steps
  if c.ema_widths or c.name == optimizer.SCHEDULE_FREE:
    return
  length = math.inf if c.ema_decay == 1 else 1 / (1 - c.ema_decay)
  if length > total:
    # At most a fifth of the run, in round numbers.
    fitting = 1 - 1 / max(2, 10 ** math.floor(math.log10(total / 5)))
    yield (
      f'config.optimizer.ema_decay is {c.ema_decay}, an average over '
      f'{length:,.0f} steps, but the run has {total:,}: the average will be '
      f'one over the last ninth of the steps; {fitting:g} fits, 0 is none'
    )


def of_params(
  config: config_dict.ConfigDict, params: dict[str, Any]
) -> list[str]:
  """Warnings that follow from the number and the type of the parameters.

  Args:
    config: of the run.
    params: {net: tree of arrays or jax.ShapeDtypeStruct} that are trained.
  """
  c, lines = config.optimizer, []
  if c.name in optimizer.ESTIMATING:  # what the steps will be is not known
    return lines
  count = sum(x.size for x in jax.tree.leaves(params))
  # Adam divides by the gradient's magnitude plus eps: if the clipped gradient
  # is smaller than eps, so is its step smaller than the learning rate.
  step = c.learning_rate
  if c.clip_norm and c.name == 'adamw':
    gradient = c.clip_norm / math.sqrt(count)
    step *= 1 / (1 + c.eps / gradient)
    if step < 0.5 * c.learning_rate:
      lines.append(
        f'config.optimizer.clip_norm is {c.clip_norm:g}, {gradient:.1g} for '
        f'each of {count:,} parameters; next to config.optimizer.eps, '
        f'{c.eps:g}, that makes steps of {step:.1g} of a learning rate of '
        f'{c.learning_rate:g}; 1 is usual, 0 is off'
      )
  # One line for all nets of a type.
  nets = {}
  for net, tree in params.items():
    for dtype in {x.dtype.name for x in jax.tree.leaves(tree)}:
      nets.setdefault(dtype, []).append(net)
  for dtype in sorted(nets):
    lines += of_resolution(config, ', '.join(sorted(nets[dtype])), dtype, step)
  return lines


def of_resolution(
  config: config_dict.ConfigDict, nets: str, dtype: str, step: float
) -> Iterator[str]:
  """Warns of steps that a type of parameters cannot hold.

  Args:
    config: of the run.
    nets: names of those whose parameters they are.
    dtype: of the parameters.
    step: magnitude of an update.
  """
  c, eps = config.optimizer, float(jnp.finfo(dtype).eps)
  # Half of the distance to the next number is rounded away.
  least = TYPICAL_WEIGHT * eps / 2
  if 0 < step < least:
    yield (
      f'config.optimizer makes steps of {step:.1g}, but {dtype} parameters of '
      f'{nets} that are about {TYPICAL_WEIGHT} change by {least:.1g} at least: '
      'most of them will stay as they are; raise learning_rate'
      + ('' if dtype == 'float32' else " or set param_dtype to 'float32'")
    )
  averages = not c.ema_widths and c.name != optimizer.SCHEDULE_FREE
  if averages and 0 < 1 - c.ema_decay < eps / 2:
    yield (
      f'config.optimizer.ema_decay is {c.ema_decay}, too near to 1 for the '
      f'{dtype} parameters of {nets}: their EMA will stop to follow them; set '
      "param_dtype to 'float32', or a smaller decay"
    )
