"""Compares the data pipeline with a PyTorch DataLoader and Pillow.

  python -m tests.benchmarks.data_throughput

Both decode the same JPEG files of many sizes, resize each image to cover a 512
px bucket, crop, convert to float and stack batches, with one worker per core;
they alternate, five times each. Then prints the time per stage of our pipeline.
Needs torch.
"""

import functools
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image

from sdxl_jax.data import batch_rows, buckets, images, pipeline, transforms
from sdxl_jax.data.sources import kinds

BUCKETS = ((512, 512), (448, 576), (576, 448))
SIDES = (600, 2400)  # px, of the images


def write_images(folder, count):
  """Writes images as detailed as photographs: JPEG, 0.2 bytes per px."""
  rng = np.random.default_rng(0)
  for i in range(count):
    side, aspect = rng.uniform(*SIDES), rng.uniform(0.7, 1.4)
    h, w = int(side * aspect**0.5), int(side / aspect**0.5)
    image = np.zeros((h, w, 3), np.float32)
    for octave in range(3, 9):  # noise with the falling spectrum of photographs
      coarse = rng.normal(0, 200 / octave, (2**octave, 2**octave, 3))
      layer = Image.fromarray(np.uint8(coarse.clip(-127, 127) + 128))
      image += np.asarray(layer.resize((w, h), Image.BICUBIC), np.float32)
    image = np.uint8((image / 3 - 128).clip(0, 255))
    Image.fromarray(image).save(folder / f'{i:04d}.jpg', quality=90)
    (folder / f'{i:04d}.txt').write_text(f'image {i}')


def tokenize(captions):
  return np.zeros((len(captions), 2, 77), np.int32), [''] * len(captions)


class TorchImages:
  """A dataset as a PyTorch user writes it: open, resize, crop, to float."""

  def __init__(self, paths, bucket):
    self.paths, self.bucket = paths, bucket

  def __len__(self):
    return len(self.paths)

  def __getitem__(self, i):
    import torch

    h, w = self.bucket
    image = Image.open(self.paths[i]).convert('RGB')
    size = transforms.cover(image.size[::-1], self.bucket)
    image = image.resize(size[::-1], Image.BICUBIC)
    top, left = (np.random.randint(s - b + 1) for s, b in zip(size, (h, w)))
    image = image.crop((left, top, left + w, top + h))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


def with_torch(groups, batch_size, workers):
  """Returns seconds for all images, by bucket, without start of workers."""
  import torch

  seconds = 0
  for bucket, paths in groups.items():
    loader = torch.utils.data.DataLoader(
      TorchImages(paths * 2, bucket),
      batch_size,
      num_workers=workers,
      persistent_workers=True,
    )
    steps = iter(loader)
    next(steps)
    started = time.monotonic()
    seen = sum(len(batch) for batch in steps)
    seconds += (time.monotonic() - started) / seen * len(paths)
  return seconds


def with_ours(source, batch_size, workers, count):
  """Returns seconds for `count` images, without start of workers."""
  schedule = buckets.Schedule(source.sizes, BUCKETS, 0, batch_size)
  options = batch_rows.BatchOptions(num_threads=workers, prefetch=2 * workers)
  batches = pipeline.make_batches(
    source, tokenize, schedule, range(batch_size), options
  )
  next(batches)
  started = time.monotonic()
  seen = 0
  while seen < count:
    _, batch = next(batches)
    seen += len(batch['image'])
  seconds = time.monotonic() - started
  batches.close()
  return seconds / seen * count


def stages(source, assigned):
  """Returns {stage: ms per image}, on one core."""
  spent = dict.fromkeys(('read', 'decode', 'resize and crop', 'float'), 0.0)

  def timed(stage, function):
    started = time.perf_counter()
    result = function()
    spent[stage] += (time.perf_counter() - started) * 1e3 / len(source)
    return result

  # The stages of pipeline.Slots, one after another.
  for i in range(len(source)):
    bucket = BUCKETS[assigned[i]]
    example = timed('read', functools.partial(source.__getitem__, i))
    image = timed(
      'decode', functools.partial(transforms.open_image, example, bucket)
    )
    rng = np.random.default_rng(i)
    pixels, _ = timed(
      'resize and crop',
      functools.partial(
        transforms.fit, image, example['original_size'], bucket, rng, False
      ),
    )
    timed('float', functools.partial(images.to_float, pixels))
  return spent


def main(argv):
  del argv
  count, batch_size = flags.FLAGS.pictures, flags.FLAGS.batch_size
  workers = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    write_images(folder, count)
    source = kinds.make_source('folder', {'path': folder}, workers=0)
    assigned = buckets.assign(source.sizes, BUCKETS)
    groups = {
      bucket: [source.source.name(i) for i in np.flatnonzero(assigned == b)]
      for b, bucket in enumerate(BUCKETS)
    }
    mean = sum(p.stat().st_size for p in folder.glob('*.jpg')) / count
    print(f'{count} JPEG files of {mean / 1e3:.0f} kB, {workers} workers')
    # Alternate, so that other load on the machine affects both.
    ratios = []
    for _ in range(flags.FLAGS.rounds):
      theirs = with_torch(groups, batch_size, workers)
      ours = with_ours(source, batch_size, workers, count)
      ratios.append(theirs / ours)
      print(
        f'torch {count / theirs:.0f} images/s, ours {count / ours:.0f}: '
        f'{ratios[-1]:.2f} times',
        flush=True,
      )
    print(f'median {statistics.median(ratios):.2f} times')
    for stage, ms in stages(source, assigned).items():
      print(f'  {stage}: {ms:.2f} ms per image')


if __name__ == '__main__':
  flags.DEFINE_integer('pictures', 300, 'images per round')
  flags.DEFINE_integer('batch_size', 8, 'images')
  flags.DEFINE_integer('rounds', 5, 'rounds of both in turn')
  app.run(main)
