"""Starts a tiny run again and again, each time with a random fault.

  python -m tests.benchmarks.soak --starts 200

A run of 150 steps is started, disturbed at a random moment, and started again
until it is finished; then the next run begins. Faults: kill -9, SIGTERM, SIGINT
(once or twice), a full disk, a second start, NaN in a record; in every other
run also images and captions that are added, removed, edited or cut short,
between two starts or during one, and another batch size. After each start its
exit code and last words must be the expected ones, and no checkpoint may be
lost. Runs whose data stayed the same must end with the parameters, moments and
EMA of an unbroken run, bit for bit; in the others each pass must have each
record once, and a changed dataset must be refused with the right counts until
it is accepted.

Prints a line per start and the figures; exits with 1 if anything differs. About
ten seconds per start on two cores.
"""

import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import tempfile
import time

import jax
import numpy as np
from absl import app, flags, logging

from tests.benchmarks import kill_and_resume
from tests.support import soak_runs

PROCESS_FAULTS = ('kill', 'term', 'int', 'int twice', 'full', 'second', 'nan')
DATA_FAULTS = ('add', 'remove', 'edit', 'cut', 'batch')


def disturb(soak, fault, seconds, change):
  """Starts the run with a fault; returns (exit code, seconds to the end).

  Args:
    soak: the run.
    fault: one of PROCESS_FAULTS.
    seconds: that an undisturbed start takes.
    change: called once the data are indexed.
  """
  rng, variables = soak.rng, {}
  first = soak.latest()
  if fault == 'full':
    step = min(soak_runs.STEPS - 1, first + rng.randint(0, 30))
    variables = {'SOAK_FULL': step, 'SOAK_BYTES': rng.choice([0, 4000, 40000])}
  elif fault == 'nan':
    variables = {'SOAK_NAN': soak.data.choose().name}
  elif fault == 'second':
    variables = {'SOAK_SLEEP': 0.3}
  process = soak.start(**variables)
  if change:
    soak.wait_for('buckets ready: 1', process)
    change()
  if fault == 'second':
    check_second_start(soak, process)
  elif fault in ('kill', 'term', 'int', 'int twice'):
    time.sleep(rng.uniform(0, seconds))
    if process.poll() is None:
      number = {'kill': signal.SIGKILL, 'term': signal.SIGTERM}.get(fault)
      process.send_signal(number or signal.SIGINT)
      if fault == 'int twice':
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
  started = time.monotonic()
  code = soak.end(process)
  check_end(soak, fault, code, variables)
  return code, time.monotonic() - started


def check_second_start(soak, process):
  """Starts the run twice: the second is refused, the first goes on."""
  if not soak.wait_for('processes, ', process):
    return
  first, soak.log = soak.log, soak.folder / 'second.log'
  second = soak.start()
  code = soak.end(second)
  text = soak.log.read_text()
  # The first may have ended while the second started.
  if process.poll() is None:
    soak_runs.expect(code == 1, f'second start: exit code {code}', soak)
    soak_runs.expect(
      f'in use by process {process.pid} on' in text, 'no holder', soak
    )
  soak.log = first
  process.send_signal(signal.SIGTERM)


def check_end(soak, fault, code, variables):
  """Checks the exit code and the last words of a start."""
  text = soak.log.read_text()
  done = {0} if 'Finished.' in text else set()
  expected = {
    'kill': {-signal.SIGKILL},
    'term': {0, -signal.SIGTERM, 128 + signal.SIGTERM},
    'int': {128 + signal.SIGINT, -signal.SIGINT},
    'int twice': {128 + signal.SIGINT, -signal.SIGINT},
    'full': {1},
    'nan': {1},
    'second': {0, 128 + signal.SIGTERM},
  }[fault]
  soak_runs.expect(code in expected | done, f'{fault}: exit code {code}', soak)
  # Before the run installs its handlers, Python's own print a traceback.
  began = 'processes, ' in text
  if began or fault in ('full', 'nan'):
    soak_runs.expect('Traceback' not in text, f'{fault}: a traceback', soak)
  if fault == 'full' and code == 1:
    soak_runs.expect('The last good one is' in text, 'full: no remedy', soak)
  if fault == 'nan' and code == 1:
    soak_runs.expect(variables['SOAK_NAN'] in text, 'nan: no name', soak)


def start_checked(soak, fault, seconds, change):
  """Takes one start, see `disturb`; returns a line for the report."""
  before, held = soak.latest(), soak.data.held()
  told = check_dataset(soak, before, held)
  code, ending = disturb(soak, fault, seconds, change)
  after = soak.latest()
  soak_runs.expect(
    after >= before, f'step {before} was saved, now {after} is', soak
  )
  if after > before:
    soak.saved, soak.saved_batch = held, soak.batch
  return f'{fault}: exit {code}, {ending:.1f} s, step {before} > {after}{told}'


