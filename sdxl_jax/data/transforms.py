"""From a source's example to a row of the bucket's shape, sizes recorded.

Algorithm 1 of the SDXL paper, with a bucket in place of a square. Randomness is
a function of (seed, pass, record id) alone, so that it does not depend on
hosts, threads or batch size.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sdxl_jax.data import images, loss_masks
from sdxl_jax.data.sources import indexed

# Pixels that the resize of an image may make, of 4 bytes each: half a GiB in
# each thread.
MAX_RESIZED = 1 << 27

Example = indexed.Example
Size = images.Size
Row = dict[str, Any]  # see `transform`


def scale(size: Size, bucket: Size) -> float:
  """Computes the factor by which an image grows to just cover the bucket."""
  return max(b / s for b, s in zip(bucket, size))


def cover(size: Size, bucket: Size) -> Size:
  """Computes the (height, width) that just covers the bucket, aspect kept."""
  factor = scale(size, bucket)
  return tuple(max(b, round(s * factor)) for b, s in zip(bucket, size))


def random_crop(
  resized: Size, bucket: Size, rng: np.random.Generator
) -> tuple[int, int]:
  """Samples (top, left) uniformly; only the longer side leaves a choice."""
  return tuple(int(rng.integers(r - b + 1)) for r, b in zip(resized, bucket))


def fit(
  image: Image.Image,
  size: Size,
  bucket: Size,
  rng: np.random.Generator,
  flip: bool,
) -> tuple[np.ndarray, tuple[int, int]]:
  """Resizes an image, mirrors it if asked to, and crops it to the bucket.

  Args:
    image: Pillow image, perhaps decoded at a reduced size.
    size: full (height, width) of the image.
    bucket: (height, width).
    rng: of the crop.
    flip: whether to mirror the resized image before the crop.

  Returns:
    uint8 [*bucket, 3], and the crop's (top, left) in px of the resized image,
    mirrored if asked to.

  Raises:
    ValueError: if the resized image would fill the memory.
  """
  # Resize to cover the bucket, then crop what exceeds it.
  h, w = bucket
  covering = cover(size, bucket)
  if math.prod(covering) > MAX_RESIZED:
    raise ValueError(
      f'{size} px, resized to cover the bucket {bucket}, would be {covering} '
      f'px, over the limit of {MAX_RESIZED:,} in all'
    )
  resized = images.resize(image, covering)
  top, left = random_crop(resized.size[::-1], bucket, rng)
  pixels = np.asarray(resized.crop((left, top, left + w, top + h)))
  if flip:
    # Mirroring after the crop: its right edge becomes the left one.
    return pixels[:, ::-1], (top, resized.width - left - w)
  return pixels, (top, left)


def transform(
  example: Example,
  bucket: Size,
  seed: Sequence[int],
  aesthetic_score: bool = False,
  flip_probability: float = 0.0,
  caption_dropout: float = 0.0,
  background: str = 'white',
  mask_downscale: int = 0,
) -> Row:
  """Makes one row of a batch of one example, its caption not yet tokenized.

  Args:
    example: from a source; the image as bytes or uint8 [h, w, 3], or
      precomputed variants as in `sources.precomputed`.
    bucket: (height, width) of the row.
    seed: ints, of everything random here.
    aesthetic_score: whether the row has one.
    flip_probability: of mirroring, where the example does not forbid it.
    caption_dropout: probability of the caption ''.
    background: colour behind transparent images.
    mask_downscale: px per latent, for a mask of the loss; 0: the row has none.

  Returns:
    `image` float32 [h, w, 3] in [-1, 1] and `caption`, or `moments`, `context`
    and `pooled`; and (height, width) or (top, left) as int32 [2]:
    `original_size` before any resize, `crop_top_left` in px of the resized
    image, `target_size`. With masks also `mask`, of `loss_masks.fit`.

  Raises:
    images.UnreadableImage: for an image that cannot be decoded.
    ValueError: for a missing aesthetic score, or another precomputed bucket.
  """
  # The order of these draws is part of what a seed means.
  rng = np.random.default_rng(seed)
  flip = rng.random() < flip_probability and example.get('flippable', True)
  drop = rng.random() < caption_dropout
  # The image and its caption, or one of the precomputed variants.
  if 'variants' in example:
    row = choose_variant(example, bucket, rng, flip, drop)
    if not mask_downscale:
      row.pop('mask', None)
  else:
    size = example['original_size']
    image, mask = open_with_mask(example, bucket, background, mask_downscale)
    pixels, crop = fit(image, size, bucket, rng, flip)
    check_caption(example)
    row = {
      'image': images.to_float(pixels),
      'caption': '' if drop else example['caption'],
      'crop_top_left': np.array(crop, np.int32),
    }
    if mask_downscale:
      row['mask'] = loss_masks.fit(
        mask, cover(size, bucket), bucket, crop, flip, mask_downscale
      )
  # Micro-conditioning.
  row['original_size'] = np.array(example['original_size'], np.int32)
  row['target_size'] = np.array(bucket, np.int32)
  if aesthetic_score:
    row['aesthetic_score'] = score_of(example)
  return row


def open_image(
  example: Example, bucket: Size, background: str = 'white'
) -> Image.Image:
  """Opens an example's image, decoded no larger than the bucket needs."""
  if not isinstance(example['image'], bytes):
    return Image.fromarray(example['image'])
  size = example['original_size']
  return images.decode(
    example['image'],
    example['name'],
    size,
    at_least=cover(size, bucket),
    background=background,
  )


def open_with_mask(
  example: Example, bucket: Size, background: str, mask_downscale: int
) -> tuple[Image.Image, Image.Image | None]:
  """Opens an image as `open_image` does, and its mask unless there is none."""
  if not mask_downscale:
    return open_image(example, bucket, background), None
  at_least = cover(example['original_size'], bucket)
  return loss_masks.open_image(example, at_least, background)


def check_caption(example: Example) -> None:
  """Raises TypeError or ValueError for a caption that cannot be tokenized."""
  caption = example['caption']
  if not isinstance(caption, str):
    raise TypeError(f'its caption is no text, but {caption!r:.60}')
  # JSON may hold halves of surrogate pairs, which no tokenizer takes.
  caption.encode()


def choose_variant(
  example: Example,
  bucket: Size,
  rng: np.random.Generator,
  flip: bool,
  drop: bool,
) -> Row:
  """Chooses one of the precomputed crops, and adds the encoded text.

  Args:
    example: from `sources.precomputed`.
    bucket: (height, width) of the row.
    rng: of the crop.
    flip: whether to take the mirrored crop.
    drop: whether to take the text of the empty caption.

  Raises:
    ValueError: if the example was precomputed for another bucket.
  """
  if example['bucket'] != bucket:
    raise ValueError(
      f'{example["name"]} was precomputed for the bucket {example["bucket"]}, '
      f'not {bucket}: precompute it with the buckets of this config'
    )
  # One read of the shard, for the variant chosen.
  variants = example['variants']
  crop = int(rng.integers(variants.crops))
  text = example['uncond'] if drop else example['text']
  return variants[crop, int(flip)] | text


def score_of(example: Example) -> np.float32:
  """Returns the aesthetic score, or raises ValueError with how to add it."""
  with np.errstate(over='ignore'):  # infinite is refused below
    score = np.float32(example.get('aesthetic_score', np.nan))
  if not np.isfinite(score):
    raise ValueError(
      f'{example["name"]} has no aesthetic_score, which the refiner is trained '
      'on: add a number of about 1 to 10 to every record, in metadata.jsonl of '
      "a folder, otherwise in the source's setting score"
    )
  return score
