"""From a source's example to one of the bucket's shape, sizes recorded.

Algorithm 1 of the SDXL paper, with a bucket in place of a square. Randomness
comes from (seed, pass, record id) alone, so that it does not depend on hosts,
threads or batch size.
"""

import numpy as np
from PIL import Image

from sdxl_jax.data import images


def scale(size, bucket):
  """By which factor a picture grows to just cover the bucket."""
  return max(b / s for b, s in zip(bucket, size))


def cover(size, bucket):
  """The (height, width) that just covers the bucket, aspect kept."""
  factor = scale(size, bucket)
  return tuple(max(b, round(s * factor)) for b, s in zip(bucket, size))


def random_crop(resized, bucket, rng):
  """(top, left), uniform; only the longer side leaves a choice."""
  return tuple(int(rng.integers(r - b + 1)) for r, b in zip(resized, bucket))


def fit(image, size, bucket, rng, flip):
  """The picture resized, perhaps mirrored, and cropped to the bucket.

  Args:
    image: Pillow image, perhaps decoded smaller than it is.
    size: its own (height, width).
    bucket: (height, width).
    rng: of the crop.
    flip: whether to mirror, before the crop.

  Returns:
    uint8 [*bucket, 3], and the crop's (top, left) in px of the resized picture.
  """
  h, w = bucket
  resized = images.resize(image, cover(size, bucket))
  top, left = random_crop(resized.size[::-1], bucket, rng)
  pixels = np.asarray(resized.crop((left, top, left + w, top + h)))
  if flip:
    # The crop of the mirrored picture starts where the other one ended.
    return pixels[:, ::-1], (top, resized.width - left - w)
  return pixels, (top, left)


def transform(
  example,
  bucket,
  seed,
  aesthetic_score=False,
  flip_probability=0.0,
  caption_dropout=0.0,
  background='white',
):
  """One source example as one row of a batch, its caption not yet tokens.

  Args:
    example: from a source; the image as bytes or uint8 [h, w, 3], or computed
      ahead as in `precomputed`.
    bucket: (height, width) of the row.
    seed: sequence of ints, of everything random here.
    aesthetic_score: whether the row carries one.
    flip_probability: of mirroring, where the example does not forbid it.
    caption_dropout: probability of the caption ''.
    background: colour behind transparent pictures.

  Returns:
    `image` float32 [h, w, 3] in [-1, 1] and `caption`, or `moments`, `context`
    and `pooled`; and (height, width) or (top, left) as int32 [2]:
    `original_size` before any resize, `crop_top_left` in px of the resized
    image, `target_size`.

  Raises:
    images.UnreadableImage: for a picture that cannot be decoded.
    ValueError: where a score is asked for that the example lacks.
  """
  rng = np.random.default_rng(seed)
  flip = rng.random() < flip_probability and example.get('flippable', True)
  drop = rng.random() < caption_dropout
  if 'variants' in example:
    row = choose(example, bucket, rng, flip, drop)
  else:
    image, crop = fit(
      open_image(example, bucket, background),
      *(example['original_size'], bucket, rng, flip),
    )
    row = {
      'image': images.to_float(image),
      'caption': '' if drop else example['caption'],
      'crop_top_left': np.array(crop, np.int32),
    }
  row['original_size'] = np.array(example['original_size'], np.int32)
  row['target_size'] = np.array(bucket, np.int32)
  if aesthetic_score:
    row['aesthetic_score'] = score(example)
  return row


def open_image(example, bucket, background='white'):
  """An example's picture, decoded no larger than the bucket needs."""
  if not isinstance(example['image'], bytes):
    return Image.fromarray(example['image'])
  size = example['original_size']
  return images.decode(
    *(example['image'], example['name'], size),
    at_least=cover(size, bucket),
    background=background,
  )


def choose(example, bucket, rng, flip, drop):
  """One of the crops that were computed ahead, and the encoded text."""
  if example['bucket'] != bucket:
    raise ValueError(
      f'{example["name"]} was precomputed for the bucket {example["bucket"]}, '
      f'not {bucket}: precompute it with the buckets of this config'
    )
  variants = example['variants']
  crop = int(rng.integers(variants.crops))
  text = example['uncond'] if drop else example['text']
  return variants[crop, int(flip)] | text


def score(example):
  """The aesthetic score as float32, or an error that says where to add it."""
  if 'aesthetic_score' not in example:
    raise ValueError(
      f'{example["name"]} has no aesthetic_score, which the refiner is trained '
      'on: give every record a number of about 1 to 10, in metadata.jsonl of a '
      'folder, elsewhere in what the config of the source names as score'
    )
  return np.float32(example['aesthetic_score'])