def check_dataset(soak, before, held):
  """Checks that changes are refused with the right counts; accepts them."""
  if not before:
    return ''
  counts = soak_runs.differences(soak.saved, held)
  changed_batch = soak.saved_batch != soak.batch
  if not any(counts) and not changed_batch:
    return ''
  # Refused first.
  code = soak.end(soak.start())
  text = soak.log.read_text()
  soak_runs.expect(
    code == 1 and 'accept_changes' in text, 'a change is accepted', soak
  )
  if any(counts) and not changed_batch:
    found = tuple(
      int(re.search(rf'{what} +(\d+)', text)[1])
      for what in ('added', 'removed', 'changed')
    )
    soak_runs.expect(found == counts, f'changes {counts}, told {found}', soak)
  # Then accepted: until it has saved, every start has to accept it.
  process = soak.start('--accept_changes')
  soak.wait_for('buckets ready: 2', process)
  while soak.latest() == before and process.poll() is None:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  code = soak.end(process)
  # It may have saved its last step, and ended but for the interpreter.
  soak_runs.expect(
    code == 0 or (code == -signal.SIGTERM and soak.latest() == soak_runs.STEPS),
    f'accepting a change: exit code {code}',
    soak,
  )
  if any(counts[:2]):
    soak_runs.expect(
      'a new pass' in soak.log.read_text(), 'no new pass is told', soak
    )
    soak.segments.append(before)
  soak.saved, soak.saved_batch = held, soak.batch
  return f'; told {counts}' + (f', batch {soak.batch}' * changed_batch)


def check_passes(soak):
  """Checks, from the notes, that each pass has each record once."""
  last = {}  # what was read for a step when it was taken last
  for line in soak.notes.read_text().splitlines():
    note = json.loads(line)
    last[note['step']] = note
  soak_runs.expect(
    sorted(last) == list(range(soak_runs.STEPS)), 'steps are missing', soak
  )
  seen = collections.defaultdict(list)
  for step, note in last.items():
    segment = sum(step >= first for first in soak.segments)
    for name, number in zip(note['names'], note['passes']):
      seen[segment, tuple(note['bucket']), number].append(name)
  for (segment, bucket, number), names in seen.items():
    soak_runs.expect(len(names) == len(set(names)), 'a record came twice', soak)
    whole = seen.get((segment, bucket, number + 1))
    if whole:  # the pass was finished, and so it has all records of the next
      missing = set(whole) - set(names)
      soak_runs.expect(
        not missing, f'pass {number} lacks {sorted(missing)}', soak
      )
  return sum(map(len, seen.values()))


def finish(soak):
  """Starts the run without a fault until it ends."""
  check_dataset(soak, soak.latest(), soak.data.held())
  # A run that was finished already saves nothing, so that each of its starts
  # has to accept data that changed since.
  is_over = soak.latest() == soak_runs.STEPS
  code = soak.end(soak.start(*['--accept_changes'] * is_over))
  soak_runs.expect(
    code == 0 and soak.latest() == soak_runs.STEPS,
    f'end: exit code {code}',
    soak,
  )


def main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  rng, starts, runs = random.Random(flags.FLAGS.seed), 0, 0
  faults, read = collections.Counter(), 0
  folder = pathlib.Path(tempfile.mkdtemp(prefix='soak'))
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'programs'))
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  patience = flags.FLAGS.patience
  unbroken = soak_runs.Soak(folder / 'unbroken', 0, rng, False, patience)
  finish(unbroken)  # which compiles the programs
  shutil.rmtree(unbroken.workdir)
  unbroken.notes.unlink()
  began = time.monotonic()
  finish(unbroken)
  seconds = time.monotonic() - began
  read += check_passes(unbroken)
  expected = kill_and_resume.final_state(unbroken.workdir)
  print(f'unbroken run: {seconds:.1f} s', flush=True)

  while starts < flags.FLAGS.starts:
    changes_data = runs % 2 == 1
    soak = soak_runs.Soak(folder / str(runs), runs, rng, changes_data, patience)
    for _ in range(rng.randint(3, 8)):
      change = None
      if soak.changes_data and rng.random() < 0.5:
        fault = rng.choice(DATA_FAULTS)
        faults[fault] += 1
        change = getattr(soak.data, fault, None)
        if fault == 'batch':
          soak.batch = 12 - soak.batch
        elif rng.random() < 0.5:
          change = change()  # None: now, not during the start
      fault = rng.choice(PROCESS_FAULTS)
      faults[fault] += 1
      starts += 1
      line = start_checked(soak, fault, seconds, change)
      print(f'start {starts}, run {runs}: {line}', flush=True)
      if soak.latest() == soak_runs.STEPS:
        break
    finish(soak)
    starts, runs = starts + 1, runs + 1
    read += check_passes(soak)
    if not soak.changes_data:
      final = kill_and_resume.final_state(soak.workdir)
      equal = jax.tree.map(np.array_equal, expected, final)
      soak_runs.expect(all(jax.tree.leaves(equal)), 'other parameters', soak)
    shutil.rmtree(soak.folder)
  shutil.rmtree(folder)  # which stays if anything differs
  print(
    f'{starts} starts of {runs} runs; faults {dict(faults)}; {read} records in '
    'passes without a loss or a repetition; runs with the same data ended bit '
    'for bit alike'
  )


if __name__ == '__main__':
  flags.DEFINE_integer('starts', 200, 'starts in all, at least')
  flags.DEFINE_integer('patience', 300, 'seconds for a start to end in')
  flags.DEFINE_integer('seed', 0, 'seed of the faults and their moments')
  app.run(main)
