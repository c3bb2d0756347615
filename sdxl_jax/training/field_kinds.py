"""Kinds of values that a config's fields may have: each knows its limits.

`kind.remedy(value)` is None for a value of the kind; for another one it is the
end of an error, such as 'it must be at least 1'.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

from PIL import ImageColor

INF = float('inf')
LARGEST = 2**31 - 1  # of whole numbers that programs count with


@dataclasses.dataclass(frozen=True)
class Number:
  """A number in an interval; NaN is in none, and a bool is no number."""

  low: float = -INF
  high: float = INF
  excludes: float | None = None  # a limit, or another number, not allowed

  TYPE, NAME = numbers.Real, 'a number'

  def remedy(self, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, self.TYPE):
      return f'it must be {self.NAME}, {self}'
    if not self.low <= value <= self.high or value == self.excludes:
      return f'it must be {self}'
    return None

  def __str__(self) -> str:
    if self.low == -INF:
      return 'finite'
    low, high = f'at least {self.low}', f' and at most {self.high}'
    if self.excludes == self.low:
      low = f'above {self.low}'
    elif self.excludes is None and self.high < INF:
      return f'{self.low} to {self.high}'
    if self.high == INF:
      high = ' and finite' if self.excludes == INF else ''
    elif self.excludes == self.high:
      high = f' and below {self.high}'
    # A number within the interval, such as 0 devices.
    if self.excludes is not None and self.low < self.excludes < self.high:
      high += f', but not {self.excludes}'
    return low + high


class Whole(Number):
  """A whole number in an interval, by default of those that int32 holds."""

  TYPE, NAME = numbers.Integral, 'a whole number'

  def remedy(self, value: Any) -> str | None:
    found = super().remedy(value)
    if found is None and self.high == INF and value > LARGEST:
      return f'it must be at most {LARGEST:,}'
    return found


class PowerOfTwo(Number):
  """A power of two in an interval, by which products are exact."""

  def remedy(self, value: Any) -> str | None:
    found = super().remedy(value)
    if found is None and math.frexp(value)[0] != 0.5:
      return 'it must be a power of two, such as 1024.0'
    return found


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of several values of one type."""

  values: tuple[str | int, ...]

  def remedy(self, value: Any) -> str | None:
    # True is 1, and 75.0 is 75, but neither of them is meant.
    same_type = type(value) is type(self.values[0])
    known = same_type and value in self.values
    return None if known else f'choose one of {self.values}'


@dataclasses.dataclass(frozen=True)
class Flag:
  """True or False."""

  def remedy(self, value: Any) -> str | None:
    return None if isinstance(value, bool) else 'it must be True or False'


@dataclasses.dataclass(frozen=True)
class Text:
  """Any text, the empty one included."""

  def remedy(self, value: Any) -> str | None:
    return (
      None if isinstance(value, str) else "it must be text in quotes, or ''"
    )


@dataclasses.dataclass(frozen=True)
class Colour:
  """A colour as Pillow names it."""

  def remedy(self, value: Any) -> str | None:
    try:
      ImageColor.getrgb(value)
    except (ValueError, AttributeError, TypeError):
      return "it must be a colour, such as 'white' or '#808080'"
    return None


@dataclasses.dataclass(frozen=True)
class Optional:
  """A value of a kind, or None."""

  kind: Any

  def remedy(self, value: Any) -> str | None:
    found = None if value is None else self.kind.remedy(value)
    return f'{found}, or None' if found else None


@dataclasses.dataclass(frozen=True)
class Either:
  """A value of one of two kinds."""

  kind: Any
  other: Any

  def remedy(self, value: Any) -> str | None:
    found = self.kind.remedy(value)
    return found and self.other.remedy(value) and found


@dataclasses.dataclass(frozen=True)
class Items:
  """A tuple or list of values of one kind."""

  kind: Any
  example: str  # a tuple of this kind, for the error
  least: int = 0
  length: int | None = None  # None: any from `least` on

  def remedy(self, value: Any) -> str | None:
    fits = (
      isinstance(value, Sequence)
      and not isinstance(value, str)
      and self.length in (None, len(value))
      and len(value) >= self.least
      and all(self.kind.remedy(item) is None for item in value)
    )
    return None if fits else f'it must be a tuple such as {self.example}'


@dataclasses.dataclass(frozen=True)
class Each:
  """A tuple or list with a value of each of several kinds."""

  kinds: tuple[Any, ...]

  def remedy(self, value: Any) -> str | None:
    fits = (
      isinstance(value, Sequence)
      and not isinstance(value, str)
      and len(value) == len(self.kinds)
      and all(k.remedy(x) is None for k, x in zip(self.kinds, value))
    )
    return None if fits else f'it must have {len(self.kinds)} values'


@dataclasses.dataclass(frozen=True)
class Anything:
  """A value that is checked where it is used."""

  def remedy(self, value: Any) -> str | None:
    del value


COUNT = Whole(1)  # at least one
SWITCHED = Whole(0)  # 0: off
SHARE = Number(0, 1)
FACTOR = Number(0, INF, excludes=0)
WEIGHT = Number(0, INF, excludes=INF)  # 0: off
SIZE = Items(COUNT, '(1024, 1024)', length=2)  # (height, width)
