"""The optax chain: clip, AdamW under a warm-up, and an EMA of the result."""

import jax
import optax


def decays(params):
  """Mask of weight decay: kernels and their factors, but no bias or norm."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in ('kernel', 'a', 'b'), params
  )


def learning_rate_schedule(learning_rate, warmup_steps, decay_steps=0):
  """Linear warm-up, then constant, or cosine to 0 at `decay_steps` if given."""
  if decay_steps:
    return optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, warmup_steps, decay_steps
    )
  return optax.linear_schedule(0.0, learning_rate, warmup_steps)


def make_adamw(
  schedule, *, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0
):
  """AdamW (Loshchilov & Hutter 2019) after clipping by the global norm."""
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=decays),
  )
