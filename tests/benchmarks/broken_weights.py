"""Many broken weights: each is refused in one line, and nothing is left behind.

  python -m tests.benchmarks.broken_weights --files=1000

Prints, by fault, how many were tried, the longest time that one took, and some
reasons that were given.
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
  found, longest = collections.defaultdict(collections.Counter), {}
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    whole, place = folder / 'whole.safetensors', folder / 'place'
    source = golden_sets.SETS[0] / 'tiny' / 'refiner'
    conversions.run(source, whole, 'single_file')
    place.mkdir()
    data = whole.read_bytes()
    for seed in range(flags.FLAGS.files):
      started = time.monotonic()
      fault, reason = broken_weights_test.try_one(data, seed, place)
      spent = time.monotonic() - started
      found[fault][reason] += 1
      longest[fault] = max(longest.get(fault, 0), spent)
  for fault, reasons in found.items():
    print(f'{reasons.total():4} {fault}, {longest[fault]:.2f} s at most')
    for reason in list(reasons)[: flags.FLAGS.reasons]:
      print(f'       {reason[reason.find("broken.") :][:150]}')
  print(f'{flags.FLAGS.files} broken files, none converted, none a crash')


if __name__ == '__main__':
  flags.DEFINE_integer('files', 1000, 'to try', 1)
  flags.DEFINE_integer('reasons', 1, 'to print of each fault', 0)
  app.run(main)
