"""Batches: a checkpointable iterator of (bucket, batch), one share per host.

The keys of a batch of b rows and bucket (h, w):
  image            float32 [b, h, w, 3] in [-1, 1]
  tokens           int32 [b, 2, 77]
  original_size    int32 [b, 2], (height, width) before any resize
  crop_top_left    int32 [b, 2], px of the resized image
  target_size      int32 [b, 2], the bucket
  aesthetic_score  float32 [b], where asked for
"""

import collections
import functools
import logging
import threading

import grain
import numpy as np

from sdxl_jax.data import buckets as bucketing
from sdxl_jax.data import images, transforms

TRANSFORM = 2  # what a seed is drawn for; 0 and 1 belong to the schedule
ENDLESS = 1 << 40  # steps; Grain wants a length
MAX_SUBSTITUTES = 16  # unreadable records in a row before the run stops


class Slots(grain.MapDataset):
  """Rows of this host: slot = step * local_batch + row, looked up and made."""

  def __init__(self, source, schedule, seed, rows, settings):
    super().__init__()
    self.source, self.schedule, self.seed = source, schedule, seed
    self.rows, self.settings = rows, settings
    self.substituted = collections.Counter()  # by name of the unreadable
    # Every slot of a step asks for the same records.
    self.records = functools.lru_cache(maxsize=64)(schedule.records)

  def __len__(self):
    return ENDLESS * len(self.rows)

  def __getitem__(self, slot):
    step, row = divmod(slot, len(self.rows))
    bucket, ids, passes = self.records(step)
    row = self.rows[row]
    return self.make_row(bucket, int(ids[row]), int(passes[row]))

  def make_row(self, bucket, record, data_pass):
    """The record's row, or that of the next readable one in its bucket."""
    for _ in range(MAX_SUBSTITUTES):
      seed = [self.seed, TRANSFORM, data_pass, record]
      try:
        example = self.source[record]
        return transforms.transform(example, bucket, seed, **self.settings)
      except images.UnreadableImage as error:
        self.report(error)
        # From the record alone, so that every host chooses alike.
        record = self.schedule.next_in_bucket(record)
    names = '\n  '.join(list(self.substituted)[:5])
    raise ValueError(
      f'{MAX_SUBSTITUTES} records in a row of bucket {bucket} cannot be read, '
      f'the limit for skipping; repair or remove them:\n  {names}'
    )

  def report(self, error):
    if error.name not in self.substituted:
      logging.warning('replaced by its neighbour: %s', error)
    self.substituted[error.name] += 1


def collate(rows, tokenize, lock):
  """Rows as (bucket, batch), their captions tokenized together."""
  captions = [row.pop('caption') for row in rows]
  batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
  # Fast tokenizers hold settings that two threads may not change at once.
  with lock:
    batch['tokens'] = np.asarray(tokenize(captions), np.int32)
  return rows[0]['image'].shape[:2], batch


class Batches:
  """Endless (bucket, batch); the state is the step, as JSON."""

  def __init__(self, dataset, slots, options, start_step):
    self.schedule = slots.schedule
    self.substituted = slots.substituted
    self._iterator = iter(dataset.to_iter_dataset(options))
    self.seek(start_step)

  def __iter__(self):
    return self

  def __next__(self):
    return next(self._iterator)

  def get_state(self):
    return self._iterator.get_state()

  def set_state(self, state):
    self._iterator.set_state(state)

  def seek(self, step):
    """Makes the next batch that of a step."""
    self.set_state({'next_index': step})

  def record_ids(self, step):
    """int64 [global_batch_size], the records scheduled for a step."""
    return self.schedule[step][1]

  def close(self):
    self._iterator.close()


def make_batches(
  source,
  tokenize,
  buckets,
  global_batch_size,
  seed,
  *,
  flip_probability=0.0,
  caption_dropout=0.0,
  aesthetic_score=False,
  host_index=0,
  host_count=1,
  start_step=0,
  num_threads=4,
  prefetch=4,
):
  """This host's rows of every global batch, read and made by threads.

  Args:
    source: see `sources`.
    tokenize: list of strings -> int32 [b, 2, 77].
    buckets: sequence of (height, width).
    global_batch_size: records per step over all hosts, a multiple of
      host_count.
    seed: of order, crops, flips and dropped captions.
    flip_probability, caption_dropout, aesthetic_score: see `transforms`.
    host_index, host_count: which share of each batch is this host's.
    start_step: of the first batch.
    num_threads: batches made at once.
    prefetch: batches held ready; each costs its size in host memory.

  Returns:
    `Batches`.
  """
  if global_batch_size % host_count:
    raise ValueError(
      f'global_batch_size = {global_batch_size} is not a multiple of the '
      f'{host_count} hosts; change one of them'
    )
  schedule = bucketing.Schedule(source.sizes, buckets, seed, global_batch_size)
  local_batch = global_batch_size // host_count
  rows = range(host_index * local_batch, (host_index + 1) * local_batch)
  settings = dict(
    flip_probability=flip_probability,
    caption_dropout=caption_dropout,
    aesthetic_score=aesthetic_score,
  )
  slots = Slots(source, schedule, seed, rows, settings)
  stack = functools.partial(collate, tokenize=tokenize, lock=threading.Lock())
  # An element is a whole batch here, so Grain's default of 500 would fill the
  # memory.
  options = grain.ReadOptions(num_threads, prefetch)
  dataset = slots.batch(local_batch, batch_fn=stack)
  return Batches(dataset, slots, options, start_step)
