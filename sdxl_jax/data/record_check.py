"""Checks all records of a source: what cannot be read, and what is odd."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from sdxl_jax import atomic_write
from sdxl_jax.data import (
  batch_rows,
  buckets,
  captioning,
  images,
  pipeline,
  prefetching,
  transforms,
)
from sdxl_jax.data.sources import indexed, mixture

BATCH = 256  # captions tokenized at once
BLURRED = 2.0  # an image that is enlarged more than this has lost its detail
UNREADABLE = 'unreadable.txt'
CUT = 'cut_captions.txt'
SAME_IMAGE = 'same_images.txt'


class Record(NamedTuple):
  """What reading a record found."""

  name: str
  error: str = ''  # with the name; '': the record can be used
  texts: tuple[str, ...] = ('',)  # of its captions, as long as they can be
  image: int = 0  # hash of all bytes of the encoded image; 0: unreadable


@dataclasses.dataclass(frozen=True)
class Report:
  """What is odd of the records of a source; its string is a table."""

  records: int
  unreadable: list[str]  # a line for each record: name and reason
  cut: list[str]  # name of the record, and the text that its caption loses
  same_image: list[str]  # name, and that of the first record of this image
  same_caption: int  # records with the caption of an earlier one
  empty_caption: int  # records without a text
  enlarged: int  # images that are smaller than their bucket
  blurred: int  # those enlarged more than BLURRED times
  max_token_length: int

  def __str__(self) -> str:
    limit = self.max_token_length
    rows = [
      (len(self.unreadable), f'cannot be read or decoded: {UNREADABLE}'),
      (len(self.cut), f'have a caption of more than {limit} tokens: {CUT}'),
      (self.empty_caption, 'have an empty caption'),
      (self.same_caption, 'have the caption of an earlier record'),
      (len(self.same_image), f'have the image of an earlier one: {SAME_IMAGE}'),
      (self.enlarged, 'have an image that is enlarged for its bucket'),
      (self.blurred, f'have one that is enlarged more than {BLURRED:g} times'),
    ]
    lines = [f'{self.records:>15,}  records checked, of which']
    lines += [f'{n:>15,}  {n / self.records:6.1%}  {what}' for n, what in rows]
    return '\n'.join(lines)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the lists of records into a folder, empty ones too."""
    lists = {
      UNREADABLE: self.unreadable,
      CUT: self.cut,
      SAME_IMAGE: self.same_image,
    }
    for name, lines in lists.items():
      text = ''.join(f'{indexed.printable(line)}\n' for line in lines)
      atomic_write.write_text(pathlib.Path(folder) / name, text)


def check(
  source: indexed.Source,
  table: Sequence[buckets.Size],
  tokenize: pipeline.Tokenize,
  options: batch_rows.BatchOptions,
) -> Report:
  """Reads and decodes every record of a source once.

  Threads share the work, as in training: reading and decoding release the lock
  of the interpreter.

  Args:
    source: of `dataset.make_source`.
    table: the buckets, (height, width).
    tokenize: as for the batches.
    options: of the batches.
  """
  ids = mixture.distinct_ids(source)
  targets = np.array(table)[buckets.assign(source.sizes, table)][ids]
  scales = np.max(targets / source.sizes[ids], axis=1)
  findings = Findings(len(ids), tokenize)
  read = functools.partial(read_record, source, targets, options)
  with concurrent.futures.ThreadPoolExecutor(options.num_threads or 1) as pool:
    records = prefetching.prefetch(pool, read, enumerate(ids))
    bar = tqdm.tqdm(records, total=len(ids), desc='checking', unit='record')
    records = iter(bar)
    while batch := list(itertools.islice(records, BATCH)):
      findings.add(batch)
      bar.set_postfix(unreadable=len(findings.unreadable), refresh=False)
  # The records that repeat others.
  same_image = [
    f'{source.name(int(ids[later]))}: as {source.name(int(ids[first]))}'
    for later, first in repeats(findings.images)
  ]
  return Report(
    records=len(ids),
    unreadable=findings.unreadable,
    cut=findings.cut,
    same_image=same_image,
    same_caption=len(repeats(findings.captions)),
    empty_caption=findings.empty,
    enlarged=int((scales > 1).sum()),
    blurred=int((scales > BLURRED).sum()),
    max_token_length=options.max_token_length,
  )


