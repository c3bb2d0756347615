"""What an aesthetic score may be: a finite number, or text of one."""

import math
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.data.sources import indexed

LARGEST = float(np.finfo(np.float32).max)


class Score(NamedTuple):
  """A score, None where a record has none, or why it cannot be used."""

  number: float | None = None
  problem: int = indexed.USABLE
  detail: str = ''  # of the problem, in words


NONE = Score()


def parse(value: Any) -> Score:
  """Finds the score in a value of a dataset.

  NaN is a missing score, since pandas writes None so; so is empty text.

  Args:
    value: of a column or field; None where it is missing.
  """
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  if value is None or isinstance(value, str) and not value.strip():
    return NONE
  try:
    # bool is an int to Python.
    number = None if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    number = None
  if number is None or abs(number) > LARGEST:
    return Score(None, indexed.BAD_SCORE, f'{value!r:.60}')
  return NONE if math.isnan(number) else Score(number)


def check(measured: indexed.Measured, score: Score) -> indexed.Measured:
  """Adds the problem of its score to a record that has no other."""
  if measured.problem or not score.problem:
    return measured
  return measured._replace(problem=score.problem, detail=score.detail)
