"""Reads the image that sampling starts from, and its mask."""

import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from sdxl_jax.data import images

Path = str | os.PathLike
MULTIPLE = 8  # px; sides of images are cut to multiples of this


def load(
  image_path: Path | None,
  mask_path: Path | None,
  size: tuple[int | None, int | None],
  default_size: tuple[int, int],
) -> dict[str, Any]:
  """Loads {'size', 'image', 'mask'} as sample.generate takes them.

  Args:
    image_path, mask_path: files, or None.
    size: (height, width) to sample in px; None: the image's own side.
    default_size: sides without an image.

  Raises:
    ValueError: for a file that is no image, or a mask that does not fit.
    OSError: for a file that cannot be read.
  """
  if image_path is None:
    if mask_path is not None:
      raise ValueError(f'mask {mask_path} is given without an image: pass both')
    return {'size': fill_size(size, default_size), 'image': None, 'mask': None}
  image = read(image_path)
  own_size = tuple(side // MULTIPLE * MULTIPLE for side in image.size[::-1])
  size = fill_size(size, own_size)
  mask = None
  if mask_path is not None:
    mask = images.resize(read_mask(mask_path, image, image_path), size)
    mask = np.asarray(mask, np.float32) / 255
  image = images.to_float(images.resize(image, size))
  return {'size': size, 'image': image, 'mask': mask}


def fill_size(
  size: tuple[int | None, int | None], default: tuple[int, int]
) -> tuple[int, int]:
  """Returns (height, width) with the default's sides where they are None.

  Raises:
    ValueError: for a side that no image can be resized to.
  """
  for name, side in zip(('height', 'width'), size):
    if side is not None and side < 1:
      raise ValueError(f'{name} is {side} px; it must be at least 1')
  height, width = size
  return (
    default[0] if height is None else height,
    default[1] if width is None else width,
  )


def read(path: Path) -> Image.Image:
  """Reads an image in RGB; transparent parts become white."""
  return images.decode(pathlib.Path(path).read_bytes(), path)


def read_mask(path: Path, image: Image.Image, image_path: Path) -> Image.Image:
  """Reads a mask in grey, which must have the size of its image."""
  mask = read(path).convert('L')
  if mask.size != image.size:
    raise ValueError(
      f'{path} is {mask.size[0]} x {mask.size[1]} px and {image_path} is '
      f'{image.size[0]} x {image.size[1]} (width x height): a mask must have '
      'the size of its image'
    )
  if np.asarray(mask).max() < 128:
    raise ValueError(
      f'{path} is nowhere white, and only white parts are repainted'
    )
  return mask
