"""Sums of kernels for KID and CMMD, in blocks of rows and float64.

The squared maximum mean discrepancy (MMD, Gretton et al. 2012, JMLR 13, lemma
6) of x [n, d] and y [m, d] is the mean of k(x, x') and k(y, y') less twice that
of k(x, y).
"""

from collections.abc import Callable

import numpy as np
import tqdm
from jaxtyping import Float

Rows = Float[np.ndarray, 'n d']
Kernel = Callable[[Rows, Rows], Float[np.ndarray, 'n m']]
BLOCK = 1024  # rows of a kernel's matrix in memory at once


def check_widths(x: Rows, y: Rows) -> None:
  """Raises ValueError for features of different nets."""
  if x.shape[1] != y.shape[1]:
    raise ValueError(
      f'the images have {x.shape[1]} features and the reference {y.shape[1]}: '
      'both must be of the same net'
    )


def squared_distances(x: Rows, y: Rows) -> Float[np.ndarray, 'n m']:
  """Returns |x_i - y_j|^2."""
  squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
  return squares.clip(0)


def weighted_sums(
  kernel: Kernel,
  x: Rows,
  weights: Float[np.ndarray, 'r n'],
  diagonal: bool,
  what: str,
) -> Float[np.ndarray, ' r']:
  """Returns sum_ij w_i w_j k(x_i, x_j) for each row w of the weights.

  Args:
    kernel: symmetric.
    x: features.
    weights: one row for each sum.
    diagonal: whether i = j counts.
    what: is computed, for the progress.
  """
  x, sums = np.asarray(x, np.float64), np.zeros(len(weights))
  weights = np.asarray(weights, np.float64)
  for start in tqdm.trange(0, len(x), BLOCK, desc=what, delay=2):
    stop = min(start + BLOCK, len(x))
    block = kernel(x[start:stop], x)
    if not diagonal:
      block[np.arange(stop - start), np.arange(start, stop)] = 0
    sums += ((weights[:, start:stop] @ block) * weights).sum(axis=1)
  return sums


def row_means(
  kernel: Kernel, x: Rows, y: Rows, what: str
) -> Float[np.ndarray, ' n']:
  """Returns the mean of k(x_i, y_j) over j, for each i."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  starts = tqdm.trange(0, len(x), BLOCK, desc=what, delay=2)
  blocks = [kernel(x[i : i + BLOCK], y).mean(axis=1) for i in starts]
  return np.concatenate(blocks)
