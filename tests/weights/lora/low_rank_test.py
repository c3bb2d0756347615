"""Factors of a chosen rank, compared with numpy's SVD and kohya's rules."""

import numpy as np
import pytest

from sdxl_jax.weights.lora import deltas, low_rank

Ranks = low_rank.Ranks


def decaying(m, n, seed=0, rate=0.9):
  """A matrix with the singular values rate^i."""
  rng = np.random.default_rng(seed)
  size = min(m, n)
  u, v = (np.linalg.qr(rng.standard_normal((k, size)))[0] for k in (m, n))
  return np.float32((u * rate ** np.arange(size)) @ v.T)


def product(factors, shape):
  return factors.product(shape)


@pytest.mark.parametrize('shape', [(150, 120), (40, 200), (30, 7, 3, 3)])
@pytest.mark.parametrize('rank', [1, 8, 20])
def test_the_best_factors(monkeypatch, shape, rank):
  """Large matrices, of which the first vectors alone are computed, too."""
  monkeypatch.setattr(low_rank, 'EXACT', 100)
  matrix = decaying(shape[0], int(np.prod(shape[1:])))
  delta = deltas.Difference(matrix.reshape(shape))
  made = low_rank.approximate(delta, shape, Ranks(rank))
  assert made.scale == 1 and len(made.down) == rank
  assert made.up.shape == (shape[0], rank, *[1] * (len(shape) - 2))
  u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
  best = (u[:, :rank] * s[:rank]) @ vt[:rank]
  left = np.linalg.norm(matrix - product(made, shape).reshape(matrix.shape))
  assert left <= 1.0001 * np.linalg.norm(matrix - best)


def test_a_low_rank_difference_comes_back():
  rng = np.random.default_rng(0)
  up, down = rng.standard_normal((640, 6)), rng.standard_normal((6, 700))
  matrix = np.float32(up @ down)
  delta = deltas.Difference(matrix)
  made = low_rank.approximate(delta, matrix.shape, Ranks(6))
  np.testing.assert_allclose(
    product(made, matrix.shape), matrix, 0, 2e-6 * np.abs(matrix).max()
  )
  more = low_rank.approximate(delta, matrix.shape, Ranks(64, None, 'sv_fro', 1))
  assert 6 <= len(more.down) <= 64


def test_factors_are_decomposed_without_their_product():
  rng = np.random.default_rng(0)
  down, up = (np.float32(rng.standard_normal(s)) for s in ((9, 50), (70, 9)))
  factors = deltas.Factors(down, up, np.float32(3))
  same = low_rank.approximate(factors, (70, 50), Ranks(9))
  whole = factors.product((70, 50))
  np.testing.assert_allclose(same.product((70, 50)), whole, 0, 1e-5)
  fewer = low_rank.approximate(factors, (70, 50), Ranks(4))
  other = low_rank.approximate(deltas.Difference(whole), (70, 50), Ranks(4))
  np.testing.assert_allclose(
    fewer.product((70, 50)), other.product((70, 50)), 0, 1e-5
  )
  assert len(low_rank.approximate(factors, (70, 50), Ranks(32)).down) == 9


@pytest.mark.parametrize(
  'method, param, expected',
  [
    (None, None, 5),
    ('sv_ratio', 3.0, 2),  # above 8 / 3
    ('sv_ratio', 100.0, 4),
    ('sv_fro', 0.9, 2),  # 64 of 85.25 has the share 0.87 of the norm
    ('sv_fro', 1.0, 4),
    ('sv_cumulative', 0.9, 3),
    ('sv_cumulative', 0.5, 1),
  ],
)
def test_ranks_by_singular_values(method, param, expected):
  """As kohya's index_sv_ratio, index_sv_fro and index_sv_cumulative."""
  values = np.array([8.0, 4.0, 2.0, 1.0, 0.0])
  ranks = Ranks(5, None, method, param)
  assert ranks.choose(values, 5, np.sum(values**2)) == expected
  assert ranks.choose(values, 1, np.sum(values**2)) == 1


def test_ranks_of_convolutions():
  ranks = Ranks(8, 3)
  assert ranks.limit((20, 30)) == ranks.limit((20, 30, 1, 1)) == 8
  assert ranks.limit((20, 30, 3, 3)) == 3 and ranks.limit((4, 30)) == 4
  delta = deltas.Difference(np.ones((4, 4, 3, 3), np.float32))
  assert low_rank.approximate(delta, (4, 4, 3, 3), Ranks(8, 0)) is None


@pytest.mark.parametrize(
  'args, message',
  [
    ((0,), 'rank is 0; it must be at least 1'),
    ((4, -1), 'conv_rank is -1; it must be at least 0'),
    ((4, None, 'sv_fro'), 'pass both of them, or neither'),
    ((4, None, 'sv_best', 0.5), "'sv_best'; choose one of"),
    ((4, None, 'sv_fro', 1.5), 'of sv_fro it must be above 0 and at most 1'),
    ((4, None, 'sv_ratio', 1.0), 'it must be above 1 and finite'),
    ((None, 4), '--conv_rank=4 needs --rank'),
  ],
)
def test_what_is_no_choice_of_ranks(args, message):
  with pytest.raises(ValueError, match=message):
    low_rank.chosen(*args)
