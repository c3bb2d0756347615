"""Post-hoc EMA of any width, chosen after training (Karras et al. 2024, 3).

arXiv 2312.02696. A power-function EMA (`transform.power_ema`) weighs the
parameters of step tau, at step t, in proportion to tau^gamma: its width is a
constant share sigma_rel of the training so far. From snapshots of one or two
such averages any other average can be reconstructed, as the linear combination
of snapshots whose weighting is nearest to the target's.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

FAR = 0.1  # relative error of a weighting above which a warning is logged
WIDEST = 12**-0.5  # sigma_rel of gamma = 0, where all steps weigh the same

Snapshot = tuple[int, float]  # (step, sigma_rel)


def gamma_of(sigma_rel: float) -> float:
  """Returns the exponent of the average whose relative width is sigma_rel.

  Solves sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1 (equation 6).

  Raises:
    ValueError: for a width outside of (0, 12^-1/2].
  """
  if not 0 < sigma_rel <= WIDEST:
    raise ValueError(
      f'sigma_rel is {sigma_rel}; it is a share of the training and must be '
      f'above 0 and at most {WIDEST:.3f}'
    )
  # The largest root of the cubic.
  n = sigma_rel**-2
  roots = np.roots([1, 7, 16 - n, 12 - n])
  return max(0.0, float(roots.real.max()))


def inner(
  t_a: Float[ArrayLike, '*#dims'],
  gamma_a: Float[ArrayLike, '*#dims'],
  t_b: Float[ArrayLike, '*#dims'],
  gamma_b: Float[ArrayLike, '*#dims'],
) -> Float[ArrayLike, '...']:
  """Returns the inner product of two weightings over tau (appendix C.3).

  int p_a p_b, where p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) up to t.
  """
  a_is_shorter = t_a < t_b
  exponent = np.where(a_is_shorter, gamma_b, -gamma_a)
  numerator = (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** exponent
  return numerator / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def solve(
  snapshots: Sequence[Snapshot], step: int, sigma_rel: float
) -> tuple[Float[np.ndarray, ' n'], float]:
  """Fits the weighting of an average by the weightings of n snapshots.

  The weights are the least squares solution among those that add up to 1. The
  paper does not require the sum of 1; parameters that hardly change then come
  out too small, by 0.7 % with twelve snapshots of two widths.

  Args:
    snapshots: each step and width once.
    step: last step of the average.
    sigma_rel: width of the average.

  Returns:
    (weights, error): the weight of each snapshot, and the relative root mean
    square error of the weighting.

  Raises:
    ValueError: if there is no snapshot, or one is of a later step.
  """
  if not snapshots:
    raise ValueError('no snapshots: set config.optimizer.ema_snapshots')
  late = [s for s, _ in snapshots if s > step]
  if late:
    raise ValueError(
      f'a snapshot is of step {late[0]}, which is after {step}: leave it out'
    )

  # Inner products among the snapshots, and with the target.
  t = np.array([s for s, _ in snapshots], np.float64)
  gamma = np.array([gamma_of(width) for _, width in snapshots])
  target_t, target_gamma = float(step), gamma_of(sigma_rel)
  gram = inner(t[:, None], gamma[:, None], t[None], gamma[None])
  products = inner(t, gamma, target_t, target_gamma)

  # Least squares with a Lagrange multiplier for the sum of the weights.
  one = np.ones(len(t))
  bordered = np.block([[gram, one[:, None]], [one, np.zeros(1)]])
  weights = np.linalg.solve(bordered, np.append(products, 1.0))[:-1]
  norm = inner(target_t, target_gamma, target_t, target_gamma)
  square_error = norm - 2 * weights @ products + weights @ gram @ weights
  return weights, float(np.sqrt(max(square_error, 0.0) / norm))


def rebuild(
  snapshots: Sequence[Snapshot],
  read: Callable[[int, float], Any],
  step: int,
  sigma_rel: float,
) -> Any:
  """Reconstructs an average of the parameters from snapshots.

  Args:
    snapshots: that were saved.
    read: (step, sigma_rel) -> tree of arrays; one tree is held at a time.
    step: last step of the average.
    sigma_rel: width of the average.

  Returns:
    tree of float32 arrays, with the shardings of `read`.
  """
  weights, error = solve(snapshots, step, sigma_rel)
  if error > FAR:
    logging.warning(
      'an average of width %g at step %d is out of reach of %d snapshots: its '
      'weighting is off by %.0f %%; choose a width nearer to those of the '
      'snapshots, or save more of them',
      sigma_rel,
      step,
      len(snapshots),
      100 * error,
    )
  first = read(*snapshots[0])
  total = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), first)
  del first  # before the next tree is read
  for snapshot, weight in zip(snapshots, weights):
    total = add_weighted(total, read(*snapshot), np.float32(weight))
  return total


@functools.partial(jax.jit, donate_argnums=0)
def add_weighted(total: Any, tree: Any, weight: Float[ArrayLike, '']) -> Any:
  """Returns total + weight tree, over trees of arrays."""
  return jax.tree.map(
    lambda s, x: s + weight * x.astype(jnp.float32), total, tree
  )
