"""From a source's example to one of the bucket's shape, sizes recorded.

Algorithm 1 of the SDXL paper, with a bucket in place of a square. Randomness
comes from (seed, pass, record id) alone, so that it does not depend on hosts,
threads or batch size.
"""

import numpy as np

from sdxl_jax.data import images


def cover(size, bucket):
  """The (height, width) that just covers the bucket, aspect kept."""
  scale = max(b / s for b, s in zip(bucket, size))
  return tuple(max(b, round(s * scale)) for b, s in zip(bucket, size))


def random_crop(resized, bucket, rng):
  """(top, left), uniform; only the longer side leaves a choice."""
  return tuple(int(rng.integers(r - b + 1)) for r, b in zip(resized, bucket))


def fit(image, bucket, rng, flip):
  """The picture resized, perhaps mirrored, and cropped to the bucket.

  Args:
    image: uint8 [h, w, 3].
    bucket: (height, width).
    rng: of the crop.
    flip: whether to mirror, before the crop.

  Returns:
    uint8 [*bucket, 3], and the crop's (top, left) in px of the resized picture.
  """
  h, w = bucket
  resized = images.resize(image, cover(image.shape[:2], bucket))
  top, left = random_crop(resized.shape[:2], bucket, rng)
  if flip:
    # The crop of the mirrored picture starts where the other one ended.
    image = resized[top : top + h, left : left + w][:, ::-1]
    return image, (top, resized.shape[1] - left - w)
  return resized[top : top + h, left : left + w], (top, left)


def transform(
  example,
  bucket,
  seed,
  aesthetic_score=False,
  flip_probability=0.0,
  caption_dropout=0.0,
):
  """One source example as one row of a batch, its caption not yet tokens.

  Args:
    example: from a source; the image as bytes or uint8 [h, w, 3].
    bucket: (height, width) of the row.
    seed: sequence of ints, of everything random here.
    aesthetic_score: whether the row carries one.
    flip_probability: of mirroring, where the example does not forbid it.
    caption_dropout: probability of the caption ''.

  Returns:
    `image` float32 [h, w, 3] in [-1, 1], `caption`, and (height, width) or
    (top, left) as int32 [2]: `original_size` before any resize,
    `crop_top_left` in px of the resized image, `target_size`.

  Raises:
    images.UnreadableImage: for a picture that cannot be decoded.
    ValueError: where a score is asked for that the example lacks.
  """
  rng = np.random.default_rng(seed)
  flip = rng.random() < flip_probability and example.get('flippable', True)
  drop = rng.random() < caption_dropout
  image = example['image']
  if isinstance(image, bytes):
    image = images.decode(image, example['name'])
  image, crop = fit(image, bucket, rng, flip)
  row = {
    'image': images.to_float(image),
    'caption': '' if drop else example['caption'],
    'original_size': np.array(example['original_size'], np.int32),
    'crop_top_left': np.array(crop, np.int32),
    'target_size': np.array(bucket, np.int32),
  }
  if aesthetic_score:
    row['aesthetic_score'] = score(example)
  return row


def score(example):
  """The aesthetic score as float32, or an error that says where to add it."""
  if 'aesthetic_score' not in example:
    raise ValueError(
      f'{example["name"]} has no aesthetic_score, which the refiner is trained '
      'on: give every row of metadata.jsonl or metadata.csv a number '
      '`aesthetic_score`, about 1 to 10'
    )
  return np.float32(example['aesthetic_score'])
