"""Writing the shards that `precomputed` reads, one after another, resumably."""

import collections
import dataclasses
import itertools

import numpy as np
import pyarrow as pa

from sdxl_jax.data import buckets, images, transforms
from sdxl_jax.data.sources import index, indexed, precomputed

CROP = 3  # what a seed is drawn for; 0 to 2 belong to training
PARTS = 'parts'  # folder of what each finished shard holds
AHEAD = 32  # pictures decoded ahead of the devices


@dataclasses.dataclass(frozen=True)
class Shard:
  """Records of one bucket that go into one file."""

  name: str
  bucket: tuple  # (height, width)
  ids: np.ndarray

  def path(self, folder):
    return folder / f'{self.name}{precomputed.SUFFIX}'

  def part(self, folder):
    return folder / PARTS / f'{self.name}.arrow'

  def known(self, layout):
    return index.digest([layout.identity, self.name, self.ids.tolist()])

  def read(self, folder, layout):
    """Its part of the index, None where it is not finished."""
    if not self.path(folder).exists():
      return None
    return index.read(self.part(folder), self.known(layout))


def plan_shards(source, table, size):
  """All Shards of a source, in the order of their names."""
  assigned = buckets.assign(source.sizes, table)
  for h, w in sorted(table):
    ids = np.flatnonzero(assigned == table.index((h, w)))
    for number, start in enumerate(range(0, len(ids), size)):
      # Padded, so that the order of the names is that of the numbers.
      name = f'{h:05d}x{w:05d}-{number:05d}'
      yield Shard(name, (h, w), ids[start : start + size])


def make_variants(source, shard, layout, seed, background, i):
  """An example with `pictures` and `crops` in place of its image.

  Returns the error for one that cannot be read.
  """
  try:
    example = source[int(i)]
    image = transforms.open_image(example, shard.bucket, background)
  except images.UnreadableImage as error:
    return error
  del example['image']
  flippable = example.get('flippable', True)
  made = [
    transforms.fit(
      *(image, example['original_size'], shard.bucket),
      np.random.default_rng([seed, CROP, int(i), crop]),
      bool(flip and flippable),
    )
    for crop in range(layout.crops)
    for flip in range(layout.flips)
  ]
  example['pictures'], example['crops'] = zip(*made)
  return example


def prefetch(pool, make, ids):
  """make(i) of each, in order, some of them begun before they are asked for."""
  ids, waiting = iter(ids), collections.deque()
  for i in itertools.islice(ids, AHEAD):
    waiting.append(pool.submit(make, i))
  while waiting:
    yield waiting.popleft().result()
    waiting.extend(pool.submit(make, i) for i in itertools.islice(ids, 1))


def make_rows(shard, layout, found, moments, text):
  """The bytes of a shard's rows, record by record."""
  fields, moments = layout.variant(shard.bucket), iter(moments)
  for example, (context, pooled) in zip(found, text):
    for crop in example['crops']:
      values = {'moments': next(moments), 'crop_top_left': np.array(crop)}
      yield precomputed.pack(fields, values)
    values = {'context': context, 'pooled': pooled}
    yield precomputed.pack(layout.text, values)


def make_table(shard, found):
  """A shard's part of the index."""
  n = len(found)
  side = lambda i: pa.array(np.full(n, shard.bucket[i], np.int32))
  return indexed.make_table(
    [example['original_size'] for example in found],
    [True] * n,
    {'aesthetic_score': [e.get('aesthetic_score') for e in found]},
    name=pa.array([e['name'] for e in found], pa.string()),
    caption=pa.array([e['caption'] for e in found], pa.string()),
    bucket_height=side(0),
    bucket_width=side(1),
  )


def write_shard(shard, folder, layout, examples, encode):
  """The file of a shard, then its part of the index, which completes it.

  Args:
    folder: of the cache.
    layout: precomputed.Layout.
    examples: iterator over what make_variants returned for each record.
    encode: object with moments(pictures) and text(captions), both iterators of
      results in the order of what they are given.
  """
  found, left_out = [], []

  def pictures():
    for example in examples:
      if isinstance(example, images.UnreadableImage):
        left_out.append(f'{example}\n')
      else:
        found.append(example)
        yield from example.pop('pictures')

  dtype = np.dtype(layout.dtype)
  moments = [m.astype(dtype) for m in encode.moments(pictures())]
  text = encode.text([example['caption'] for example in found])
  rows = make_rows(shard, layout, found, moments, text)
  precomputed.write_rows(shard.path(folder), rows)
  shard.part(folder).with_suffix('.txt').write_text(''.join(left_out))
  index.write(shard.part(folder), shard.known(layout), make_table(shard, found))
