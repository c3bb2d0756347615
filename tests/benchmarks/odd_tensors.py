"""Renames, drops, adds and reshapes tensors of SDXL's file at random.

  python -m tests.benchmarks.odd_tensors --files=1000

The error has to name one of the wrong tensors and none that is right; a file
with nothing but known companions is read. A thousand files take ten minutes.
"""

import pathlib
import tempfile

from absl import app, flags

from tests.support import file_kinds, odd_tensors


def main(argv):
  del argv
  counts = {True: 0, False: 0}  # by whether the file was read
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'a.safetensors'
    for seed in range(flags.FLAGS.first, flags.FLAGS.first + flags.FLAGS.files):
      is_base = seed % 2 == 0
      entries = file_kinds.base() if is_base else file_kinds.refiner()
      done, reason = odd_tensors.try_one(entries, seed, path)
      counts[not reason] += 1
      if seed < flags.FLAGS.first + flags.FLAGS.shown:
        print(f'{"; ".join(done)}\n  {reason.partition(": ")[2][:300]}')
  read, refused = counts[True], counts[False]
  print(f'{read} files read, {refused} refused with a right reason')


if __name__ == '__main__':
  flags.DEFINE_integer('files', 1000, 'files to try', 1)
  flags.DEFINE_integer('first', 0, 'seed of the first file', 0)
  flags.DEFINE_integer('shown', 10, 'files to print', 0)
  app.run(main)