def read_record(
  source: indexed.Source,
  targets: np.ndarray,
  options: batch_rows.BatchOptions,
  place: tuple[int, int],
) -> Record:
  """Reads and decodes a record as training does, but for resize and crop.

  Args:
    source: of the record.
    targets: int [n, 2], the bucket of each record that is checked.
    options: of the batches.
    place: of the record among those that are checked, and in the source.
  """
  number, i = map(int, place)
  name, bucket = source.name(i), tuple(targets[number].tolist())
  try:
    with images.unreadable_if_raised(lambda: name):
      example = source[i]
      transforms.check_caption(example)
      if options.aesthetic_score:
        transforms.score_of(example)
      image = read_image(example, bucket, options)
  except images.UnreadableImage as error:
    return Record(name, str(error))
  return Record(
    name, '', texts_of(example, options.captions.of(example)), image
  )


def texts_of(
  example: indexed.Example, captions: captioning.Captioning
) -> tuple[str, ...]:
  """Returns the texts that are trained on; of a cache, which has made them."""
  found = captioning.captions_of(example)
  return tuple(found if 'variants' in example else captions.longest(found))


def read_image(
  example: indexed.Example,
  bucket: buckets.Size,
  options: batch_rows.BatchOptions,
) -> int:
  """Decodes the image of an example, or reads its moments; returns a hash.

  Raises:
    Exception: of many kinds, where this fails.
  """
  if 'variants' not in example:
    transforms.open_with_mask(
      example, bucket, options.background, options.mask_downscale
    )
    image = example['image']
    return indexed.hash64(
      image if isinstance(image, bytes) else image.tobytes()
    )
  variants = example['variants']
  moments = [
    variants[crop, flip]['moments']
    for crop in range(variants.crops)
    for flip in range(variants.layout.flips)
  ]
  if not all(np.isfinite(np.float32(m)).all() for m in moments):
    raise ValueError('its moments are not finite: precompute it again')
  return indexed.hash64(b''.join(m.tobytes() for m in moments))


class Findings:
  """What was found of the records so far.

  Args:
    count: records in all.
    tokenize: captions to tokens, and the text that is cut from each.
  """

  def __init__(self, count: int, tokenize: pipeline.Tokenize):
    self.tokenize = tokenize
    self.unreadable, self.cut, self.empty, self.done = [], [], 0, 0
    # Hashes, 0 where there is nothing.
    self.images = np.zeros(count, np.uint64)
    self.captions = np.zeros(count, np.uint64)

  def add(self, records: Sequence[Record]) -> None:
    """Adds the records that follow."""
    self.unreadable += [r.error for r in records if r.error]
    places = slice(self.done, self.done + len(records))
    self.done += len(records)
    self.images[places] = [r.image for r in records]
    self.captions[places] = [
      any(r.texts) and indexed.key('\n'.join(r.texts)) or 0 for r in records
    ]
    # Their captions.
    self.empty += sum(not any(r.texts) and not r.error for r in records)
    texts = [(i, t) for i, r in enumerate(records) for t in r.texts if t]
    if texts:
      _, cut = self.tokenize([text for _, text in texts])
      # A line for each record, of the first of its texts that is cut.
      lost = {i: rest for (i, _), rest in reversed([*zip(texts, cut)]) if rest}
      self.cut += [f'{records[i].name}: {lost[i]}' for i in sorted(lost)]


def repeats(hashes: np.ndarray) -> list[tuple[int, int]]:
  """Returns (place, first place) of each hash that is there before.

  Args:
    hashes: uint64 [n]; 0 is none.
  """
  _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
  first = first[inverse]
  later = np.flatnonzero((first != np.arange(len(hashes))) & (hashes != 0))
  return list(zip(later.tolist(), first[later].tolist()))
