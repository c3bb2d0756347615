"""SDXL's invisible watermark: 48 bits in the colour of an image.

Method `dwtDct` of the library invisible-watermark 0.2.0 with the message of
Stability-AI/generative-models (sgm/inference/helpers.py), in the library's
order of operations, so that the result is the library's byte for byte. In spite
of its name the method has no cosine transform.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

Band = Float[np.ndarray, '_ _']

MESSAGE = 0xB3EC907BB19E
BITS = np.array([int(bit) for bit in f'{MESSAGE:048b}'])
STEP = 36  # of quantisation; a bit is the half of a step that a value is in
BLOCK = 4  # coefficients, 8 px
MIN_AREA = 256 * 256  # px, the library's limit
ROOT = 0.7071067811865476  # sqrt(1/2), both taps of the Haar filter

# OpenCV's 8-bit YUV (modules/imgproc/src/color_yuv.simd.hpp): BT.601 luma and
# analogue colour differences, in integers of 14 fractional bits.
SHIFT = 14
HALF = 1 << (SHIFT - 1)
LUMA = (4899, 9617, 1868)  # 0.299, 0.587, 0.114
U_OF_BLUE, V_OF_RED = 8061, 14369  # 0.492, 0.877
BLUE_OF_U, RED_OF_V = 33292, 18678  # 2.032, 1.140
GREEN_OF_U, GREEN_OF_V = -6472, -9519  # -0.395, -0.581
GREY = 128  # the U and V of grey


def embed(image: Any) -> UInt8[np.ndarray, 'h w 3']:
  """Embeds the watermark in an RGB image, uint8 [h, w, 3].

  The watermark is embedded in bytes, since detectors read bytes. sgm embeds it
  in floats, whose U lies around 0.5 instead of 128, so that its own detector
  may find few bits, or inverted ones, after rounding.

  The method has three side effects: pure white, blue and yellow have no room
  for a bit, colour moves by a pixel at its edges, and the purest reds and cyans
  come up to 34 levels nearer to grey, since they are beyond an 8-bit V.

  Raises:
    ValueError: for another kind of array, or too small an image.
  """
  check(image)
  yuv = to_yuv(image)
  u = colour(yuv)
  mean, down, across, both = haar(u)
  at = largest(mean)
  bits = np.resize(BITS, len(at[0]))
  mean[at] = (mean[at] // STEP + 0.25 + 0.5 * bits) * STEP
  # The library swaps two bands, which transposes each 2 x 2 px of U, and cuts
  # off decimals. Values stay in 0..255: U of RGB is 17..239, and a mean moves
  # by at most 27, which is 13.5 for a pixel.
  u[...] = inverse_haar(mean, across, down, both).astype(u.dtype)
  return to_rgb(yuv)


def check(image: Any) -> None:
  """Raises ValueError for an image without room for the message."""
  if getattr(image, 'dtype', None) != np.uint8 or image.shape[2:] != (3,):
    kind = getattr(image, 'dtype', type(image).__name__)
    raise ValueError(
      f'a watermark is for uint8 [h, w, 3], not {kind} {np.shape(image)}; '
      'images.to_uint8 rounds a float image'
    )
  h, w, _ = image.shape
  if h * w < MIN_AREA or min(h, w) < 2 * BLOCK:
    raise ValueError(
      f'an image of {h} x {w} = {h * w} px is too small for the watermark, '
      f'which needs {MIN_AREA} px (256 x 256) and sides of {2 * BLOCK} px or '
      'more: sample a larger one, or leave the watermark out'
    )


def colour(yuv: Int[np.ndarray, 'h w 3']) -> Int[np.ndarray, 'h4 w4']:
  """Returns a view of U, its sides cut to multiples of four."""
  h, w, _ = yuv.shape
  return yuv[: h // BLOCK * BLOCK, : w // BLOCK * BLOCK, 1]


def largest(
  band: Band,
) -> tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' n']]:
  """Returns (rows, columns) of the largest value of each 4 x 4 block.

  The first value of a block is left out. The library compares magnitudes, which
  is the same, since U is positive.
  """
  h, w = (side // BLOCK for side in band.shape)
  blocks = band[: h * BLOCK, : w * BLOCK].reshape(h, BLOCK, w, BLOCK)
  blocks = blocks.swapaxes(1, 2).reshape(h * w, BLOCK * BLOCK)
  position = 1 + blocks[:, 1:].argmax(1)
  row, column = np.divmod(np.arange(h * w), w)
  return row * BLOCK + position // BLOCK, column * BLOCK + position % BLOCK


def haar(x: Any) -> tuple[Band, Band, Band, Band]:
  """Transforms [h, w] into Haar bands: mean, down, across, both, [h/2, w/2].

  `down` is the difference along axis 0. The rounding of float64 decides which
  integer a pixel becomes, so the order of operations is PyWavelets': axis 0
  first, each term scaled before the sum.
  """
  low, high = halves(x, axis=0)
  mean, across = halves(low, axis=1)
  down, both = halves(high, axis=1)
  return mean, down, across, both


def inverse_haar(mean: Band, down: Band, across: Band, both: Band) -> Band:
  """Transforms four bands [h, w] back into [2h, 2w], axis 1 first."""
  low = interleave(mean, across, axis=1)
  high = interleave(down, both, axis=1)
  return interleave(low, high, axis=0)


def halves(x: Any, axis: int) -> tuple[Band, Band]:
  """Returns scaled sums and differences of neighbours."""
  even, odd = (
    ROOT * np.take(x, range(first, x.shape[axis], 2), axis) for first in (0, 1)
  )
  return even + odd, even - odd


def interleave(low: Band, high: Band, axis: int) -> Band:
  """Returns neighbours from their scaled sums and differences."""
  low, high = ROOT * low, ROOT * high
  pairs = np.stack([low + high, low - high], axis + 1)
  shape = list(low.shape)
  shape[axis] *= 2
  return pairs.reshape(shape)


def to_yuv(image: UInt8[np.ndarray, 'h w 3']) -> Int[np.ndarray, 'h w 3']:
  """Converts RGB to Y, U, V as OpenCV rounds them."""
  red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
  y = descale(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)
  u = descale(U_OF_BLUE * (blue - y)) + GREY
  v = descale(V_OF_RED * (red - y)) + GREY
  return np.stack([y, u, v], -1).clip(0, 255)


def to_rgb(yuv: Int[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'h w 3']:
  """Converts Y, U, V to RGB as OpenCV rounds and clips them."""
  y, u, v = np.moveaxis(yuv, -1, 0)
  u, v = u - GREY, v - GREY
  red = y + descale(RED_OF_V * v)
  green = y + descale(GREEN_OF_U * u + GREEN_OF_V * v)
  blue = y + descale(BLUE_OF_U * u)
  return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


def descale(x: Int[np.ndarray, 'h w']) -> Int[np.ndarray, 'h w']:
  """Rounds numbers with 14 fractional bits to integers."""
  return (x + HALF) >> SHIFT
