"""The records of validation: those held out, and as many that are trained on.

Crop, text and noise of a record depend on the hash of its name alone, not on
the run's seed, order, batches or hosts. Texts are chosen as in training, but
none is dropped and nothing is mirrored.
"""

import dataclasses
import functools
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.data import (
  batch_rows,
  buckets,
  caption_templates,
  images,
  pipeline,
  prefetching,
  seeds,
  transforms,
)
from sdxl_jax.data.sources import held_out

SEED = 0  # of all runs, so that their figures compare
HELD_OUT, TRAINED = 'held_out', 'trained'


class Record(NamedTuple):
  """A record that is validated on."""

  group: str  # HELD_OUT or TRAINED
  part: str  # of a mixture, or ''
  source: Any  # of data/sources
  index: int  # in the source
  hash: int  # of its name, 64 bits
  bucket: buckets.Size


class Batch(NamedTuple):
  """Rows of one bucket."""

  bucket: buckets.Size
  records: list[Record]  # of all hosts; fewer than rows in the last one
  rows: dict[str, np.ndarray]  # of this host, see `ValidationRecords.batches`


@dataclasses.dataclass(frozen=True)
class Limits:
  """How many records are validated on; the fields of config.validation."""

  records: int = 128
  buckets: int = 3


def choose(
  split: held_out.Split,
  table: Sequence[buckets.Size],
  limits: Limits,
) -> list[Record]:
  """Chooses records of the buckets that have most, by the least hashes.

  Of each bucket as many are trained on as are held out, so far as there are.

  Args:
    split: of all records.
    table: the buckets, (height, width).
    limits: of their numbers.
  """
  table = [(int(h), int(w)) for h, w in table]
  groups = {
    HELD_OUT: split.held_out,
    TRAINED: held_out.leaves(split.trained),
  }
  found = {name: gather(group, table) for name, group in groups.items()}
  counts = sum(
    np.bincount(f.assigned, minlength=len(table)) for f in found.values()
  )
  most = np.argsort(-counts, kind='stable')
  used = most[counts[most] > 0][: limits.buckets]

  def least(name, chosen, count):
    """Rows with the least hashes among those of a bool mask."""
    ids = np.flatnonzero(chosen)
    hashes = found[name].hashes[ids]
    if count < len(ids):
      ids = ids[np.argpartition(hashes, count)[:count]]
    return ids[np.argsort(found[name].hashes[ids])]

  held = found[HELD_OUT].assigned
  ids = least(HELD_OUT, np.isin(held, used), limits.records)
  records = []
  for b in used:
    rows = ids[held[ids] == b]
    records += found[HELD_OUT].records(HELD_OUT, rows, table)
    rows = least(TRAINED, found[TRAINED].assigned == b, len(rows))
    records += found[TRAINED].records(TRAINED, rows, table)
  return records


class Found(NamedTuple):
  """All records of a group, as arrays."""

  leaves: list
  starts: np.ndarray  # int [leaves], the row of each one's first record
  hashes: np.ndarray  # uint64 [n]
  assigned: np.ndarray  # int16 [n], bucket

  def records(
    self, group: str, rows: np.ndarray, table: Sequence[buckets.Size]
  ) -> list[Record]:
    """Returns the records of some rows."""
    found = []
    for row in rows.tolist():
      leaf = int(np.searchsorted(self.starts, row, side='right')) - 1
      part, source = self.leaves[leaf]
      index = row - int(self.starts[leaf])
      bucket = table[self.assigned[row]]
      found.append(
        Record(group, part, source, index, int(self.hashes[row]), bucket)
      )
    return found


def gather(leaves: list, table: Sequence[buckets.Size]) -> Found:
  """Gathers the records of sources, (part, source) each."""
  lengths = np.array([len(source) for _, source in leaves], int)
  hashes = [held_out.hashes(source) for _, source in leaves]
  assigned = [buckets.assign(source.sizes, table) for _, source in leaves]
  return Found(
    leaves,
    np.cumsum(lengths) - lengths,
    np.concatenate([np.zeros(0, np.uint64), *hashes]),
    np.concatenate([np.zeros(0, np.int16), *assigned]),
  )


