"""Reads the image that sampling starts from, and its mask."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdxl_jax.data import images
from sdxl_jax.diffusion import img2img
from sdxl_jax.sampling import masks

Path = str | os.PathLike
MULTIPLE = 8  # px; sides of images are cut to multiples of this
KEPT = 4  # images of a `cached_load`


class Files(NamedTuple):
  """The files that an image starts from, and how they are read.

  Attributes:
    image, mask: paths, or None.
    size: (height, width) to sample in px; None: the image's own side.
    mask_threshold: from which value of the mask on a pixel is repainted.
  """

  image: Path | None
  mask: Path | None
  size: tuple[int | None, int | None]
  mask_threshold: float = 0.5


def files_of(request: Any) -> Files:
  """Returns the Files of a sample_request.Request."""
  size = request.height, request.width
  return Files(request.image, request.mask, size, request.mask_threshold)


def load(files: Files, default_size: tuple[int, int]) -> dict[str, Any]:
  """Loads {'size', 'image', 'mask'} as sample.generate takes them.

  Args:
    files: to read.
    default_size: sides without an image.

  Raises:
    ValueError: for a file that is no image, or a mask that does not fit or
      leaves nothing to repaint.
    OSError: for a file that cannot be read.
  """
  size = files.size
  if files.image is None:
    if files.mask is not None:
      raise ValueError(
        f'mask {files.mask} is given without an image: pass both'
      )
    return {'size': fill_size(size, default_size), 'image': None, 'mask': None}
  image = read(files.image)
  size = fill_size(size, own_size(image, size, files.image))
  mask = None
  if files.mask is not None:
    mask = masks.resize(masks.read(files.mask, image, files.image), size)
    check_repaints(mask, files.mask, files.mask_threshold)
  image = images.to_float(images.resize(image, size))
  return {'size': size, 'image': image, 'mask': mask}


def cached_load() -> Callable[..., dict[str, Any]]:
  """Returns a `load` that keeps what it read last, which must not change."""
  return functools.lru_cache(KEPT)(load)


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
  """Returns the line on how much of an image a mask repaints.

  Args:
    path: of the mask.
    mask: [h, w], 0 to 1.
    cell: side in px of a pixel of the latents, which is repainted as a whole.
    threshold: see `load`.
  """
  cells = np.asarray(img2img.to_latent_mask(mask[None], cell, threshold))
  share = 100 * cells.mean()
  return f'{path} repaints {share:.3g} % of the image'
