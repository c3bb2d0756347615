"""Writes small datasets full of oddities, each with what must be counted of it.

An oddity is a function that adds records or other things to a box, in which a
dataset is written, and notes what a source must make of them. It is written for
the kinds of boxes that can hold it.
"""

import pathlib

import numpy as np

# The last three register oddities.
from tests.support import (
  odd_boxes,
  odd_folders,  # noqa: F401
  odd_records,  # noqa: F401
  odd_registry,
  odd_shards,  # noqa: F401
)


def write(folder: pathlib.Path, number: int) -> odd_boxes.Box:
  """Writes a dataset of random oddities, the same for a number.

  Returns:
    The closed box, with what must be counted.
  """
  rng = np.random.default_rng([20_24, number])
  kind = odd_registry.ALL[number % len(odd_registry.ALL)]
  box = odd_boxes.BOXES[kind](folder, kind, rng)
  fitting = [o for o in odd_registry.ODDITIES if kind in o[1]]
  # Each oddity in turn, so that all are written, and some that repeat.
  round_number = number // len(odd_registry.ALL)
  turn = [fitting[(3 * round_number + k) % len(fitting)] for k in range(3)]
  chosen = rng.choice(len(fitting), rng.integers(3, 9))
  box.record('0-plain')
  for place, (_, _, function) in enumerate(
    turn + [fitting[k] for k in chosen], 1
  ):
    function(box, f'{place:02d}-{function.__name__}')
    box.oddities[function.__name__] += 1
  box.close()
  return box
