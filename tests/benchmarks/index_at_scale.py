"""Measures the index of 100 million records, from parts to the first batch.

  python -m tests.benchmarks.index_at_scale

The contents of tars of 100,000 records are simulated, not read; all later steps
are those of training. Prints seconds and peak memory of each step.
"""

import functools
import pathlib
import resource
import tempfile
import time

import numpy as np
import pyarrow as pa
from absl import app, flags

from configs import stage3
from sdxl_jax.data import buckets
from sdxl_jax.data.sources import index, indexed, record_filters

TAR = 100_000  # records
FILTERS = record_filters.Filters(
  min_side=256,
  max_aspect=4.0,
  min_aesthetic_score=5.0,
  columns=(('punsafe', '<', 0.5),),
)


def measure(tar):
  """Simulates webdataset.measure: the table of the records of a tar."""
  rng = np.random.default_rng(tar)
  image_bytes = rng.integers(20_000, 400_000, TAR)
  starts = np.cumsum(image_bytes + 2048)
  keys = pa.array([f'{tar:05d}{i:06d}' for i in range(TAR)], pa.string())
  return pa.table(
    {
      'height': rng.integers(100, 2000, TAR).astype(np.int32),
      'width': rng.integers(100, 2000, TAR).astype(np.int32),
      'problem': np.zeros(TAR, np.uint8),
      'aesthetic_score': rng.normal(5.5, 1, TAR),
      'punsafe': rng.random(TAR),
      'shard': pa.array(
        [f'/data/laion/{tar:05d}.tar'] * TAR
      ).dictionary_encode(),
      'key': keys,
      'image_start': starts,
      'image_bytes': image_bytes,
      'text_start': starts + image_bytes,
      'text_bytes': rng.integers(10, 300, TAR),
    }
  )


class Tars(indexed.IndexedSource):
  """A source whose records are empty."""

  def name(self, i):
    return f'{self.value("shard", i)}: {self.value("key", i)}'

  def read(self, i):
    return {'image': b'', 'caption': ''}


def peak(who):
  """Returns the peak memory in GiB."""
  return resource.getrusage(who).ru_maxrss / 2**20


def timed(what, function):
  """Calls a function; prints its seconds and the peak memory."""
  started = time.monotonic()
  result = function()
  seconds = time.monotonic() - started
  print(
    f'{what}: {seconds:.1f} s; peak so far {peak(resource.RUSAGE_SELF):.2f} GiB'
    f', of a worker {peak(resource.RUSAGE_CHILDREN):.2f}',
    flush=True,
  )
  return result


def main(argv):
  del argv
  tars = flags.FLAGS.records // TAR
  with tempfile.TemporaryDirectory(dir=flags.FLAGS.folder) as folder:
    folder = pathlib.Path(folder)
    parts = [(i, [0]) for i in range(tars)]
    load = functools.partial(
      index.load, folder, {}, parts, measure, flags.FLAGS.workers
    )
    timed(f'index of {tars * TAR:,} records built', load)
    size = sum(p.stat().st_size for p in folder.glob('*.arrow'))
    print(f'  {size / 1e9:.2f} GB, {size / tars / TAR:.0f} bytes per record')
    table = timed('index read and its digest checked', load)
    source = timed('sizes', lambda: Tars(table))
    filtered = timed(
      'filters', lambda: record_filters.FilteredSource(source, FILTERS)
    )
    schedule = timed(
      'schedule',
      lambda: buckets.Schedule(filtered.sizes, stage3.BUCKETS, 0, 64),
    )
    ids = timed('schedule[1,000,000]', lambda: schedule[10**6])[1]
    rows = timed('the records of a batch', lambda: [filtered[i] for i in ids])
    print(f'  {rows[0]}')


if __name__ == '__main__':
  flags.DEFINE_integer('records', 100_000_000, 'records in all')
  flags.DEFINE_integer('workers', 2, 'processes that build it')
  flags.DEFINE_string('folder', None, 'folder with 8 GB free; default: /tmp')
  app.run(main)
