"""Reads the images by which ControlNets steer: edges, a depth map, a pose.

They are taken as they are; nothing is detected in a photo.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from sdxl_jax.data import images
from sdxl_jax.sampling import control_specs

# Largest quotient of the aspect ratios of a control image and the output. What
# is stretched by more is another shape to the net.
MOST_STRETCH = 1.1


def load(
  texts: Sequence[str], size: tuple[int, int]
) -> dict[str, list[Any] | None]:
  """Loads {'control', 'control_types'} as sample.generate takes them.

  Args:
    texts: each as '[TYPE=]FILE'.
    size: (height, width) in px of the output.

  Raises:
    ValueError: for a file that is no image, or of another shape.
    OSError: for a file that cannot be read.
  """
  pairs = [control_specs.split_type(text) for text in texts]
  if not pairs:
    return {'control': None, 'control_types': None}
  return {
    'control': [read(file, size) for _, file in pairs],
    'control_types': [kind for kind, _ in pairs],
  }


def read(
  path: str | os.PathLike[str], size: tuple[int, int]
) -> Float[np.ndarray, 'h w 3']:
  """Reads an image as RGB in [0, 1], resized to the output.

  As diffusers does, by Lanczos, without regard to its aspect ratio, but for one
  that differs by more than MOST_STRETCH. Transparent parts become black, the
  background of edges and poses.

  Raises:
    ValueError: for a file that is no image, or of another shape.
    OSError: for a file that cannot be read.
  """
  data = pathlib.Path(path).read_bytes()
  image = images.decode(data, path, background='black')
  check_shape(image, size, path)
  height, width = size
  if image.size != (width, height):
    image = image.resize((width, height), Image.Resampling.LANCZOS)
  return np.asarray(image, np.float32) / 255


def check(texts: Sequence[str]) -> None:
  """Raises ValueError or OSError for a file that is no image, see `read`."""
  for text in texts:
    _, file = control_specs.split_type(text)
    if not file:
      raise ValueError(f'control is {text!r}: name a file')
    images.decode(pathlib.Path(file).read_bytes(), file)


def check_shape(
  image: Image.Image, size: tuple[int, int], path: str | os.PathLike[str]
) -> None:
  """Raises ValueError for an image of another aspect ratio than the output."""
  (w, h), (height, width) = image.size, size
  quotient = (w / h) / (width / height)
  if max(quotient, 1 / quotient) <= MOST_STRETCH:
    return
  raise ValueError(
    f'control image {path} is {w} x {h} px (width x height), and the output '
    f'{width} x {height}: its aspect ratio may differ by a factor of at most '
    f'{MOST_STRETCH:g}, as it is stretched; crop it, or pass a --height and '
    '--width of its shape'
  )
