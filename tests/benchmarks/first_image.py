"""Measures the time to the first image, in a first and in a second start.

  python -m tests.benchmarks.first_image --weights DIR

Runs the command `sample` in new processes that share a new cache of programs:
one with it empty, one after. Prints the seconds of each from the start of the
process to its end, and those that the command reports: loading weights,
compiling (or reading programs), and sampling; the rest is the start of Python
and JAX. Flags after -- go to the command, such as --dtype=bfloat16. Without
--weights: the tests' tiny model, a minute.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from tests.support import golden_sets

TINY = golden_sets.SETS[0] / 'tiny' / 'base'
WEIGHTS = flags.DEFINE_string('weights', str(TINY), 'as of the command sample')
SIZE = flags.DEFINE_integer('size', 64, 'height and width in px')
STEPS = flags.DEFINE_integer('steps', 20, 'steps of the image')
REPORT = re.compile(
  r'loading (\S+) s, compiling (\S+) s \((\d+) programs, (\d+) from the '
  r'cache\), sampling (\S+) s'
)


def start(folder, arguments):
  """Runs the command once; returns its seconds, and what it reports.

  Args:
    folder: of the programs, and of the image.
    arguments: more flags of the command.
  """
  command = [sys.executable, '-m', 'sdxl_jax.sample', '--prompt=a red fox']
  command += ['--weights', WEIGHTS.value, f'--steps={STEPS.value}']
  command += [f'--height={SIZE.value}', f'--width={SIZE.value}']
  command += [f'--output={folder}/fox.png', f'--cache_dir={folder}/programs']
  began = time.monotonic()
  done = subprocess.run(
    [*command, *arguments], stdout=subprocess.PIPE, text=True, check=True
  )
  return time.monotonic() - began, REPORT.search(done.stdout).groups()


def main(argv):
  print('start    all s  load s  compile s  sample s  programs  from the cache')
  with tempfile.TemporaryDirectory() as folder:
    for name in ('first', 'second'):
      seconds, report = start(folder, argv[1:])
      loading, compiling, programs, read, sampling = report
      print(
        f'{name:6} {seconds:7.1f} {loading:>7} {compiling:>10} {sampling:>9} '
        f'{programs:>9} {read:>15}',
        flush=True,
      )
    files = pathlib.Path(folder, 'programs').iterdir()
    size = sum(path.stat().st_size for path in files)
  print(f'the cache holds {size / 1e6:.1f} MB')


if __name__ == '__main__':
  app.run(main)
