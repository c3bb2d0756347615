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
  aesthetic_score  float32 [b], where the options ask for it
  mask             float32 [b, h / 8, w / 8] in 0..1, where they ask for it
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from sdxl_jax.data import batch_rows, buckets, position, transforms
from sdxl_jax.data.sources import indexed

Batch = dict[str, np.ndarray]
# Captions to tokens, and the text that is cut from each, '' if nothing is.
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, Sequence[str]]]


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
    rows: batch_rows.BatchRows,
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
    counts = {
      'substituted': sum(self._rows.substituted.values()),
      'upscaled': self._rows.upscaled,
      'cut_captions': self._rows.cut_captions.cut,
    }
    if self._rows.options.mask_downscale:
      counts['unmasked'] = self._rows.unmasked
    return counts

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
  options: batch_rows.BatchOptions = batch_rows.DEFAULTS,
) -> Batches:
  """Makes the iterator of this host's rows of every batch, read by threads.

  Args:
    source: of examples, see `indexed.Source`.
    tokenize: see `Tokenize`; not called for precomputed text.
    schedule: over the source; its seed is also that of crops, flips and dropped
      captions.
    rows: the rows of each micro batch that are this host's.
    options: see `batch_rows.BatchOptions`.
  """
  all_rows = batch_rows.BatchRows(source, schedule, rows, options)
  # Threads share one tokenizer, and so one lock.
  stack = functools.partial(
    collate,
    tokenize=tokenize,
    lock=threading.Lock(),
    report_cut=all_rows.report_cut,
  )
  # An element is a batch here, so Grain's default of 500 would fill the memory.
  read_options = grain.ReadOptions(options.num_threads, options.prefetch)
  dataset = all_rows.batch(len(rows), batch_fn=stack)
  return Batches(dataset, all_rows, read_options)
