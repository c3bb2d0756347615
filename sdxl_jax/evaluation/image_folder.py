"""Lists and opens the images of a folder, in the order of their names."""

import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from sdxl_jax.data import image_formats, images
from sdxl_jax.data.sources import folder_listing


def list_images(folder: str | os.PathLike) -> list[pathlib.Path]:
  """Lists the images below a folder, sorted by path; other files are no images.

  Raises:
    FileNotFoundError, NotADirectoryError: where there is no such folder.
    ValueError: for a folder without images, and for images that a link names
      or a folder hides from reading, which a metric would lack.
  """
  folder = pathlib.Path(folder)
  listing = folder_listing.list_files(folder)
  if listing.unusable:
    first = listing.unusable[0]
    raise ValueError(
      f'{folder / first[0]} and {len(listing.unusable) - 1} others cannot be '
      f'read ({first[3]}): mend or remove them'
    )
  paths = [
    folder / name
    for name in listing.files
    if os.path.splitext(name)[1].lower() in image_formats.SUFFIXES
  ]
  if not paths:
    kinds = ', '.join(image_formats.COMMON)
    raise ValueError(
      f'{folder} has no images among its {len(listing.files)} files: name a '
      f'folder of {kinds} or other files that Pillow reads'
    )
  return paths


def open_rgb(image: Any) -> Image.Image:
  """Opens an image as Pillow's RGB.

  As pytorch-fid does it: transparency and EXIF orientation are disregarded.
  Images of 16 bits per pixel, which Pillow would clip, are scaled to 8.

  Args:
    image: path, Pillow image, or uint8 [h, w, 3].

  Raises:
    images.UnreadableImage: for a file that is missing or broken.
    ValueError: for an array of another kind.
  """
  if isinstance(image, Image.Image):
    image_formats.check_mode(image)
    return to_rgb(image)
  if isinstance(image, str | os.PathLike):
    with images.decoding(image), open(image, 'rb') as file:
      return to_rgb(image_formats.open_convertible(file))
  array = np.asarray(image)
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
    raise ValueError(
      f'an image is {array.dtype} {list(array.shape)}: pass uint8 [h, w, 3], '
      'a Pillow image or a path'
    )
  return Image.fromarray(array)


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts a Pillow image to RGB; see `open_rgb`."""
  is_deep = image.mode.startswith('I')
  return images.to_rgb(image) if is_deep else image.convert('RGB')


def describe(image: Any, index: int) -> str:
  """Names an image for errors: its path, or its place."""
  is_path = isinstance(image, str | os.PathLike)
  return str(image) if is_path else f'image {index + 1}'
