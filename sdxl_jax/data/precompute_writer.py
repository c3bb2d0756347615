"""Writes the shards that `sources.precomputed` reads, one by one, resumably."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from array_record.python import array_record_module

from sdxl_jax import atomic_write
from sdxl_jax.data import (
  buckets,
  cache_plan,
  captioning,
  images,
  kept_records,
  loss_masks,
  seeds,
  transforms,
)
from sdxl_jax.data.sources import cache_layout, index, indexed


@dataclasses.dataclass(frozen=True)
class CropMaker:
  """Makes the crops of records of one bucket, in threads."""

  source: indexed.Source
  keys: np.ndarray  # uint64 [n], of the source's records
  bucket: buckets.Size
  layout: cache_layout.Layout
  seed: int
  background: str  # colour behind transparent images

  def __call__(self, i: int) -> indexed.Example | images.UnreadableImage:
    """Returns an example with `images` and `crops` in place of its image.

    A record that cannot be read or cropped returns its error.
    """
    try:
      with images.unreadable_if_raised(lambda: self.source.name(i)):
        return self.make(i)
    except images.UnreadableImage as error:
      return error

  def make(self, i: int) -> indexed.Example:
    """Reads a record and makes its crops."""
    example = self.source[i]
    transforms.check_caption(example)
    mask_downscale = self.layout.downscale if self.layout.has_masks else 0
    image, mask = transforms.open_with_mask(
      example, self.bucket, self.background, mask_downscale
    )
    # The encoded bytes are not needed any more.
    del example['image']
    example.pop('mask', None)
    size = example['original_size']
    example['images'], example['crops'], example['masks'] = [], [], []
    flippable = example.get('flippable', True)
    for crop in range(self.layout.crops):
      for flip in range(self.layout.flips):
        # A crop and its mirror image start from the same numbers, wherever
        # the record stands among the others.
        stream, key = seeds.Stream.PRECOMPUTED_CROP, int(self.keys[i])
        rng = np.random.default_rng([self.seed, stream, key, crop])
        flipped = bool(flip and flippable)
        pixels, top_left = transforms.fit(
          image, size, self.bucket, rng, flipped
        )
        example['images'].append(pixels)
        example['crops'].append(top_left)
        if mask_downscale:
          covering = transforms.cover(size, self.bucket)
          example['masks'].append(
            loss_masks.fit(
              mask, covering, self.bucket, top_left, flipped, mask_downscale
            )
          )
    return example


@runtime_checkable
class Encoder(Protocol):
  """Encodes images and captions, in the order in which they come."""

  def moments(self, images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields moments [h/8, w/8, 8] of each uint8 [h, w, 3]."""
    ...

  def text(
    self, captions: Sequence[str]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields context [77 k, 2048] and pooled [1280] of each caption."""
    ...


def write_shard(
  shard: cache_plan.Shard,
  folder: pathlib.Path,
  layout: cache_layout.Layout,
  kept: kept_records.Kept,
  found: np.ndarray,
  examples: Iterable[indexed.Example | images.UnreadableImage],
  encoder: Encoder,
  captions: captioning.Captioning = captioning.DEFAULT,
) -> None:
  """Writes the file of a shard, then its part of the index, which completes it.

  Args:
    shard: to write.
    folder: of the cache.
    layout: of the cache.
    kept: where records are copied from.
    found: int64 [n], their rows there; -1: a record is computed.
    examples: what CropMaker returned for each other record, consumed one by
      one.
    encoder: of images and captions.
    captions: how the texts of a record are made of its captions.

  Raises:
    OSError: if the file cannot be written.
    ValueError: naming a record that has too many texts.
  """
  # The encoder consumes the crops, which strips the examples of their images.
  made, dtype = [], np.dtype(layout.dtype)
  crops = take_images(examples, made)
  moments = [m.astype(dtype) for m in encoder.moments(crops)]
  readable = [e for e in made if not isinstance(e, images.UnreadableImage)]
  if captions.all_facts:
    for example in readable:
      set_texts(example, captions.of(example))
  text = encoder.text([t for example in readable for t in texts_of(example)])
  computed = pack_rows(shard, layout, readable, moments, text)
  # All records in their order.
  rows = kept_records.merge_rows(found, kept, made, computed)
  write_rows(shard.path(folder), rows)
  table = kept_records.make_table(shard, found, kept, made)
  index.write(shard.part(folder), shard.name, table)


def take_images(
  examples: Iterable[indexed.Example | images.UnreadableImage],
  made: list[indexed.Example | images.UnreadableImage],
) -> Iterator[np.ndarray]:
  """Yields the crops of examples, and removes them to free their memory.

  Args:
    examples: what CropMaker returned for each record.
    made: gets the examples, without their images, and the errors.
  """
  for example in examples:
    made.append(example)
    if not isinstance(example, images.UnreadableImage):
      yield from example.pop('images')


def set_texts(
  example: indexed.Example, captions: captioning.Captioning
) -> None:
  """Gives an example all texts that it can have, with their probabilities.

  Raises:
    ValueError: naming the record, if there are too many.
  """
  try:
    found = captions.alternatives(captioning.captions_of(example))
  except ValueError as error:
    raise ValueError(f'{example["name"]}: {error}') from error
  example['texts'], example['weights'] = list(found), list(found.values())
  example['caption'] = example['texts'][0]


def texts_of(example: indexed.Example) -> Sequence[str]:
  """Returns the texts of an example that are encoded."""
  return example.get('texts') or [example.get('caption')]


def pack_rows(
  shard: cache_plan.Shard,
  layout: cache_layout.Layout,
  examples: Sequence[indexed.Example],
  moments: Sequence[np.ndarray],
  text: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[list[bytes]]:
  """Yields the rows of each record: its crops, then its texts.

  Raises:
    ValueError: naming the record, for numbers that a row cannot hold.
  """
  fields, moments = layout.variant(shard.bucket), iter(moments)
  text = iter(text)
  for example in examples:
    # Without masks, the fields name none.
    masks = example.get('masks') or [None] * len(example['crops'])
    rows = [
      (
        fields,
        {
          'moments': next(moments),
          'crop_top_left': np.array(crop),
          'mask': mask,
        },
      )
      for crop, mask in zip(example['crops'], masks)
    ]
    for context, pooled in itertools.islice(text, len(texts_of(example))):
      rows.append((layout.text, {'context': context, 'pooled': pooled}))
    try:
      packed = [cache_layout.pack(*row) for row in rows]
    except ValueError as error:
      raise ValueError(f'{example["name"]}: {error}') from error
    yield packed


def write_rows(path: pathlib.Path, rows: Iterable[bytes]) -> None:
  """Writes rows as an ArrayRecord file, atomically.

  Raises:
    OSError: if the disk is full.
  """
  with atomic_write.atomic_path(path, overwrite=True) as partial:
    # Moments hardly compress, and each row is read on its own.
    writer = array_record_module.ArrayRecordWriter(
      str(partial), 'group_size:1,uncompressed'
    )
    for row in rows:
      writer.write(row)
    try:
      writer.close()
    except RuntimeError as error:  # for any fault of the disk
      raise OSError(f'{path} cannot be written: {error}') from error
