"""Reads masks as painting programs save them: which pixels are repainted."""

import os
import pathlib

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sdxl_jax.data import images

Path = str | os.PathLike
# Pixels with this share of the largest alpha show their own colour.
SOLID = 0.9
SAME_COLOUR = 32  # of 255; between the 1 % darkest and brightest
SAME_IMAGE = 8  # of 255; the mean difference of an image saved once more
GREY = 16  # of 255; between the channels of a pixel


def read(
  path: Path, image: Image.Image, image_path: Path
) -> Float[np.ndarray, 'h w']:
  """Reads how much of each pixel of an image is to be repainted, 0 to 1.

  Args:
    path: of the mask, which must have the size of its image.
    image: in RGB.
    image_path: of it, for errors.

  Raises:
    ValueError: for a file that is no image, has another size, or does not show
      what is to be repainted.
    OSError: for a file that cannot be read.
  """
  colours, alpha = images.decode_with_alpha(
    pathlib.Path(path).read_bytes(), path
  )
  if colours.size != image.size:
    raise ValueError(describe_sizes(path, colours.size, image_path, image.size))
  try:
    return from_layers(colours, alpha, np.asarray(image))
  except ValueError as error:
    raise ValueError(f'{path} {error}') from None


def describe_sizes(
  path: Path,
  size: tuple[int, int],
  image_path: Path,
  image_size: tuple[int, int],
) -> str:
  """Returns the error for a mask of another (width, height) than its image."""
  turned = ''
  if size == image_size[::-1]:
    turned = (
      ' (it may be turned by the orientation in the EXIF data of one of them)'
    )
  return (
    f'{path} is {size[0]} x {size[1]} px and {image_path} is {image_size[0]} x '
    f'{image_size[1]} (width x height){turned}: a mask must have the size of '
    f'its image, so scale it to {image_size[0]} x {image_size[1]} px, or paint '
    'it on the image'
  )


def from_layers(
  colours: Image.Image,
  alpha: UInt8[np.ndarray, 'h w'] | None,
  image: UInt8[np.ndarray, 'h w 3'],
) -> Float[np.ndarray, 'h w']:
  """Decides what a mask's colours and transparency mean.

  Without transparency what is white, or of one other colour on black, is
  repainted. With it, the mask is one of:
    the image with erased parts: these are repainted;
    strokes of one colour, whichever it is: what is painted is repainted;
    white and black or grey: what is white and painted is repainted.

  Args:
    colours: in RGB, also those under transparent pixels.
    alpha: 0 transparent to 255 opaque; None: opaque.
    image: that the mask is for.

  Returns:
    0, kept, to 1, repainted.

  Raises:
    ValueError: for a mask that is none of these; follows its path.
  """
  grey = np.asarray(colours.convert('L'), np.float32) / 255
  if alpha is None or alpha.min() == 255:
    return from_opaque(np.asarray(colours), grey)
  if not alpha.any():
    raise ValueError(
      'is transparent everywhere: paint white where the image is to be '
      'repainted'
    )
  solid = alpha >= SOLID * alpha.max()
  painted = alpha.astype(np.float32) / 255
  shown = np.asarray(colours)[solid]
  kind = stroke_colour(shown)
  if kind not in ('black', 'white') and is_same(shown, image[solid]):
    return 1 - painted
  if kind:
    return painted
  if is_grey(shown):
    return np.minimum(grey, painted)
  raise ValueError(
    'has transparent parts and several colours, and is not the image itself '
    'with erased parts, so it does not show what to repaint: save it without '
    'transparency, white where to repaint and black elsewhere'
  )


def from_opaque(
  colours: UInt8[np.ndarray, 'h w 3'], grey: Float[np.ndarray, 'h w']
) -> Float[np.ndarray, 'h w']:
  """Decides what the colours of a mask without transparency mean.

  Args:
    colours: of the mask.
    grey: the same, 0 to 1.

  Returns:
    0, kept, to 1, repainted.

  Raises:
    ValueError: for several colours; follows the mask's path.
  """
  brightness = colours.max(-1)
  bright = colours[brightness > SAME_COLOUR]
  if not len(bright) or is_grey(bright):
    return grey
  # Soft edges of one colour on black are darker, and have its proportions.
  strongest = colours[brightness >= SOLID * brightness.max()]
  colour = np.median(strongest, axis=0) / brightness.max()
  expected = brightness[..., None] * colour
  if np.percentile(abs(colours - expected), 99) <= SAME_COLOUR:
    return brightness.astype(np.float32) / 255
  raise ValueError(
    'has several colours, so it does not show what to repaint: save it white '
    'where to repaint and black elsewhere'
  )


def stroke_colour(shown: UInt8[np.ndarray, 'n 3']) -> str:
  """Names the colour that all pixels have: black, white, other; or ''."""
  low, high = np.percentile(shown, (1, 99), axis=0)
  if (high - low).max() > SAME_COLOUR:
    return ''
  if high.max() <= SAME_COLOUR:
    return 'black'
  return 'white' if low.min() >= 255 - SAME_COLOUR else 'other'


def is_same(
  shown: UInt8[np.ndarray, 'n 3'], image: UInt8[np.ndarray, 'n 3']
) -> bool:
  """Returns whether pixels are those of the image, but for compression."""
  difference = np.abs(shown.astype(np.int16) - image)
  return float(difference.mean()) <= SAME_IMAGE


def is_grey(shown: UInt8[np.ndarray, 'n 3']) -> bool:
  """Returns whether all pixels are black, grey or white, but for 1 %."""
  spread = shown.max(1).astype(np.int16) - shown.min(1)
  return float(np.percentile(spread, 99)) <= GREY


def resize(
  mask: Float[np.ndarray, 'h w'], size: tuple[int, int]
) -> Float[np.ndarray, 'H W']:
  """Resizes a mask; a pixel is the largest of those that it covers.

  An average would make lines that are thin beside the image vanish.
  """
  for axis, side in enumerate(size):
    if mask.shape[axis] != side:
      mask = resize_axis(mask, axis, side)
  return mask


def resize_axis(
  mask: Float[np.ndarray, '...'], axis: int, side: int
) -> Float[np.ndarray, '...']:
  """Resizes one axis to `side`, see `resize`."""
  edges = np.arange(side + 1) * mask.shape[axis]
  starts, stops = edges[:-1] // side, -(-edges[1:] // side)
  # As many rounds as pixels are covered, each for all of the new pixels.
  covered = [
    mask.take(np.minimum(starts + i, stops - 1), axis)
    for i in range((stops - starts).max())
  ]
  return np.maximum.reduce(covered)
