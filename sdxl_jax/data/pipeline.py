"""Batches: a checkpointable iterator of (bucket, batch), one share per host.

An optimizer step takes one or several of them, each of one bucket. The keys of
a batch of b rows and bucket (h, w):
  image            float32 [b, h, w, 3] in [-1, 1]
  tokens           int32 [b, 2, 77], or in k chunks [b, k, 2, 77]
or, where they are precomputed, in bfloat16 or float16,
  moments          [b, h / 8, w / 8, 8]
  context, pooled  [b, 77 k, 2048], [b, 1280]
and
  original_size    int32 [b, 2], (height, width) before any resize
  crop_top_left    int32 [b, 2], px of the resized image
  target_size      int32 [b, 2], the bucket
  aesthetic_score  float32 [b], with BatchOptions.aesthetic_score
"""

import collections
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from sdxl_jax.data import (
  buckets,
  cut_captions,
  images,
  position,
  seeds,
  transforms,
)
from sdxl_jax.data.sources import indexed

ENDLESS = 1 << 40  # batches; Grain needs a length
EXCERPT = 60  # characters of a text that is cut, in the warning
MAX_SUBSTITUTES = 16  # unreadable records in a row before the run stops

Batch = dict[str, np.ndarray]
# Captions to tokens, and the text that is cut from each, '' if nothing is.
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """What a batch holds, and how much is prepared ahead."""

  accumulation_steps: int = 1  # parts of a scheduled batch, each a batch here
  flip_probability: float = 0.0  # of mirroring an image
  caption_dropout: float = 0.0  # probability of the caption ''
  aesthetic_score: bool = False  # whether rows have one
  background: str = 'white'  # colour behind transparent images
  max_upscale: float = 1.0  # rows whose image is enlarged more are counted
  max_token_length: int = 75  # tokens of a caption, for the warning
  num_threads: int = 4  # batches made at once
  prefetch: int = 4  # batches held ready; each costs its size in host memory


class BatchRows(grain.MapDataset):
  """This host's rows, one after another, each read and made on request.

  Every scheduled batch is split into `accumulation_steps` equal micro batches.
  Element i is row i % n of micro batch i // n, for n rows of this host.
  """

  def __init__(
    self,
    source: indexed.Source,
    schedule: buckets.Schedule,
    rows: Sequence[int],
    options: BatchOptions,
  ):
    super().__init__()
    self.source = source
    self.rows, self.options = rows, options
    self.lock = threading.Lock()
    self.substituted = collections.Counter()  # by name of the unreadable
    self.upscaled = 0  # rows enlarged more than max_upscale
    self.cut_captions = cut_captions.CutCaptions(options.max_token_length)
    self.set_schedule(schedule)

  def set_schedule(self, schedule: buckets.Schedule) -> None:
    """Sets the schedule of the rows that are asked for from now on."""
    self.schedule = schedule
    # Every row of a micro batch looks up the same records.
    self.records = functools.lru_cache(maxsize=64)(schedule.records)

  def __len__(self) -> int:
    return ENDLESS * len(self.rows)

  def __getitem__(self, index: int) -> transforms.Row:
    micro_step, row = divmod(index, len(self.rows))
    bucket, ids, passes = self.records_of(micro_step)
    row = self.rows[row]
    return self.make_row(bucket, int(ids[row]), int(passes[row]))

  def records_of(self, micro_step: int) -> buckets.ScheduledBatch:
    """Returns bucket, records and passes of a micro batch, all hosts' rows."""
    steps = self.options.accumulation_steps
    step, part = divmod(micro_step, steps)
    bucket, ids, passes = self.records(step)
    # Rows i, i + steps, ...: micro batches differ in no other way.
    return buckets.ScheduledBatch(bucket, ids[part::steps], passes[part::steps])

  def make_row(
    self, bucket: buckets.Size, record: int, data_pass: int
  ) -> transforms.Row:
    """Makes a record's row, or that of the next readable one in its bucket.

    Raises:
      ValueError: after MAX_SUBSTITUTES unreadable records in a row.
    """
    errors = []
    for _ in range(MAX_SUBSTITUTES):
      try:
        return self.read_row(bucket, record, data_pass)
      except images.UnreadableImage as error:
        self.report(error)
        errors.append(error)
        # A function of the record alone, so that all hosts choose alike.
        record = self.schedule.next_in_bucket(record)
    # So many at once are a fault of the storage, the settings or the program,
    # and the first error shows which.
    names = '\n  '.join(dict.fromkeys(str(error) for error in errors[:5]))
    raise ValueError(
      f'{MAX_SUBSTITUTES} records in a row of bucket {bucket} cannot be read, '
      f'the limit for skipping; repair or remove them:\n  {names}'
    ) from errors[0]

  def read_row(
    self, bucket: buckets.Size, record: int, data_pass: int
  ) -> transforms.Row:
    """Makes a record's row.

    Raises:
      images.UnreadableImage: whatever reading or transforming raises.
    """
    seed = [self.schedule.seed, seeds.Stream.TRANSFORM, data_pass, record]
    with images.unreadable_if_raised(lambda: self.source.name(record)):
      example = self.source[record]
      # The same row on any host, thread and batch size.
      row = transforms.transform(
        example,
        bucket,
        seed,
        aesthetic_score=self.options.aesthetic_score,
        flip_probability=self.options.flip_probability,
        caption_dropout=self.options.caption_dropout,
        background=self.options.background,
      )
      self.count_upscale(example['original_size'], bucket)
      return row

  def report(self, error: images.UnreadableImage) -> None:
    """Counts an unreadable record, and logs it the first time."""
    with self.lock:
      if error.name not in self.substituted:
        logging.warning('replaced by its neighbour: %s', error)
      self.substituted[error.name] += 1

  def report_cut(self, texts: Sequence[str]) -> None:
    """Counts captions that are cut, and logs one line for all of them.

    Args:
      texts: what is cut from each caption, '' if nothing is.
    """
    if self.cut_captions.add(texts):
      logging.warning(
        'so far %s. The metric cut_captions goes on counting, and python -m '
        'sdxl_jax.preview_data --check counts all. First to be cut: %r',
        self.cut_captions.describe(),
        next(filter(None, texts))[:EXCERPT],
      )

  def count_upscale(self, size: buckets.Size, bucket: buckets.Size) -> None:
    """Counts a row whose image was enlarged by more than max_upscale."""
    if transforms.scale(size, bucket) > self.options.max_upscale:
      with self.lock:
        self.upscaled += 1


