"""Resizes images as the protocols of the metrics do, to the pixel.

Done on the host, image by image, since images may differ in size; what goes to
the devices has one size. Each function takes an RGB image of Pillow.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
Square = Float[np.ndarray, 'size size 3'] | UInt8[np.ndarray, 'size size 3']


def bilinear(image: Image.Image, size: int) -> Float[np.ndarray, 'size size 3']:
  """Resizes to a square, bilinear without antialiasing, float32 in [0, 1].

  As torch's interpolate(mode='bilinear', align_corners=False), with which
  pytorch-fid resizes: a pixel is a mean of four, however small the result is.
  """
  pixels = np.asarray(image, np.float32) / np.float32(255)
  height, width = pixels.shape[:2]
  top, bottom, y = neighbours(height, size)
  left, right, x = neighbours(width, size)
  x, y = x[None, :, None], y[:, None, None]

  def mix_columns(rows):
    return (1 - x) * rows[:, left] + x * rows[:, right]

  return (1 - y) * mix_columns(pixels[top]) + y * mix_columns(pixels[bottom])


def neighbours(
  length: int, size: int
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, ' size']]:
  """Returns, of each new pixel, the two old ones and the weight of the second.

  In float32 as in torch, whose rounding moves weights by up to 1e-4. Its
  multiplication and subtraction are one instruction, which rounds once; here
  they are of float64, in which the product is exact.
  """
  scale = np.float64(np.float32(length) / np.float32(size))
  place = np.float32(scale * (np.arange(size) + 0.5) - 0.5)
  place = np.maximum(place, np.float32(0))
  first = np.minimum(place.astype(np.int64), length - 1)
  second = np.minimum(first + 1, length - 1)
  return first, second, place - first.astype(np.float32)


def clip_crop(
  image: Image.Image, size: int
) -> UInt8[np.ndarray, 'size size 3']:
  """Resizes the shorter side, antialiased bicubic, and crops the centre.

  As open_clip's preprocessing, and so MLPerf's CLIP score.
  """
  width, height = image.size
  short = min(width, height)
  # As torchvision: the longer side is rounded down.
  new = [size if n == short else int(size * n / short) for n in image.size]
  resized = image if [*image.size] == new else image.resize(new, BICUBIC)
  left, top = (int(round((n - size) / 2)) for n in new)
  return np.asarray(resized.crop((left, top, left + size, top + size)))


def cmmd_crop(
  image: Image.Image, size: int
) -> UInt8[np.ndarray, 'size size 3']:
  """Crops the central square and resizes it, antialiased bicubic.

  As the code of CMMD (Jayasumana et al. 2024), which crops before it resizes.
  """
  width, height = image.size
  short = min(width, height)
  left, top = (width - short) // 2, (height - short) // 2
  square = image.crop((left, top, left + short, top + short))
  return np.asarray(square.resize((size, size), BICUBIC))
