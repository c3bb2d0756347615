"""Tests that the sizes and crops of batches are those of their pixels."""

import numpy as np
import pytest

from sdxl_jax.data import batch_rows, buckets, pipeline, transforms
from sdxl_jax.data.sources import kinds
from tests.support import datasets

BUCKETS = ((48, 96), (64, 64), (96, 48))
SIZES = ((90, 240), (240, 90), (100, 140), (64, 64), (40, 50), (70, 130)) * 2


def read_ramp(image, resized):
  """Computes (record number, top, left, whether it is mirrored) from pixels.

  Args:
    image: float [h, w, 3], cut out of a ramp of size `resized`.
    resized: (height, width).
  """
  pixels = (np.asarray(image, float) + 1) * 127.5
  inside = pixels[4:-4, 4:-4]  # a resize bends the ramp at its ends
  number = round(inside[..., 2].mean() / datasets.STEP)
  y = inside[..., 1].mean(1) / 255 * resized[0]
  x = inside[..., 0].mean(0) / 255 * resized[1]
  mirrored = x[-1] < x[0]
  x = resized[1] - x if mirrored else x
  top = np.median(y - np.arange(4.5, 4.5 + len(y)))
  left = np.median(x - np.arange(4.5, 4.5 + len(x)))
  return number, top, left, mirrored


@pytest.mark.parametrize('flip', [0.0, 0.5])
@pytest.mark.parametrize('kind', sorted(datasets.WRITERS))
def test_conditions_are_true(kind, flip, tmp_path):
  examples = [
    datasets.example(i, size, 'JPEG' if i % 2 else 'PNG')
    for i, size in enumerate(SIZES)
  ]
  written = datasets.WRITERS[kind](tmp_path, examples)
  source = kinds.make_source(kind, written, workers=0)
  schedule = buckets.Schedule(source.sizes, BUCKETS, 0, 4)
  batches = pipeline.make_batches(
    source,
    lambda texts: (np.zeros((len(texts), 2, 77)), [''] * len(texts)),
    schedule,
    range(4),
    batch_rows.BatchOptions(flip_probability=flip),
  )
  flips, numbers, crops = 0, set(), set()
  for _ in range(12):
    bucket, batch = next(batches)
    for row in range(4):
      image, size, crop, target = (
        batch[key][row]
        for key in ('image', 'original_size', 'crop_top_left', 'target_size')
      )
      resized = transforms.cover(size, bucket)
      number, top, left, mirrored = read_ramp(image, resized)
      assert tuple(size) == SIZES[number]
      assert tuple(target) == image.shape[:2] == bucket
      assert abs(top - crop[0]) < 0.7 and abs(left - crop[1]) < 0.7
      flips += mirrored
      numbers.add(number)
      crops.add(tuple(crop))
  batches.close()
  assert numbers == set(range(len(SIZES))) and len(crops) > 10
  assert bool(flips) == bool(flip)
