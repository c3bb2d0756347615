"""Writes the shards that `sources.precomputed` reads, one by one, resumably."""

import collections
import concurrent.futures
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from sdxl_jax.data import buckets, images, seeds, transforms
from sdxl_jax.data.sources import index, indexed, precomputed

PARTS = 'parts'  # folder of each finished shard's part of the index
PREFETCH = 32  # images decoded ahead of the devices


@dataclasses.dataclass(frozen=True)
class Shard:
  """Records of one bucket that go into one file."""

  name: str
  bucket: buckets.Size
  ids: np.ndarray  # int64 [n], of records

  def path(self, folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of the file."""
    return folder / f'{self.name}{precomputed.SUFFIX}'

  def part(self, folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of the shard's part of the index."""
    return folder / PARTS / f'{self.name}.arrow'

  def fingerprint(self, layout: precomputed.Layout) -> str:
    """Hashes everything that decides the content of the shard."""
    return index.digest([layout.identity, self.name, self.ids.tolist()])

  def read_part(
    self, folder: pathlib.Path, layout: precomputed.Layout
  ) -> pa.Table | None:
    """Reads the shard's part of the index, None if it is not finished."""
    if not self.path(folder).exists():
      return None
    return index.read(self.part(folder), self.fingerprint(layout))


def plan_shards(
  source: indexed.Source, table: Sequence[buckets.Size], size: int
) -> Iterator[Shard]:
  """Yields all shards of a source, in the order of their names.

  Args:
    source: of the records.
    table: buckets.
    size: records in a shard, at most.
  """
  # Bucket by bucket, since a shard's rows have one shape.
  assigned = buckets.assign(source.sizes, table)
  for h, w in sorted(table):
    ids = np.flatnonzero(assigned == table.index((h, w)))
    for number, start in enumerate(range(0, len(ids), size)):
      # Padded, so that the order of the names is that of the numbers.
      name = f'{h:05d}x{w:05d}-{number:05d}'
      yield Shard(name, (h, w), ids[start : start + size])


@dataclasses.dataclass(frozen=True)
class CropMaker:
  """Makes the crops of the records of a shard, in threads."""

  source: indexed.Source
  bucket: buckets.Size
  layout: precomputed.Layout
  seed: int
  background: str  # colour behind transparent images

  def __call__(self, i: int) -> indexed.Example | images.UnreadableImage:
    """Returns an example with `images` and `crops` in place of its image.

    A record that cannot be read returns its error.
    """
    try:
      with images.unreadable_if_raised(lambda: self.source.name(i)):
        example = self.source[i]
        transforms.check_caption(example)
        image = transforms.open_image(example, self.bucket, self.background)
    except images.UnreadableImage as error:
      return error
    # The encoded bytes are not needed any more.
    del example['image']
    example['images'], example['crops'] = [], []
    flippable = example.get('flippable', True)
    for crop in range(self.layout.crops):
      for flip in range(self.layout.flips):
        # A crop and its mirror image start from the same numbers.
        stream = seeds.Stream.PRECOMPUTED_CROP
        rng = np.random.default_rng([self.seed, stream, i, crop])
        pixels, top_left = transforms.fit(
          image,
          example['original_size'],
          self.bucket,
          rng,
          bool(flip and flippable),
        )
        example['images'].append(pixels)
        example['crops'].append(top_left)
    return example


def prefetch(
  pool: concurrent.futures.Executor, make: Callable, ids: Iterable
) -> Iterator:
  """Yields make(i) of each id in order, some of them started ahead."""
  # A full queue at first, then one more for each result.
  ids, pending = iter(ids), collections.deque()
  for i in itertools.islice(ids, PREFETCH):
    pending.append(pool.submit(make, i))
  while pending:
    yield pending.popleft().result()
    pending.extend(pool.submit(make, i) for i in itertools.islice(ids, 1))


@runtime_checkable
class Encoder(Protocol):
  """Encodes images and captions, in the order in which they come."""

  def moments(self, images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields moments [h/8, w/8, 8] of each uint8 [h, w, 3]."""
    ...

  def text(
    self, captions: Sequence[str]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields context [77, 2048] and pooled [1280] of each caption."""
    ...


def write_shard(
  shard: Shard,
  folder: pathlib.Path,
  layout: precomputed.Layout,
  examples: Iterable[indexed.Example | images.UnreadableImage],
  encoder: Encoder,
) -> None:
  """Writes the file of a shard, then its part of the index, which completes it.

  Args:
    shard: to write.
    folder: of the cache.
    layout: of the cache.
    examples: what CropMaker returned for each record, consumed one by one.
    encoder: of images and captions.
  """
  # The encoder consumes the crops, which sorts the examples.
  readable, errors = [], []
  crops = take_images(examples, readable, errors)
  dtype = np.dtype(layout.dtype)
  moments = [m.astype(dtype) for m in encoder.moments(crops)]
  text = encoder.text([example['caption'] for example in readable])
  rows = pack_rows(shard, layout, readable, moments, text)
  precomputed.write_rows(shard.path(folder), rows)
  # What is left out, then the part of the index.
  left_out = ''.join(f'{error}\n' for error in errors)
  shard.part(folder).with_suffix('.txt').write_text(left_out)
  table = make_table(shard, readable)
  index.write(shard.part(folder), shard.fingerprint(layout), table)


def take_images(
  examples: Iterable[indexed.Example | images.UnreadableImage],
  readable: list[indexed.Example],
  errors: list[images.UnreadableImage],
) -> Iterator[np.ndarray]:
  """Yields the crops of examples, and removes them to free their memory.

  Args:
    examples: what CropMaker returned for each record.
    readable: gets the examples, without their images.
    errors: gets the errors of the others.
  """
  for example in examples:
    if isinstance(example, images.UnreadableImage):
      errors.append(example)
    else:
      readable.append(example)
      yield from example.pop('images')


def pack_rows(
  shard: Shard,
  layout: precomputed.Layout,
  examples: Sequence[indexed.Example],
  moments: Sequence[np.ndarray],
  text: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[bytes]:
  """Yields the bytes of a shard's rows: of each record its crops, then text."""
  fields, moments = layout.variant(shard.bucket), iter(moments)
  for example, (context, pooled) in zip(examples, text):
    for crop in example['crops']:
      values = {'moments': next(moments), 'crop_top_left': np.array(crop)}
      yield precomputed.pack(fields, values)
    values = {'context': context, 'pooled': pooled}
    yield precomputed.pack(layout.text, values)


def make_table(shard: Shard, examples: Sequence[indexed.Example]) -> pa.Table:
  """Makes a shard's part of the index."""
  n = len(examples)
  scores: list[Any] = [e.get('aesthetic_score') for e in examples]
  return indexed.make_table(
    [indexed.Measured(e['name'], e['original_size']) for e in examples],
    {'aesthetic_score': scores},
    name=pa.array([e['name'] for e in examples], pa.string()),
    caption=pa.array([e['caption'] for e in examples], pa.string()),
    bucket_height=pa.array(np.full(n, shard.bucket[0], np.int32)),
    bucket_width=pa.array(np.full(n, shard.bucket[1], np.int32)),
  )
