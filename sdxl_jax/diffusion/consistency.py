"""Latent consistency distillation: a student of few steps (Luo et al. 2023).

arXiv 2310.04378, algorithm 1. A consistency function f(z, t) is the end, at
timestep 0, of the path that leads through the noisy latents z at timestep t. It
is trained to have the same value at both ends of a step along the path, which a
teacher takes by DDIM with guidance. The student learns the guidance too, and
one call of it replaces many steps of two calls.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from sdxl_jax.diffusion import loss_kinds, losses, noise_schedule

SIGMA_DATA = 0.5  # of the boundary condition, as in Karras et al. 2022
# Signal and noise, sqrt(a) and sqrt(1 - a), of each example.
Rates = tuple[Float[Array, 'b 1 1 1'], Float[Array, 'b 1 1 1']]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Describes the distillation; names and defaults are those of diffusers."""

  num_ddim_timesteps: int = 50  # steps of the teacher's solver
  w_min: float = 3.0  # range of the guidance, which is 1 + w in Ho's scale
  w_max: float = 15.0
  timestep_scaling_factor: float = 10.0  # see `boundary`


def solver_timesteps(settings: Settings, total: int) -> Int[np.ndarray, ' n']:
  """Returns the timesteps that steps of the teacher begin at, ascending.

  Each step ends at the one before, the first one at timestep 0.
  """
  n = settings.num_ddim_timesteps
  return np.arange(1, n + 1) * (total // n) - 1


# Luo et al. 2023, equations 8 and 9, with the boundary condition of Song et al.
# 2023, Consistency Models, appendix C.
def boundary(
  timestep: Int[ArrayLike, ' b'], scaling: float
) -> tuple[Float[Array, 'b 1 1 1'], Float[Array, 'b 1 1 1']]:
  """Returns (c_skip, c_out): f(z, t) = c_skip z + c_out x0, and f(z, 0) = z."""
  t = scaling * jnp.float32(timestep)[:, None, None, None]
  variance = t**2 + SIGMA_DATA**2
  return SIGMA_DATA**2 / variance, t / jnp.sqrt(variance)


def x0_and_eps(
  kind: str,
  prediction: Float[Array, 'b h w c'],
  x: Float[Array, 'b h w c'],
  signal: Float[Array, 'b 1 1 1'],
  noise: Float[Array, 'b 1 1 1'],
) -> tuple[Float[Array, 'b h w c'], Float[Array, 'b h w c']]:
  """Returns what a prediction says of x = signal x0 + noise eps.

  Args:
    kind: 'eps', 'v' or 'x0'.
    prediction: of that kind.
    x: noisy latents.
    signal, noise: sqrt(a) and sqrt(1 - a); a signal of 0 needs 'v' or 'x0'.

  Raises:
    ValueError: for another kind.
  """
  if kind == 'eps':
    return (x - noise * prediction) / signal, prediction
  if kind == 'v':
    return signal * x - noise * prediction, noise * x + signal * prediction
  if kind == 'x0':
    return prediction, (x - signal * prediction) / noise
  raise ValueError(
    f'a net that predicts {kind!r} is not distilled: take one that predicts '
    'eps, v or x0'
  )


def sample_row(
  key: PRNGKeyArray,
  row: Int[ArrayLike, ''],
  x0: Float[ArrayLike, 'h w c'],
  settings: Settings,
) -> tuple[Int[Array, ''], Float[Array, ''], Float[Array, 'h w c']]:
  """Samples (step of the solver, w, eps) of the example in a row."""
  keys = jax.random.split(jax.random.fold_in(key, row), 3)
  step = jax.random.randint(keys[0], (), 0, settings.num_ddim_timesteps)
  w = jax.random.uniform(
    keys[1], (), minval=settings.w_min, maxval=settings.w_max
  )
  return step, w, jax.random.normal(keys[2], x0.shape)


# Luo et al. 2023, equation 18: DDIM with guidance, of which w = 0 has none.
def teacher_step(
  teacher: Callable,
  x: Float[Array, 'b h w c'],
  timestep: Int[Array, ' b'],
  at_start: Rates,
  at_stop: Rates,
  w: Float[Array, ' b'],
  kind: str,
) -> Float[Array, 'b h w c']:
  """Returns the latents after a step of the teacher, without a gradient.

  Args:
    teacher: see distillation_loss.
    x: noisy latents at the start of the step.
    timestep: of the start.
    at_start, at_stop: (signal, noise) of both ends.
    w: guidance of each example.
    kind: of the predictions, see x0_and_eps.
  """
  uncond, cond = (
    x0_and_eps(kind, prediction.astype(jnp.float32), x, *at_start)
    for prediction in teacher(x, timestep)
  )
  w = w[:, None, None, None]
  x0, eps = (c + w * (c - u) for c, u in zip(cond, uncond))
  return jax.lax.stop_gradient(losses.add_noise(x0, eps, *at_stop))


def distillation_loss(
  student: Callable,
  teacher: Callable,
  latents: Float[ArrayLike, 'b h w c'],
  key: PRNGKeyArray,
  schedule: noise_schedule.Schedule,
  settings: Settings,
  distance: loss_kinds.Distance,
  mask: Float[ArrayLike, 'b h w'] | None = None,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """Returns the mean distance of f at both ends of a step of the teacher.

  The end with less noise is the target, and has no gradient. It is computed by
  the student itself, without an average of its parameters (Song & Dhariwal
  2023, Improved Techniques for Training Consistency Models, section 3.2).

  Args:
    student: (x, timestep int32 [b]) -> schedule.prediction, in any float type.
    teacher: the same arguments -> (unconditional, conditional) predictions.
    latents: scaled, see latent_scaling.
    key: of this step.
    schedule: of both nets.
    settings: of the distillation.
    distance: between the ends.
    mask: 0..1, a factor of each position's distance before the mean; None: 1.

  Returns:
    (loss, metrics), the loss and the squared distance, mse.
  """
  x0 = latents.astype(jnp.float32)
  sample = functools.partial(sample_row, key, settings=settings)
  step, w, eps = jax.vmap(sample)(jnp.arange(len(x0)), x0)
  table = solver_timesteps(settings, schedule.num_train_timesteps)
  # Step 0 ends at timestep 0, whichever step before it the table lacks.
  start = jnp.asarray(table)[step]
  stop = jnp.asarray(np.concatenate([[0], table[:-1]]))[step]
  rates = losses.rates(schedule)
  at_start, at_stop = (
    tuple(r[t, None, None, None] for r in rates) for t in (start, stop)
  )

  def consistent(x, timestep, signal, noise):
    """Computes f."""
    prediction = student(x, timestep).astype(jnp.float32)
    found, _ = x0_and_eps(schedule.prediction, prediction, x, signal, noise)
    c_skip, c_out = boundary(timestep, settings.timestep_scaling_factor)
    return c_skip * x + c_out * found

  x = losses.add_noise(x0, eps, *at_start)
  x_stop = teacher_step(
    teacher, x, start, at_start, at_stop, w, schedule.prediction
  )
  target = jax.lax.stop_gradient(consistent(x_stop, stop, *at_stop))
  difference = consistent(x, start, *at_start) - target
  signal, noise = at_start
  error, mse = losses.errors(
    difference, distance, start, noise / signal, schedule, mask
  )
  loss = error.mean()
  return loss, {'loss': loss, 'mse': mse.mean()}
