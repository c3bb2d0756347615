"""Intervals of metrics, from generated images drawn anew with replacement.

An interval says how far a value would move had other images been generated from
the same model; the reference stays as it is. What the number of images does to
the value itself, a bias, it does not show.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
RESAMPLES = 200
SEED = 0


class Metric(NamedTuple):
  """A value and its interval, NaN at both ends without resamples."""

  value: float
  low: float
  high: float


def counts(n: int, resamples: int, seed: int = SEED) -> Int[np.ndarray, 'r n']:
  """Returns how often each of n images is in each resample of n."""
  rng = np.random.default_rng(seed)
  return rng.multinomial(n, np.full(n, 1 / n), size=resamples)


def interval(
  value: float, resampled: Float[np.ndarray, ' r'], level: float = LEVEL
) -> Metric:
  """Returns a value with the quantiles of its resamples, moved to surround it.

  Percentiles as in Efron and Tibshirani 1993, section 13.3, but with the mean
  of the resamples moved to the value: a resample has images twice, which makes
  the distances of all resamples larger by about the same amount.
  """
  resampled = np.asarray(resampled, np.float64)
  if not len(resampled):
    return Metric(float(value), np.nan, np.nan)
  ends = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
  low, high = value + ends - resampled.mean()
  return Metric(float(value), float(low), float(high))


def mean(
  values: Float[np.ndarray, ' n'], resamples: int = RESAMPLES, seed: int = SEED
) -> Metric:
  """Returns the mean of a number of each image, with its interval."""
  values = np.asarray(values, np.float64)
  drawn = counts(len(values), resamples, seed) @ values / len(values)
  return interval(values.mean(), drawn)
