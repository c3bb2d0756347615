"""The optimizer: gradient clipping and AdamW under a learning rate schedule."""

from typing import Any

import jax
import optax

from sdxl_jax.models import lora_kinds


def make_decay_mask(params: optax.Params) -> Any:
  """Selects what decays: kernels and low-rank factors, no biases or norms."""

  def decays(path, leaf):
    del leaf
    return path[-1].key in ('kernel', *lora_kinds.FACTORS)

  return jax.tree_util.tree_map_with_path(decays, params)


def learning_rate_schedule(
  learning_rate: float, warmup_steps: int, decay_steps: int = 0
) -> optax.Schedule:
  """Returns step -> learning rate: a linear warm-up, then constant or cosine.

  Args:
    learning_rate: the rate at the end of the warm-up.
    warmup_steps: optimizer steps from rate 0; 0: no warm-up.
    decay_steps: optimizer step at which a cosine decay reaches 0, counted from
      the start of the run; 0: the rate stays constant.
  """
  if decay_steps:
    after_warmup = optax.cosine_decay_schedule(
      learning_rate, decay_steps - warmup_steps
    )
  else:
    after_warmup = optax.constant_schedule(learning_rate)
  # A linear schedule of 0 steps would hold its first value, rate 0.
  if not warmup_steps:
    return after_warmup
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, after_warmup], [warmup_steps])


def make_adamw(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  clip_norm: float = 1.0,  # of the gradient over all parameters; 0: no clipping
) -> optax.GradientTransformation:
  """Makes AdamW (Loshchilov & Hutter 2019) after clipping by global norm."""
  # Both have an empty state, so that a checkpoint fits whatever the clip_norm.
  if clip_norm:
    clip = optax.clip_by_global_norm(clip_norm)
  else:
    clip = optax.identity()
  adamw = optax.adamw(
    schedule, b1, b2, eps, weight_decay=weight_decay, mask=make_decay_mask
  )
  return optax.chain(clip, adamw)
