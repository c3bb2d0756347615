"""EMA of any length, chosen after training (Karras et al. 2024, section 3).

arXiv 2312.02696. A power-function EMA (`optimizer.power_ema`) weighs the
parameters of step tau, at step t, in proportion to tau^gamma: its width is a
fixed share sigma_rel of the training so far. Snapshots of one or two such
averages, taken now and then, suffice to put together any other one, as the
combination of snapshots whose weighting is nearest to the one wished for.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

FAR = 0.1  # of which a weighting may be off, relative, without a warning
WIDEST = 12**-0.5  # sigma_rel of gamma = 0, where all steps weigh the same


def gamma_of(sigma_rel):
  """The exponent of the average whose relative width is sigma_rel.

  Solves sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1 (equation 6).

  Raises:
    ValueError: for a width outside of (0, 12^-1/2].
  """
  if not 0 < sigma_rel <= WIDEST:
    raise ValueError(
      f'sigma_rel is {sigma_rel}; it is a share of the training and must be '
      f'above 0 and at most {WIDEST:.3f}'
    )
  n = sigma_rel**-2
  roots = np.roots([1, 7, 16 - n, 12 - n])
  return max(0.0, roots.real.max())


def inner(t_a, gamma_a, t_b, gamma_b):
  """Inner product of two weightings, as functions of tau (appendix C.3).

  int p_a p_b, where p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) up to t.
  """
  a_is_shorter = t_a < t_b
  exponent = np.where(a_is_shorter, gamma_b, -gamma_a)
  over = (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** exponent
  return over / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def solve(snapshots, step, sigma_rel):
  """The weight of each snapshot in the average wished for.

  The least squares fit of their weightings to its own, such that they add up
  to 1. The paper leaves that out, and parameters that hardly change then come
  out too small: by 0.7 % where there are twelve snapshots of two widths.

  Args:
    snapshots: [(step, sigma_rel)], each step and width once.
    step: up to which the average goes.
    sigma_rel: its width.

  Returns:
    float64 [n], and the root mean square error of the weighting, relative.

  Raises:
    ValueError: where there is no snapshot, or one is of a later step.
  """
  if not snapshots:
    raise ValueError('no snapshots: set config.optimizer.ema_snapshots')
  late = [s for s, _ in snapshots if s > step]
  if late:
    raise ValueError(
      f'a snapshot is of step {late[0]}, which is after {step}: leave it out'
    )
  t = np.array([s for s, _ in snapshots], np.float64)
  gamma = np.array([gamma_of(width) for _, width in snapshots])
  wished = float(step), gamma_of(sigma_rel)
  gram = inner(t[:, None], gamma[:, None], t[None], gamma[None])
  target = inner(t, gamma, *wished)
  one = np.ones(len(t))
  bordered = np.block([[gram, one[:, None]], [one, np.zeros(1)]])
  weights = np.linalg.solve(bordered, np.append(target, 1.0))[:-1]
  norm = inner(*wished, *wished)
  lost = norm - 2 * weights @ target + weights @ gram @ weights
  return weights, float(np.sqrt(max(lost, 0.0) / norm))


def rebuild(snapshots, read, step, sigma_rel):
  """The average of the parameters that was wished for.

  Args:
    snapshots: [(step, sigma_rel)] of what was stored.
    read: (step, sigma_rel) -> tree of arrays; one tree is held at a time.
    step, sigma_rel: the average wished for.

  Returns:
    tree of float32 arrays, where `read` puts them.
  """
  weights, error = solve(snapshots, step, sigma_rel)
  if error > FAR:
    logging.warning(
      'an average of width %g at step %d is out of reach of %d snapshots: its '
      'weighting is off by %.0f %%; take a width nearer to theirs, or store '
      'more of them',
      *(sigma_rel, step, len(snapshots), 100 * error),
    )
  add = jax.jit(
    lambda total, tree, weight: jax.tree.map(
      lambda s, x: s + weight * x.astype(jnp.float32), total, tree
    ),
    donate_argnums=0,
  )
  first = read(*snapshots[0])
  total = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), first)
  del first
  for snapshot, weight in zip(snapshots, weights):
    total = add(total, read(*snapshot), np.float32(weight))
  return total
