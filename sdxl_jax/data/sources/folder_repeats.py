"""Names of folders that hold repeats and a caption: 10_dog, as kohya has them.

The folders directly below that of the dataset are named NUMBER_CAPTION. A pass
takes each image below one of them so many times, and an image without a caption
of its own has that of the name. Other images are left out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.data.sources import indexed

NAMED = 'images whose caption is the name of their folder'
REMEDY = (
  'config.data.folder.num_repeats_in_names takes the images in folders such as '
  '10_dog directly below config.data.folder.path: name the folder above them, '
  'or rename them, or set it to False.'
)


class Name(NamedTuple):
  """What the name of a folder says of its images."""

  repeats: int  # in a pass; 0: the name has none
  caption: str  # of images without another; '': none


def parse(path: str) -> Name:
  """Parses the name of the first folder of an image's relative path."""
  folder, slash, _ = path.partition('/')
  number, _, caption = folder.partition('_')
  # Python's int also takes '+1', and digits of other scripts.
  if slash and number.isascii() and number.isdecimal():
    return Name(int(number), caption)
  return Name(0, '')


def name_of(path: str) -> str:
  """Returns the caption that the folder of an image is named by."""
  return parse(path).caption


def leave_out_others(
  items: list[dict[str, Any]], unusable: list[indexed.Measured]
) -> None:
  """Moves the items that are in no folder with repeats to what is unusable.

  Args:
    items: with the path of each image.
    unusable: gets the others.
  """
  others = [item['path'] for item in items if not parse(item['path']).repeats]
  items[:] = [item for item in items if parse(item['path']).repeats]
  unusable += [
    indexed.Measured(path, None, indexed.NOT_REPEATED) for path in others
  ]


def repeats_of(paths: Sequence[str]) -> np.ndarray:
  """Returns int64 [n], how often a pass takes each image; 1 of other files."""
  return np.array([max(1, parse(path).repeats) for path in paths], np.int64)
