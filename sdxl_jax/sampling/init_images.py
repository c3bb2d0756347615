"""Reads the image that sampling starts from, and its mask."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from sdxl_jax.data import images
from sdxl_jax.sampling import masks

Path = str | os.PathLike
MULTIPLE = 8  # px; sides of images are cut to multiples of this


def load(
  image_path: Path | None,
  mask_path: Path | None,
  size: tuple[int | None, int | None],
  default_size: tuple[int, int],
  mask_threshold: float = 0.5,
) -> dict[str, Any]:
  """Loads {'size', 'image', 'mask'} as sample.generate takes them.

  Args:
    image_path, mask_path: files, or None.
    size: (height, width) to sample in px; None: the image's own side.
    default_size: sides without an image.
    mask_threshold: from which value of the mask on a pixel is repainted.

  Raises:
    ValueError: for a file that is no image, or a mask that does not fit or
      leaves nothing to repaint.
    OSError: for a file that cannot be read.
  """
  if image_path is None:
    if mask_path is not None:
      raise ValueError(f'mask {mask_path} is given without an image: pass both')
    return {'size': fill_size(size, default_size), 'image': None, 'mask': None}
  image = read(image_path)
  size = fill_size(size, own_size(image, size, image_path))
  mask = None
  if mask_path is not None:
    mask = masks.resize(masks.read(mask_path, image, image_path), size)
    check_repaints(mask, mask_path, mask_threshold)
  image = images.to_float(images.resize(image, size))
  return {'size': size, 'image': image, 'mask': mask}


def check(requests: Iterable[Any]) -> None:
  """Reads the images and masks of all requests, before weights are loaded.

  Args:
    requests: sample_request.Request of each image.

  Raises:
    ValueError, OSError: as `load` does.
  """
  # Each once, in the order of the requests.
  wanted = dict.fromkeys(
    (r.image, r.mask, (r.height, r.width), r.mask_threshold) for r in requests
  )
  for image, mask, size, threshold in wanted:
    load(image, mask, size, (MULTIPLE, MULTIPLE), threshold)


def own_size(
  image: Image.Image, size: tuple[int | None, int | None], path: Path
) -> tuple[int, int]:
  """Returns (height, width) of an image, cut to multiples of 8.

  Args:
    image: to start from.
    size: (height, width) that are set; None: the image's own is needed.
    path: of the image, for the error.

  Raises:
    ValueError: for a side that is needed and smaller than 8 px.
  """
  width, height = image.size
  needed = [n for n, s in zip((height, width), size) if s is None]
  if min(needed, default=MULTIPLE) < MULTIPLE:
    raise ValueError(
      f'{path} is {width} x {height} px (width x height), and an image has at '
      f'least {MULTIPLE} px on each side: pass --height and --width, to which '
      'it is enlarged, or a larger image'
    )
  return height // MULTIPLE * MULTIPLE, width // MULTIPLE * MULTIPLE


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


def check_repaints(mask: np.ndarray, path: Path, threshold: float) -> None:
  """Raises ValueError for a mask that is nowhere at or above the threshold."""
  largest = float(mask.max())
  if largest >= threshold:
    return
  raise ValueError(
    f'{path} is nowhere white, so nothing would be repainted: its strongest '
    f'pixel is {255 * largest:.0f} of 255, and --mask_threshold={threshold:g} '
    f'takes {255 * threshold:.0f} and more. Paint white where the image is to '
    'be repainted, or pass a smaller threshold'
  )


def describe_mask(
  path: Path, mask: np.ndarray, cell: int, threshold: float
) -> str:
  """Returns the line that tells how much of an image a mask repaints.

  Args:
    path: of the mask.
    mask: [h, w], 0 to 1.
    cell: side in px of a pixel of the latents, which is repainted as a whole.
    threshold: see `load`.
  """
  share = 100 * masks.cells(mask, cell, threshold).mean()
  return f'{path} repaints {share:.3g} % of the image'