class ValidationRecords:
  """Reads the rows of records, batch by batch.

  Args:
    records: of `choose`.
    tokenize: see pipeline.Tokenize.
    options: of training's batches.
  """

  def __init__(
    self,
    records: list[Record],
    tokenize: pipeline.Tokenize | None,
    options: batch_rows.BatchOptions,
  ):
    self.records = records
    self._options = options
    self._captions = without_dropout(options.captions)
    self._stack = functools.partial(
      pipeline.collate,
      tokenize=tokenize,
      lock=threading.Lock(),
      report_cut=lambda cut: None,
    )
    self._reported = set()  # names of records that could not be read

  @functools.cached_property
  def by_bucket(self) -> dict[buckets.Size, list[Record]]:
    """{bucket: its records}."""
    found = {}
    for record in self.records:
      found.setdefault(record.bucket, []).append(record)
    return found

  def batches(
    self,
    sizes: dict[buckets.Size, int],
    rows: dict[buckets.Size, Sequence[int]],
    specs: dict[buckets.Size, dict[str, Any]],
  ) -> Iterator[Batch]:
    """Yields the batches of all buckets, read ahead by threads.

    Beside the keys of training's batches they have
      key       uint32 [b, 2], halves of the hash, from which the noise follows
      readable  bool [b], False of rows without a record, or one not readable

    Args:
      sizes: {bucket: rows of a batch, of all hosts}.
      rows: {bucket: those of this host}.
      specs: {bucket: shapes of a batch}.
    """
    plan = []
    for bucket, records in self.by_bucket.items():
      size = sizes[bucket]
      for start in range(0, len(records), size):
        plan.append((bucket, records[start : start + size]))
    own = [
      [records[row] if row < len(records) else None for row in rows[bucket]]
      for bucket, records in plan
    ]
    threads = self._options.num_threads or 1
    with futures.ThreadPoolExecutor(threads) as pool:
      made = prefetching.prefetch(pool, self._read, sum(own, []))
      for (bucket, records), mine in zip(plan, own):
        found = [row for _, row in zip(mine, made)]
        yield Batch(bucket, records, self._fill(found, mine, specs[bucket]))

  def _read(self, record: Record | None) -> transforms.Row | None:
    """Makes the row of a record, None if there is none."""
    if record is None:
      return None
    try:
      return self.make_row(record)
    except images.UnreadableImage as error:
      if error.name not in self._reported:
        logging.warning('left out of validation: %s', error)
      self._reported.add(error.name)
      return None

  def make_row(self, record: Record) -> transforms.Row:
    """Makes the row of a record.

    Raises:
      images.UnreadableImage: in place of any error of reading and cropping.
    """
    options, hash_ = self._options, record.hash
    with images.unreadable_if_raised(lambda: record.source.name(record.index)):
      example = record.source[record.index] | (
        {'part': record.part} if record.part else {}
      )
      example = caption_templates.fill(
        example, options.templates, [SEED, seeds.Stream.TEMPLATE, 0, hash_]
      )
      captions = self._captions.of(example)
      example = captions.choose(example, SEED, 0, hash_)
      row = transforms.transform(
        example,
        record.bucket,
        [SEED, seeds.Stream.VALIDATION, hash_],
        aesthetic_score=options.aesthetic_score,
        background=options.background,
        mask_downscale=options.mask_downscale,
      )
    return options.with_fixed_sizes(row)

  def _fill(self, found, mine, spec):
    """Stacks rows; those that are not there are zeros."""
    there = [i for i, row in enumerate(found) if row is not None]
    n = len(found)
    arrays = {
      name: np.zeros((n, *s.shape[1:]), s.dtype) for name, s in spec.items()
    }
    if there:
      _, batch = self._stack([found[i] for i in there])
      for name, values in batch.items():
        arrays[name][there] = values
    hashes = [record.hash if record else 0 for record in mine]
    halves = np.array([[h >> 32, h & 0xFFFFFFFF] for h in hashes], np.uint32)
    arrays['key'] = halves.reshape(-1, 2)
    arrays['readable'] = np.isin(np.arange(n), there)
    return arrays


def without_dropout(captions: Any) -> Any:
  """Returns settings of captions that leave out no tag."""
  parts = tuple((name, without_dropout(part)) for name, part in captions.parts)
  return dataclasses.replace(
    captions, caption_tag_dropout_rate=0.0, parts=parts
  )
