"""Compares a run on four, then two, then one process with an unbroken run.

  python -m tests.benchmarks.many_hosts

Trains six buckets of tiny stage 3 on the CPU of this machine. After SIGTERM to
one process all must save; the records and the loss of each step must be those
of the unbroken run. Then kills one of four processes with SIGKILL: the others
must end by themselves. About 15 minutes on two cores, most of it compilation.
"""

import functools
import pathlib
import signal
import sys
import tempfile
import time

import numpy as np
from absl import app

from tests.support import processes

CONFIG = 'tests/support/many_hosts_config.py'


def compare(stopped, unbroken, steps):
  """Prints and returns whether losses and records of the runs agree."""
  losses = np.array([m['loss'] for m in stopped.metrics()])
  expected = np.array([m['loss'] for m in unbroken.metrics()])
  error = np.abs(losses / expected - 1).max()
  # Merge what the runs on 4, 2 and 1 processes read.
  read = {}
  for count in (4, 2, 1):
    for path in stopped.workdir.glob(f'records-{count}-*.txt'):
      for line in path.read_text().splitlines():
        part, row, record = map(int, line.split())
        is_same = read.setdefault((part, row), record) == record
        assert is_same, f'part {part}, row {row} was read as two records'
  equal = before(steps, read) == before(steps, unbroken.records())
  print(
    f'{len(losses)} steps; largest relative difference of a loss {error:.1e}; '
    f'records of every row the same: {equal}',
    flush=True,
  )
  return equal and len(losses) == len(expected) == steps and error < 1e-4


def before(steps, records):
  """Returns the entries {(step, row): record} of the first steps."""
  return {k: v for k, v in records.items() if k[0] < steps}


def stop_midway(count, workdir, step):
  """Sends SIGTERM to one process; returns whether all ended without error."""
  run = processes.Run(count, CONFIG, workdir)
  run.wait_for_step(step)
  run.signal(count // 2)
  codes = run.wait()
  print(
    f'{count} processes, SIGTERM to one after step {step}: exit codes {codes}, '
    f'stopped at step {len(run.metrics())}',
    flush=True,
  )
  return not any(codes)


def lose_one(workdir):
  """Kills one process of four; returns whether the others end and resume."""
  start = functools.partial(
    processes.Run,
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
  # The same command resumes and does not read the first batch again.
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
  resumed = len(first) == len(set(first))
  again.records()  # asserts that a row is the same record in both runs
  print(
    f'the same command again: from step {done} to {len(again.metrics())}, not '
    f'from the start: {resumed}; exit codes {ended}'
  )
  return all(codes) and seconds < 120 and clear and resumed and not any(ended)


def main(argv):
  del argv
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    unbroken = processes.Run(1, CONFIG, folder / 'unbroken')
    passed = [not any(unbroken.wait())]
    steps = len(unbroken.metrics())
    print(f'unbroken run: {steps} steps', flush=True)
    for count, step in ((4, 6), (2, 12)):
      passed.append(stop_midway(count, folder / 'stopped', step))
    stopped = processes.Run(1, CONFIG, folder / 'stopped')
    passed.append(not any(stopped.wait()))
    passed.append(compare(stopped, unbroken, steps))
    passed.append(lose_one(folder / 'lost'))
  sys.exit(not all(passed))


if __name__ == '__main__':
  app.run(main)
