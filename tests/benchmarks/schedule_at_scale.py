"""Measures the bucket schedule of an index of 100 million records.

  python -m tests.benchmarks.schedule_at_scale

Prints seconds and peak memory of building the schedule and of looking up
distant steps. --count checks that one pass contains every record once.
"""

import resource
import time

import numpy as np
from absl import app, flags

from configs import stage3
from sdxl_jax.data import buckets


def sizes_of(n):
  """Returns int32 [n, 2]: about 1000 px a side, most aspects near 1."""
  rng = np.random.default_rng(0)
  sizes = np.empty((n, 2), np.int32)
  for start in range(0, n, 1 << 20):
    rows = min(1 << 20, n - start)
    aspect = np.exp(0.5 * rng.standard_normal(rows, np.float32))
    side = 600 + 900 * rng.random(rows, np.float32)
    sizes[start : start + rows, 0] = side * np.sqrt(aspect)
    sizes[start : start + rows, 1] = side / np.sqrt(aspect)
  return sizes


def peak():
  """Returns the peak memory in GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(what, function):
  """Calls a function; prints its seconds and the peak memory."""
  started = time.monotonic()
  result = function()
  seconds = time.monotonic() - started
  print(f'{what}: {seconds:.2f} s; peak so far {peak():.2f} GiB', flush=True)
  return result


def main(argv):
  del argv
  n, batch = flags.FLAGS.records, flags.FLAGS.batch
  sizes = timed(f'sizes of {n:,} records', lambda: sizes_of(n))
  schedule = timed(
    'schedule', lambda: buckets.Schedule(sizes, stage3.BUCKETS, 0, batch)
  )
  timed('order of first use', schedule.first_use)
  for step in (0, 1, 10**6, 10**6 + 1, 10**9):
    bucket, ids = timed(f'schedule[{step:,}]', lambda s=step: schedule[s])
    assert len(ids) == batch and ids.max() < n
    assert all(
      schedule.buckets[b] == bucket for b in schedule.assigned[ids].tolist()
    )
  if flags.FLAGS.count:
    count_one_pass(schedule, n, batch)


def count_one_pass(schedule, n, batch):
  """Counts how often each record is in the first pass of its bucket."""
  seen = np.zeros(n, np.uint8)
  steps = -(-n // batch) + len(schedule.buckets)
  started = time.monotonic()
  for step in range(steps):
    _, ids, passes = schedule.records(step)
    np.add.at(seen, ids[passes == 0], 1)
  seconds = time.monotonic() - started
  missing = int((seen == 0).sum())
  print(
    f'{steps:,} steps read in {seconds:.0f} s; records seen more than once: '
    f'{(seen > 1).sum():,}, not yet seen: {missing:,} (under a batch of each '
    f'bucket: {missing < batch * len(schedule.buckets)})'
  )


if __name__ == '__main__':
  flags.DEFINE_integer('records', 100_000_000, 'records in the index')
  flags.DEFINE_integer('batch', 2048, 'records per step')
  flags.DEFINE_bool(
    'count', False, 'count the records of a whole pass (minutes)'
  )
  app.run(main)
