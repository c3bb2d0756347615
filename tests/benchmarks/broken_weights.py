"""Converts many broken files: each must be refused in one line.

  python -m tests.benchmarks.broken_weights --files=1000

A refused conversion must leave no file behind. Prints for each fault the number
of files, the longest time that one took, and some of the error messages.
"""

import collections
import pathlib
import tempfile
import time

from absl import app, flags

from tests.support import conversions, golden_sets
from tests.weights import broken_weights_test


def main(argv):
  del argv
  reasons = collections.defaultdict(collections.Counter)
  longest = {}  # {fault: seconds}
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    valid, target = folder / 'valid.safetensors', folder / 'target'
    source = golden_sets.SETS[0] / 'tiny' / 'refiner'
    conversions.run(source, valid, 'single_file')
    target.mkdir()
    data = valid.read_bytes()
    # Break the valid file in another way for each seed.
    for seed in range(flags.FLAGS.files):
      started = time.monotonic()
      fault, reason = broken_weights_test.try_one(data, seed, target)
      seconds = time.monotonic() - started
      reasons[fault][reason] += 1
      longest[fault] = max(longest.get(fault, 0), seconds)
  for fault, counts in reasons.items():
    print(f'{counts.total():4} {fault}, {longest[fault]:.2f} s at most')
    for reason in list(counts)[: flags.FLAGS.reasons]:
      print(f'       {reason[reason.find("broken.") :][:150]}')
  print(f'{flags.FLAGS.files} broken files, none converted, none a crash')


if __name__ == '__main__':
  flags.DEFINE_integer('files', 1000, 'files to try', 1)
  flags.DEFINE_integer('reasons', 1, 'messages to print per fault', 0)
  app.run(main)
