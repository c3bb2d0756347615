"""The reference's invisible watermark: 48 bits in the colour of a picture.

Method `dwtDct` of the library invisible-watermark 0.2.0 with the message of
Stability-AI/generative-models (sgm/inference/helpers.py), in the library's
order of operations, so that its bytes come out. In spite of the method's name
there is no cosine transform in it.
"""

import numpy as np

MESSAGE = 0xB3EC907BB19E
BITS = np.array([int(bit) for bit in f'{MESSAGE:048b}'])
# Matching bits from which the reference's detector calls a picture likely
# marked; of its 10,000 photographs 0.02 % came so far.
LIKELY = 34
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


def embed(image):
  """uint8 [h, w, 3] RGB with the watermark, byte for byte the library's.

  It marks bytes, as the reference's detector reads bytes. The reference itself
  marks floats, whose U lies around 0.5 and not 128, so that of their rounded
  bytes its detector may read little, and even the opposite.

  Three things come with the method: pure white, blue and yellow leave no room
  for a bit, colour moves by a pixel at its edges, and the purest reds and cyans
  come up to 34 levels nearer to grey, being beyond an 8-bit V.

  Raises:
    ValueError: for another kind of array, or too small a picture.
  """
  check(image)
  yuv = to_yuv(image)
  u = colour(yuv)
  mean, down, across, both = haar(u)
  at = largest(mean)
  bits = np.resize(BITS, len(at[0]))
  mean[at] = (mean[at] // STEP + 0.25 + 0.5 * bits) * STEP
  # The library puts two bands back in each other's place, which transposes
  # each 2 x 2 px of U, and cuts decimals off. Nothing can leave 0..255: of RGB
  # U is 17..239, and a mean moves by 27 at most, which is 13.5 for a pixel.
  u[...] = inverse_haar(mean, across, down, both).astype(u.dtype)
  return to_rgb(yuv)


def detect(image):
  """How many of the 48 bits of uint8 [h, w, 3] RGB are those of the message.

  A picture without it gets about half, a photograph with it `LIKELY` or more.

  Raises:
    ValueError: for another kind of array, or too small a picture.
  """
  check(image)
  mean = haar(colour(to_yuv(image)))[0]
  ones = mean[largest(mean)] % STEP > STEP / 2
  votes = np.array([ones[i :: len(BITS)].mean() for i in range(len(BITS))])
  # The library's majority, which is a little less than half.
  return int(((votes * 255 > 127) == BITS).sum())


def check(image):
  """Refuses what has no place for the message."""
  if getattr(image, 'dtype', None) != np.uint8 or image.shape[2:] != (3,):
    kind = getattr(image, 'dtype', type(image).__name__)
    raise ValueError(
      f'a watermark is for uint8 [h, w, 3], not {kind} {np.shape(image)}; '
      'images.to_uint8 rounds a float picture'
    )
  h, w, _ = image.shape
  if h * w < MIN_AREA or min(h, w) < 2 * BLOCK:
    raise ValueError(
      f'a picture of {h} x {w} = {h * w} px is too small for the watermark, '
      f'which takes {MIN_AREA} px (256 x 256) and sides of {2 * BLOCK} px or '
      'more; make it larger or leave the watermark out'
    )


def colour(yuv):
  """A view of U, both sides cut to a multiple of four as the library does."""
  h, w, _ = yuv.shape
  return yuv[: h // BLOCK * BLOCK, : w // BLOCK * BLOCK, 1]


def largest(band):
  """Where each 4 x 4 block is largest, but for its first; (rows, columns).

  By magnitude in the library, which is the same, as U is positive.
  """
  h, w = (side // BLOCK for side in band.shape)
  blocks = band[: h * BLOCK, : w * BLOCK].reshape(h, BLOCK, w, BLOCK)
  blocks = blocks.swapaxes(1, 2).reshape(h * w, BLOCK * BLOCK)
  place = 1 + blocks[:, 1:].argmax(1)
  row, column = np.divmod(np.arange(h * w), w)
  return row * BLOCK + place // BLOCK, column * BLOCK + place % BLOCK


def haar(x):
  """[h, w] to its Haar bands, [h/2, w/2] each: mean, down, across, both.

  `down` is the difference along axis 0. The rounding of float64 decides which
  integer a pixel becomes, so the order of operations is PyWavelets': axis 0
  first, each term scaled before the sum.
  """
  low, high = halves(x, axis=0)
  mean, across = halves(low, axis=1)
  down, both = halves(high, axis=1)
  return mean, down, across, both


def inverse_haar(mean, down, across, both):
  """Four bands [h, w] to [2h, 2w], axis 1 first."""
  low = interleave(mean, across, axis=1)
  high = interleave(down, both, axis=1)
  return interleave(low, high, axis=0)


def halves(x, axis):
  """Scaled sums and differences of neighbours."""
  even, odd = (
    ROOT * np.take(x, range(first, x.shape[axis], 2), axis) for first in (0, 1)
  )
  return even + odd, even - odd


def interleave(low, high, axis):
  """Neighbours from their scaled sums and differences."""
  low, high = ROOT * low, ROOT * high
  pairs = np.stack([low + high, low - high], axis + 1)
  shape = list(low.shape)
  shape[axis] *= 2
  return pairs.reshape(shape)


def to_yuv(image):
  """uint8 RGB [h, w, 3] to int32 Y, U, V as OpenCV rounds them."""
  red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
  y = descale(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)
  u = descale(U_OF_BLUE * (blue - y)) + GREY
  v = descale(V_OF_RED * (red - y)) + GREY
  return np.stack([y, u, v], -1).clip(0, 255)


def to_rgb(yuv):
  """int32 Y, U, V [h, w, 3] to uint8 RGB as OpenCV rounds and clips them."""
  y, u, v = np.moveaxis(yuv, -1, 0)
  u, v = u - GREY, v - GREY
  red = y + descale(RED_OF_V * v)
  green = y + descale(GREEN_OF_U * u + GREEN_OF_V * v)
  blue = y + descale(BLUE_OF_U * u)
  return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


def descale(x):
  """From 14 fractional bits to whole numbers, rounded."""
  return (x + HALF) >> SHIFT
