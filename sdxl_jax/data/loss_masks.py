"""Masks of the loss: where on an image its error counts, 0..1.

A mask is an image of its own, or the alpha channel: 255 counts fully, 0 not at
all. It follows its image through resize, mirroring and crop, and is averaged
over the pixels that each latent stands for, as kohya's sd-scripts do.
"""

import numpy as np
from PIL import Image

from sdxl_jax.data import images
from sdxl_jax.data.sources import indexed

Size = images.Size


def open_image(
  example: indexed.Example, at_least: Size, background: str
) -> tuple[Image.Image, Image.Image | None]:
  """Opens an example's image and its mask, None if it has none.

  Args:
    example: from a source; one that names masks has the key `mask`, of encoded
      bytes, or None of a record without one. Otherwise the mask is the alpha
      channel of the image.
    at_least: (height, width) that is enough.
    background: colour behind transparent images.

  Raises:
    images.UnreadableImage: for one that cannot be decoded.
    ValueError: for a mask of another aspect than its image.
  """
  if not isinstance(example['image'], bytes):
    image, mask = Image.fromarray(example['image']), None
  else:
    image, mask = images.decode_with_mask(
      example['image'],
      example['name'],
      example['original_size'],
      at_least=at_least,
      background=background,
    )
  if 'mask' in example:
    mask = None
    if example['mask'] is not None:
      mask = decode(example['mask'], example)
  return image, mask


def decode(data: bytes, example: indexed.Example) -> Image.Image:
  """Decodes the bytes of a mask to grey: its red channel, over black."""
  mask = images.decode(data, f'mask of {example["name"]}', background='black')
  (h, w), (full_h, full_w) = mask.size[::-1], example['original_size']
  # Up to the rounding of a mask that was made smaller.
  if abs(h * full_w - w * full_h) > max(full_h, full_w):
    raise ValueError(
      f'its mask has {h} x {w} px (height x width), another aspect than its '
      f'image of {full_h} x {full_w}: make it from the image'
    )
  return mask.getchannel('R')


def fit(
  mask: Image.Image | None,
  covering: Size,
  bucket: Size,
  crop: tuple[int, int],
  flip: bool,
  downscale: int,
) -> np.ndarray:
  """Resizes and crops a mask as its image, and averages it over latents.

  Args:
    mask: in grey; None: 1 everywhere.
    covering: (height, width) that the image was resized to.
    bucket: (height, width).
    crop: (top, left) of the crop in the resized image, mirrored if that is.
    flip: whether the image was mirrored.
    downscale: px per latent.

  Returns:
    float32 [height / downscale, width / downscale] in 0..1.
  """
  rows, columns = (side // downscale for side in bucket)
  if mask is None:
    return np.ones((rows, columns), np.float32)
  pixels = np.asarray(images.resize(mask, covering))
  if flip:
    pixels = pixels[:, ::-1]
  top, left = crop
  pixels = pixels[top : top + bucket[0], left : left + bucket[1]]
  blocks = pixels.reshape(rows, downscale, columns, downscale)
  # A sum of whole numbers is exact.
  total = blocks.sum(axis=(1, 3), dtype=np.int64)
  return np.float32(total / (255 * downscale**2))
