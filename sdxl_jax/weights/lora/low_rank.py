"""Approximates differences of weights by factors of a chosen rank, by SVD.

The best factors of rank r are the first r singular vectors (Eckart & Young
1936). Those of a product of factors come from two small decompositions. Of a
large matrix the first ones alone are computed, by a randomised SVD with power
iterations (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1).

How a rank is chosen by the singular values is as in kohya's resize_lora.py.
"""

import dataclasses

import numpy as np

from sdxl_jax.weights.lora import deltas

METHODS = ('sv_ratio', 'sv_fro', 'sv_cumulative')
EXACT = 512  # the shorter side of a matrix up to which all of it is decomposed
OVERSAMPLING, ITERATIONS = 16, 4  # of the randomised SVD


@dataclasses.dataclass(frozen=True)
class Ranks:
  """How a rank is chosen.

  Attributes:
    rank: the rank, or the largest one if it is chosen by singular values.
    conv_rank: of kernels above 1 x 1; None: as rank; 0: these are left out.
    method: None: always the rank; 'sv_ratio': the singular values above the
      largest / param; 'sv_fro': as many as have the share param of the
      Frobenius norm; 'sv_cumulative': of their sum.
    param: see method.
  """

  rank: int
  conv_rank: int | None = None
  method: str | None = None
  param: float | None = None

  def __post_init__(self):
    for name, value, least in (
      ('rank', self.rank, 1),
      ('conv_rank', self.conv_rank, 0),
    ):
      if value is not None and value < least:
        raise ValueError(f'{name} is {value}; it must be at least {least}')
    if (self.method is None) != (self.param is None):
      raise ValueError(
        f'dynamic_method is {self.method!r} and dynamic_param {self.param}: '
        'pass both of them, or neither'
      )
    if self.method is None:
      return
    if self.method not in METHODS:
      raise ValueError(
        f'dynamic_method is {self.method!r}; choose one of {METHODS}'
      )
    low, high = (1, np.inf) if self.method == 'sv_ratio' else (0, 1)
    if not low < self.param <= high or self.param == np.inf:
      raise ValueError(
        f'dynamic_param is {self.param}; of {self.method} it must be above '
        f'{low} and ' + ('finite' if low else f'at most {high}')
      )

  def limit(self, shape: tuple[int, ...]) -> int:
    """Returns the largest rank of a weight [out, in] or [out, in, kh, kw]."""
    is_large = len(shape) == 4 and shape[2:] != (1, 1)
    rank = self.rank
    if is_large and self.conv_rank is not None:
      rank = self.conv_rank
    return min(rank, shape[0], int(np.prod(shape[1:])))

  def choose(self, values: np.ndarray, limit: int, square: float) -> int:
    """Chooses a rank.

    Args:
      values: singular values, descending.
      limit: the largest rank.
      square: sum of the squares of all singular values.
    """
    if not len(values) or values[0] <= 0:
      return min(1, limit)
    if self.method == 'sv_ratio':
      wanted = (values > values[0] / self.param).sum()
    elif self.method == 'sv_fro':
      shares = np.cumsum(values**2) / square
      wanted = np.searchsorted(shares, self.param**2) + 1
    elif self.method == 'sv_cumulative':
      shares = np.cumsum(values) / values.sum()
      wanted = np.searchsorted(shares, self.param) + 1
    else:
      wanted = limit
    return int(max(1, min(wanted, limit)))


def chosen(
  rank: int | None,
  conv_rank: int | None = None,
  method: str | None = None,
  param: float | None = None,
) -> Ranks | None:
  """Returns how ranks are chosen by flags; None without a rank.

  Raises:
    ValueError: if there are others without a rank.
  """
  if rank is not None:
    return Ranks(rank, conv_rank, method, param)
  others = {
    'conv_rank': conv_rank,
    'dynamic_method': method,
    'dynamic_param': param,
  }
  for name, value in others.items():
    if value is not None:
      raise ValueError(
        f'--{name}={value} needs --rank, the rank or the largest one: pass it, '
        f'or leave --{name} out'
      )
  return None


def approximate(
  delta: deltas.Additive, shape: tuple[int, ...], ranks: Ranks
) -> deltas.Factors | None:
  """Approximates a change of a weight by factors.

  Args:
    delta: that does not depend on the weight.
    shape: of the weight, as published.
    ranks: how the rank is chosen.

  Returns:
    Factors with alpha = r, float32; None: the layer is left out.
  """
  limit = ranks.limit(shape)
  if not limit:
    return None
  if isinstance(delta, deltas.Factors):
    down = np.float32(delta.down).reshape(len(delta.down), -1)
    up = np.float32(delta.scale) * np.float32(delta.up).reshape(shape[0], -1)
    u, s, vt = decompose_product(up, down)
    square = np.sum(s**2)
  else:
    matrix = delta.product(shape).reshape(shape[0], -1)
    u, s, vt = decompose(matrix, limit, ranks.method == 'sv_cumulative')
    square = np.sum(np.square(matrix, dtype=np.float64))
  rank = min(ranks.choose(s, limit, square), len(s))
  up = np.float32(u[:, :rank] * s[:rank])
  down = np.float32(vt[:rank]).reshape(rank, *shape[1:])
  up = up.reshape(*up.shape, *[1] * (len(shape) - 2))
  return deltas.Factors(down, up, np.float32(rank))


def decompose_product(
  up: np.ndarray, down: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the SVD (u, s, vt) of up [m, r] @ down [r, n], in float64."""
  left, a = np.linalg.qr(up.astype(np.float64))
  right, b = np.linalg.qr(down.astype(np.float64).T)
  u, s, vt = np.linalg.svd(a @ b.T)
  size = len(s)
  return left @ u[:, :size], s, vt[:size] @ right.T


def decompose(
  matrix: np.ndarray, count: int, is_exact: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the SVD (u, s, vt) of a matrix, of the first values at least.

  Args:
    matrix: [m, n], float32.
    count: of singular values that are needed.
    is_exact: whether all are.
  """
  short = min(matrix.shape)
  if is_exact or short <= EXACT or 2 * (count + OVERSAMPLING) >= short:
    return np.linalg.svd(matrix, full_matrices=False)
  # The same numbers for the same matrix.
  rng = np.random.default_rng(0)
  columns = count + OVERSAMPLING
  y = matrix @ rng.standard_normal((matrix.shape[1], columns), np.float32)
  basis, _ = np.linalg.qr(y)
  for _ in range(ITERATIONS):
    rows, _ = np.linalg.qr(matrix.T @ basis)
    basis, _ = np.linalg.qr(matrix @ rows)
  u, s, vt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
  return basis @ u, s, vt
