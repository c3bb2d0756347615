"""Learning rate schedules by name: a warm-up, then a constant rate or a decay.

The names are those of diffusers and kohya's sd-scripts. As there, a decay ends
with the run, after `total_steps`.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

Progress = Float[ArrayLike, '*dims']  # share of the decay, in [0, 1]


@dataclasses.dataclass(frozen=True)
class Shape:
  """How a decay falls from 1 to a share of the rate."""

  name: str = 'constant'  # one of NAMES
  num_cycles: int = 1  # of cosine_with_restarts
  power: float = 1.0  # of polynomial; 1: linear
  decay_steps: int = 0  # of warmup_stable_decay, at the end of the run
  min_lr_ratio: float = 0.0  # of the rate, where the decay ends


def linear(shape: Shape, progress: Progress) -> Progress:
  """Falls along a line."""
  del shape
  return 1 - progress


def cosine(shape: Shape, progress: Progress) -> Progress:
  """Falls along half a period of a cosine (Loshchilov & Hutter 2017)."""
  del shape
  return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def cosine_with_restarts(shape: Shape, progress: Progress) -> Progress:
  """Falls along a cosine several times; each time it begins at the rate."""
  phase = (shape.num_cycles * progress) % 1.0
  # The end of the last cycle is the beginning of none.
  return jnp.where(progress < 1, cosine(shape, phase), 0.0)


def polynomial(shape: Shape, progress: Progress) -> Progress:
  """Falls along a power of the steps that are left."""
  return (1 - progress) ** shape.power


# What falls from 1 to 0; warmup_stable_decay is constant before its cosine.
DECAYS: dict[str, Callable[[Shape, Progress], Progress]] = {
  'linear': linear,
  'cosine': cosine,
  'cosine_with_restarts': cosine_with_restarts,
  'polynomial': polynomial,
  'warmup_stable_decay': cosine,
}
NAMES = ('constant', *DECAYS)


def make(
  learning_rate: float,
  warmup_steps: int,
  total_steps: int,
  shape: Shape = Shape(),
) -> optax.Schedule:
  """Returns step -> learning rate.

  Args:
    learning_rate: the rate at the end of the warm-up.
    warmup_steps: optimizer steps from rate 0; 0: no warm-up.
    total_steps: optimizer step at which a decay ends, counted from the start of
      the run.
    shape: of what follows the warm-up.
  """
  after_warmup = decay(learning_rate, total_steps - warmup_steps, shape)
  # A linear schedule of 0 steps would hold its first value, rate 0.
  if not warmup_steps:
    return after_warmup
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, after_warmup], [warmup_steps])


def decay(learning_rate: float, steps: int, shape: Shape) -> optax.Schedule:
  """Returns step -> learning rate, from the end of a warm-up on.

  Args:
    learning_rate: the rate that it begins with.
    steps: optimizer steps that it takes.
    shape: of the decay.
  """
  if shape.name == 'constant':
    return optax.constant_schedule(learning_rate)
  if shape.name == 'cosine':  # optax rounds in another order
    return optax.cosine_decay_schedule(learning_rate, steps, shape.min_lr_ratio)
  falling, least = DECAYS[shape.name], shape.min_lr_ratio
  length = steps
  if shape.name == 'warmup_stable_decay':
    length = shape.decay_steps

  def rate(step: Float[ArrayLike, '*dims']) -> Float[Array, '*dims']:
    progress = jnp.clip((step - (steps - length)) / length, 0.0, 1.0)
    return learning_rate * (least + (1 - least) * falling(shape, progress))

  return rate
