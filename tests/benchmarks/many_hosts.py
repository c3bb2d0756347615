"""One run on four processes, then two, then one, against one unbroken.

  python -m tests.benchmarks.many_hosts

Six buckets of tiny stage 3, on this machine's CPU. SIGTERM to one process must
save on all of them; what each step was made of and its loss must be those of
the unbroken run. Then kill -9 of one of four: the others must end by
themselves. About 15 minutes on two cores, most of it compiling.
"""

import pathlib
import signal
import sys
import tempfile
import time

import numpy as np
from absl import app

from tests.support import processes

CONFIG = 'tests/support/many_hosts_config.py'


def compare(broken, whole, steps):
  """Prints and returns whether losses and records of the runs agree."""
  a, b = (np.array([m['loss'] for m in r.metrics()]) for r in (broken, whole))
  error = np.abs(a / b - 1).max()
  read = {}
  for count in (4, 2, 1):
    for path in broken.workdir.glob(f'records-{count}-*.txt'):
      for line in path.read_text().splitlines():
        part, row, record = map(int, line.split())
        same = read.setdefault((part, row), record) == record
        assert same, f'part {part}, row {row} was read as two records'
  keep = lambda records: {k: v for k, v in records.items() if k[0] < steps}
  equal = keep(read) == keep(whole.records())
  print(
    f'{len(a)} steps; largest relative difference of a loss {error:.1e}; '
    f'records of every row the same: {equal}',
    flush=True,
  )
  return equal and len(a) == len(b) == steps and error < 1e-4


def stop_midway(count, workdir, step):
  run = processes.Run(count, CONFIG, workdir)
  run.wait_for_step(step)
  run.signal(count // 2)
  codes = run.wait()
  print(
    f'{count} processes, SIGTERM to one after step {step}: exit codes {codes}, '
    f'stopped at step {len(run.metrics())}',
    flush=True,
  )
  return run, not any(codes)


def lose_one(workdir):
  """kill -9 of one process of four: whether the others end, and resume."""
  start = lambda: processes.Run(
    4,
    CONFIG,
    workdir,
    '--config.total_steps=100000',
    '--config.checkpoint.every=2',
  )
  run = start()
  run.wait_for_step(6)
  run.signal(1, signal.SIGKILL)
  started = time.monotonic()
  codes = run.wait()
  seconds = time.monotonic() - started
  clear = sum('another process is gone' in tail for tail in run.tails())
  print(
    f'kill -9 of one of four: the others ended after {seconds:.0f} s with '
    f'{codes}, {clear} of them with our message',
    flush=True,
  )
  done = len(run.metrics())
  again = start()
  again.wait_for_step(done + 4)
  again.signal(2)
  ended = again.wait()
  lines = [
    line
    for path in workdir.glob('records-4-*.txt')
    for line in path.read_text().splitlines()
  ]
  first = [line for line in lines if line.startswith('0 ')]
  resumed = len(first) == len(set(first))  # nobody read the first batch twice
  again.records()  # what both read of a row is the same record
  print(
    f'the same command again: from step {done} to {len(again.metrics())}, not '
    f'from the start: {resumed}; exit codes {ended}'
  )
  return all(codes) and seconds < 120 and clear and resumed and not any(ended)


def main(argv):
  del argv
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    whole = processes.Run(1, CONFIG, folder / 'whole')
    good = [not any(whole.wait())]
    print(f'unbroken run: {len(whole.metrics())} steps', flush=True)
    for count, step in ((4, 6), (2, 12)):
      _, ended = stop_midway(count, folder / 'broken', step)
      good.append(ended)
    broken = processes.Run(1, CONFIG, folder / 'broken')
    good.append(not any(broken.wait()))
    good.append(compare(broken, whole, len(whole.metrics())))
    good.append(lose_one(folder / 'lost'))
  sys.exit(not all(good))


if __name__ == '__main__':
  app.run(main)
