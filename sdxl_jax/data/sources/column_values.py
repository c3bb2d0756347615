"""Columns of an index by which filters choose: of numbers or of text."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa


def make_column(values: Sequence) -> pa.Array:
  """Makes a column of floats, of strings where a value is not a number."""
  values = [None if value == '' else value for value in values]
  if all(value is None for value in values):
    return pa.nulls(len(values))
  try:
    numbers = [None if value is None else to_float(value) for value in values]
    # NaN, as pandas writes a missing value, is one.
    return pa.array(numbers, pa.float64(), from_pandas=True)
  except (TypeError, ValueError):
    texts = [None if value is None else to_text(value) for value in values]
    return pa.array(texts, pa.string())


def to_float(value: Any) -> float:
  """Converts to a float, infinite where JSON has a number beyond floats."""
  try:
    return float(value)
  except OverflowError:
    return math.inf if value > 0 else -math.inf


def to_text(value: Any) -> str:
  """Converts to a string, what is not UTF-8 escaped."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'backslashreplace')
  return str(value).encode('utf-8', 'backslashreplace').decode()
