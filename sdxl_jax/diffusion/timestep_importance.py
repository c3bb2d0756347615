"""Timesteps drawn by their measured loss, whose history is an array.

Timesteps with a large loss come more often, and their loss counts less in
return, so that the expected gradient is that of uniform timesteps with less
variance. The history has a part for each of up to 20 equal ranges of timesteps:
[2, parts], a running mean of the squared loss and how many examples it is of.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

PARTS = 20
LEAST = 10  # examples of each part, before which all are equally likely
WINDOW = 500  # examples that the running mean goes back
UNIFORM = 0.001  # share of draws that no loss changes


def parts_of(count: int) -> int:
  """Returns the number of parts of so many timesteps."""
  return min(PARTS, count)


def empty(count: int) -> Float[Array, '2 parts']:
  """Returns the history of a run that begins, for so many timesteps."""
  return jnp.zeros((2, parts_of(count)))


# Nichol & Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models,
# equation 18.
def probabilities(
  history: Float[ArrayLike, '2 parts'], count: int
) -> Float[Array, ' count']:
  """Returns p_t, in proportion to sqrt(E[loss_t^2]), of each timestep.

  Args:
    history: of the loss.
    count: timesteps.
  """
  mean, examples = history
  is_known = (examples >= LEAST).all() & (mean.sum() > 0)
  weights = jnp.where(is_known, jnp.sqrt(mean), 1.0)
  of_timestep = weights[jnp.asarray(part_of_timesteps(count))]
  p = of_timestep / of_timestep.sum()
  return (1 - UNIFORM) * p + UNIFORM / count


def part_of_timesteps(count: int) -> Int[np.ndarray, ' count']:
  """Returns the part that each timestep belongs to."""
  return np.arange(count) * parts_of(count) // count


def measure(
  losses: Float[Array, ' b'], index: Int[Array, ' b'], count: int
) -> Float[Array, '2 parts']:
  """Returns the sum of squared losses and the examples of each part.

  Args:
    losses: of examples, before they are weighed by 1 / p_t.
    index: of their timesteps, from the first that is trained.
    count: timesteps.
  """
  part = jnp.asarray(part_of_timesteps(count))[index]
  is_of = part[:, None] == jnp.arange(parts_of(count))
  squares = jax.lax.stop_gradient(jnp.square(losses))[:, None]
  return jnp.stack([jnp.where(is_of, squares, 0.0).sum(0), is_of.sum(0) * 1.0])


def observe(
  history: Float[ArrayLike, '2 parts'], measured: list
) -> Float[Array, '2 parts']:
  """Returns the history after a step.

  Args:
    history: before it.
    measured: what `measure` returned for each of its micro-batches; what is not
      finite is left out.
  """
  sums, new = sum(jnp.where(jnp.isfinite(m).all(), m, 0.0) for m in measured)
  mean, examples = history
  share = jnp.minimum(new / jnp.minimum(examples + new, WINDOW), 1.0)
  change = jnp.where(new > 0, share * (sums / jnp.maximum(new, 1) - mean), 0.0)
  return jnp.stack([mean + change, jnp.minimum(examples + new, WINDOW)])
