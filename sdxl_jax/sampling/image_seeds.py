"""Seeds of images: whole numbers of 64 bits, or -1 to draw one."""

import operator
import secrets
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdxl_jax.diffusion import random_keys

DRAWN = -1
DRAWN_BITS = 32  # of a seed that is drawn, so that it is short to type


class DrawnSeedWarning(UserWarning):
  """Tells which seeds were drawn."""


def check(seed: Any, name: str = 'seed') -> int:
  """Returns a seed as int.

  Args:
    seed: any value.
    name: of the seed, for the error.

  Raises:
    ValueError: unless it is a whole number from 0 to 2**64 - 1, or -1.
  """
  try:
    if isinstance(seed, (bool, np.bool_)):
      raise TypeError
    number = operator.index(seed)
  except TypeError:
    number = None
  if number is None or not DRAWN <= number <= random_keys.LARGEST_SEED:
    raise ValueError(
      f'{name} is {seed!r}; it must be a whole number from 0 to '
      f'{random_keys.LARGEST_SEED} (2**64 - 1), or {DRAWN} to draw one'
    )
  return number


def draw() -> int:
  """Draws a seed."""
  return secrets.randbits(DRAWN_BITS)


def choose(seeds: Sequence[Any] | None, count: int) -> list[int]:
  """Returns the seeds of a batch, with one drawn where it is -1.

  Args:
    seeds: one per image; None: 0, 1, ...
    count: of the images.

  Raises:
    ValueError: for what is no seed.
  """
  if seeds is None:
    return list(range(count))
  numbers = [check(seed, f'seeds[{i}]') for i, seed in enumerate(seeds)]
  chosen = [draw() if number == DRAWN else number for number in numbers]
  if chosen != numbers:
    warnings.warn(
      f'seeds are {chosen}: those given as {DRAWN} were drawn',
      DrawnSeedWarning,
      stacklevel=3,  # the caller of generate
    )
  return chosen


def repeat(seed: int, count: int) -> list[int]:
  """Returns the seeds of `count` images of a prompt: seed, seed + 1, ...

  Args:
    seed: of the first image; -1: it is drawn.
    count: of the images.

  Raises:
    ValueError: for what is no seed, or where the last one has over 64 bits.
  """
  first = check(seed, '--seed')
  first = draw() if first == DRAWN else first
  last = first + count - 1
  if last > random_keys.LARGEST_SEED:
    raise ValueError(
      f'image {count} of --repeat={count} would have the seed {last}, and the '
      f'largest is {random_keys.LARGEST_SEED} (2**64 - 1): pass a smaller '
      '--seed'
    )
  return list(range(first, last + 1))


def describe_drawn(seeds: Sequence[int]) -> str:
  """Returns the line on the seeds that were drawn."""
  shown = ', '.join(map(str, seeds[:8]))
  more = f' and {len(seeds) - 8} more' if len(seeds) > 8 else ''
  return f'seed {DRAWN}: drew {shown}{more}'