def collate(
  rows: Sequence[transforms.Row],
  tokenize: Tokenize | None,
  lock: threading.Lock,
  report_cut: Callable[[Sequence[str]], None],
) -> tuple[buckets.Size, Batch]:
  """Stacks rows to (bucket, batch), and tokenizes their captions together."""
  captions = [row.pop('caption', None) for row in rows]
  batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
  if 'context' not in batch:
    # Fast tokenizers hold settings that two threads may not change at once.
    with lock:
      tokens, cut = tokenize(captions)
    batch['tokens'] = np.asarray(tokens, np.int32)
    report_cut(cut)
  return tuple(rows[0]['target_size'].tolist()), batch


class Batches:
  """Endless iterator of (bucket, batch).

  The state, as JSON, is valid for any number of hosts and of accumulation
  steps, and for batches of another size: see `position`.
  """

  def __init__(
    self,
    dataset: grain.MapDataset,
    rows: BatchRows,
    options: grain.ReadOptions,
  ):
    self._rows = rows
    self._iterator = iter(dataset.to_iter_dataset(options))

  def __iter__(self) -> Iterator[tuple[buckets.Size, Batch]]:
    return self

  def __next__(self) -> tuple[buckets.Size, Batch]:
    return next(self._iterator)

  @property
  def schedule(self) -> buckets.Schedule:
    """The schedule, which begins where the last `set_state` left it."""
    return self._rows.schedule

  def get_state(self, batches: int | None = None) -> dict[str, Any]:
    """Returns the position after so many batches; None: after those taken."""
    if batches is None:
      micro_steps = self._iterator.get_state()['next_index']
      batches = micro_steps // self._rows.options.accumulation_steps
    return position.save(self.schedule, batches)

  def set_state(
    self,
    state: dict[str, Any],
    batches: int | None = None,
    new_pass: bool = False,
  ) -> None:
    """Goes on from a position.

    Args:
      state: of `get_state`, or {'batches': n} of an earlier version.
      batches: the number to count on from; None: that of the state.
      new_pass: whether the records are others, so that a pass over them begins.
    """
    batches = state['batches'] if batches is None else batches
    schedule = position.resume(self.schedule, state, batches, new_pass)
    self._rows.set_schedule(schedule)
    micro_steps = batches * self._rows.options.accumulation_steps
    self._iterator.set_state({'next_index': micro_steps})

  def counts(self) -> dict[str, int]:
    """Returns {metric: rows of this host so far}, prefetched ones included."""
    return {
      'substituted': sum(self._rows.substituted.values()),
      'upscaled': self._rows.upscaled,
      'cut_captions': self._rows.cut_captions.cut,
    }

  def record_ids(self, micro_step: int) -> np.ndarray:
    """Returns int64 [b], the records of a micro batch, all hosts' rows."""
    return self._rows.records_of(micro_step).ids

  def record_names(self, micro_step: int) -> list[str]:
    """Returns the names of the records of a micro batch, all hosts' rows."""
    ids = self.record_ids(micro_step).tolist()
    return [self._rows.source.name(i) for i in ids]

  def close(self) -> None:
    self._iterator.close()


def make_batches(
  source: indexed.Source,
  tokenize: Tokenize | None,
  schedule: buckets.Schedule,
  rows: Sequence[int],
  options: BatchOptions = BatchOptions(),
) -> Batches:
  """Makes the iterator of this host's rows of every batch, read by threads.

  Args:
    source: of examples, see `indexed.Source`.
    tokenize: see `Tokenize`; not called for precomputed text.
    schedule: over the source; its seed is also that of crops, flips and dropped
      captions.
    rows: the rows of each micro batch that are this host's.
    options: see `BatchOptions`.
  """
  batch_rows = BatchRows(source, schedule, rows, options)
  # Threads share one tokenizer, and so one lock.
  stack = functools.partial(
    collate,
    tokenize=tokenize,
    lock=threading.Lock(),
    report_cut=batch_rows.report_cut,
  )
  # An element is a batch here, so Grain's default of 500 would fill the memory.
  read_options = grain.ReadOptions(options.num_threads, options.prefetch)
  dataset = batch_rows.batch(len(rows), batch_fn=stack)
  return Batches(dataset, batch_rows, read_options)
