"""Batches: a checkpointable iterator of (bucket, batch), one share per host.

An optimizer step takes one or several of them, each of one bucket. The keys of
a batch of b rows and bucket (h, w):
  image            float32 [b, h, w, 3] in [-1, 1]
  tokens           int32 [b, 2, 77]
or, where they are precomputed, in bfloat16 or float16,
  moments          [b, h / 8, w / 8, 8]
  context, pooled  [b, 77, 2048], [b, 1280]
and
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

from sdxl_jax.data import images, transforms

TRANSFORM = 2  # what a seed is drawn for; 0 and 1 belong to the schedule
ENDLESS = 1 << 40  # steps; Grain wants a length
MAX_SUBSTITUTES = 16  # unreadable records in a row before the run stops


class Slots(grain.MapDataset):
  """Rows of this host: slot = part * local_batch + row, looked up and made.

  Part after part, a batch of the schedule is taken in `divisor` equal parts.
  """

  def __init__(
    self, source, schedule, divisor, rows, seed, max_upscale, settings
  ):
    super().__init__()
    self.source, self.schedule, self.seed = source, schedule, seed
    self.divisor, self.rows, self.settings = divisor, rows, settings
    self.max_upscale, self.lock = max_upscale, threading.Lock()
    self.substituted = collections.Counter()  # by name of the unreadable
    self.upscaled = 0  # rows made larger than max_upscale
    # Every slot of a batch asks for the same records.
    self.records = functools.lru_cache(maxsize=64)(schedule.records)

  def __len__(self):
    return ENDLESS * len(self.rows)

  def __getitem__(self, slot):
    part, row = divmod(slot, len(self.rows))
    bucket, ids, passes = self.records_of(part)
    row = self.rows[row]
    return self.make_row(bucket, int(ids[row]), int(passes[row]))

  def records_of(self, part):
    """Bucket, record ids and passes of all hosts' rows of a part."""
    number, piece = divmod(part, self.divisor)
    bucket, ids, passes = self.records(number)
    # Rows i, i + divisor, ...: pieces differ in no other way.
    return bucket, ids[piece :: self.divisor], passes[piece :: self.divisor]

  def make_row(self, bucket, record, data_pass):
    """The record's row, or that of the next readable one in its bucket."""
    for _ in range(MAX_SUBSTITUTES):
      seed = [self.seed, TRANSFORM, data_pass, record]
      try:
        example = self.source[record]
        row = transforms.transform(example, bucket, seed, **self.settings)
        self.count_upscale(example['original_size'], bucket)
        return row
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
    with self.lock:
      if error.name not in self.substituted:
        logging.warning('replaced by its neighbour: %s', error)
      self.substituted[error.name] += 1

  def count_upscale(self, size, bucket):
    if transforms.scale(size, bucket) > self.max_upscale:
      with self.lock:
        self.upscaled += 1


def collate(rows, tokenize, lock):
  """Rows as (bucket, batch), their captions tokenized together."""
  captions = [row.pop('caption', None) for row in rows]
  batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
  if 'context' not in batch:
    # Fast tokenizers hold settings that two threads may not change at once.
    with lock:
      batch['tokens'] = np.asarray(tokenize(captions), np.int32)
  return tuple(rows[0]['target_size'].tolist()), batch


class Batches:
  """Endless (bucket, batch).

  The state, as JSON, counts batches of the schedule: it holds for any number of
  hosts and of parts.
  """

  def __init__(self, dataset, slots, options):
    self.schedule = slots.schedule
    self._slots = slots
    self._iterator = iter(dataset.to_iter_dataset(options))

  def __iter__(self):
    return self

  def __next__(self):
    return next(self._iterator)

  def get_state(self):
    taken = self._iterator.get_state()['next_index']
    return {'batches': taken // self._slots.divisor}

  def set_state(self, state):
    taken = state['batches'] * self._slots.divisor
    self._iterator.set_state({'next_index': taken})

  @property
  def unreadable(self):
    """{name: times} of the pictures that this host had to replace."""
    return dict(self._slots.substituted)

  def counts(self):
    """{metric: rows of this host so far}, those held ready included."""
    return {
      'substituted': sum(self._slots.substituted.values()),
      'upscaled': self._slots.upscaled,
    }

  def record_ids(self, part):
    """int64 [batch_size], the records scheduled for a batch, all hosts'."""
    return self._slots.records_of(part)[1]

  def close(self):
    self._iterator.close()


def make_batches(
  source,
  tokenize,
  schedule,
  rows,
  *,
  divisor=1,
  flip_probability=0.0,
  caption_dropout=0.0,
  aesthetic_score=False,
  background='white',
  max_upscale=1.0,
  num_threads=4,
  prefetch=4,
):
  """This host's rows of every batch, read and made by threads.

  Args:
    source: see `sources`.
    tokenize: list of strings -> int32 [b, 2, 77].
    schedule: buckets.Schedule over the source; its seed is also that of crops,
      flips and dropped captions.
    rows: which rows of each batch are this host's.
    divisor: parts of a batch of the schedule, each a batch here.
    flip_probability, caption_dropout, aesthetic_score, background: see
      `transforms`.
    max_upscale: rows whose picture is enlarged more than this are counted.
    num_threads: batches made at once.
    prefetch: batches held ready; each costs its size in host memory.

  Returns:
    `Batches`.
  """
  settings = dict(
    flip_probability=flip_probability,
    caption_dropout=caption_dropout,
    aesthetic_score=aesthetic_score,
    background=background,
  )
  slots = Slots(
    source, schedule, divisor, rows, schedule.seed, max_upscale, settings
  )
  stack = functools.partial(collate, tokenize=tokenize, lock=threading.Lock())
  # An element is a whole batch here, so Grain's default of 500 would fill the
  # memory.
  options = grain.ReadOptions(num_threads, prefetch)
  dataset = slots.batch(len(rows), batch_fn=stack)
  return Batches(dataset, slots, options)
