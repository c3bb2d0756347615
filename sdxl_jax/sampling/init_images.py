"""Pictures to draw from: an image, and a mask of what to repaint in it."""

import pathlib

import numpy as np

from sdxl_jax.data import images

STEP = 8  # px; the nets take sides that are multiples of it


def load(image_path, mask_path, size, default_size):
  """{'size', 'image', 'mask'} as sample.generate takes them.

  Args:
    image_path, mask_path: of files, or None.
    size: (height, width) in px to draw; a side may be None, the image's own.
    default_size: without an image.

  Raises:
    ValueError: for a file that is no picture, or a mask that does not fit.
    OSError: for one that cannot be read.
  """
  if image_path is None:
    if mask_path is not None:
      raise ValueError(f'mask {mask_path} is given without an image: give both')
    size = tuple(side or own for side, own in zip(size, default_size))
    return {'size': size, 'image': None, 'mask': None}
  image = read(image_path)
  own = [side // STEP * STEP for side in image.size[::-1]]
  size = tuple(side or own for side, own in zip(size, own))
  mask = None
  if mask_path is not None:
    mask = images.resize(read_mask(mask_path, image, image_path), size)
    mask = np.asarray(mask, np.float32) / 255
  image = images.to_float(images.resize(image, size))
  return {'size': size, 'image': image, 'mask': mask}


def read(path):
  """A Pillow image in RGB; what is transparent becomes white."""
  return images.decode(pathlib.Path(path).read_bytes(), path)


def read_mask(path, image, image_path):
  """A mask in grey, which must be as large as the image that it is for."""
  mask = read(path).convert('L')
  if mask.size != image.size:
    raise ValueError(
      f'{path} is {mask.size[0]} x {mask.size[1]} px and {image_path} is '
      f'{image.size[0]} x {image.size[1]} (width x height): a mask must be as '
      'large as its image'
    )
  if np.asarray(mask).max() < 128:
    raise ValueError(f'{path} is nowhere white, where it would be repainted')
  return mask
