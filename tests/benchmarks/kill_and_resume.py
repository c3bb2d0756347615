"""Kills a run at random moments, and compares its end with an unbroken run's.

  python -m tests.benchmarks.kill_and_resume --kills 10

Prints the number of kills and whether every parameter, EMA and moment is equal
bit for bit.
"""

import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from sdxl_jax.training import checkpoint, task
from tests import tiny_config

COMMAND = (
  *(sys.executable, '-m', 'sdxl_jax.train'),
  *('--config', 'tests/tiny_config.py', '--config.total_steps=60'),
  *('--config.checkpoint.every=5', '--workdir'),
)


def final_state(workdir):
  config = tiny_config.get_config()
  made = task.make_task(config, task.make_nets(config))
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  spec = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  checkpoints = checkpoint.Checkpoints(workdir)
  state, _ = checkpoints.restore(jax.tree.map(spec, shapes))
  checkpoints.close()
  return state


def main(argv):
  del argv
  rng, kills = random.Random(flags.FLAGS.seed), 0
  with tempfile.TemporaryDirectory() as folder:
    straight, broken = pathlib.Path(folder, 'a'), pathlib.Path(folder, 'b')
    start = time.monotonic()
    subprocess.run([*COMMAND, straight], check=True, capture_output=True)
    longest = time.monotonic() - start
    print(f'unbroken run: {longest:.0f} s', flush=True)
    while kills < flags.FLAGS.kills:
      run = subprocess.Popen(
        [*COMMAND, broken],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
      )
      try:
        run.wait(timeout=rng.uniform(5, 0.8 * longest))
        break  # it came to its end
      except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        kills += 1
        steps = checkpoint.Checkpoints(broken).latest_step
        print(f'killed; the latest checkpoint is of step {steps}', flush=True)
    subprocess.run([*COMMAND, broken], check=True, capture_output=True)
    equal = jax.tree.map(np.array_equal, *map(final_state, (straight, broken)))
    same = all(jax.tree.leaves(equal))
  print(f'{kills} kills; all arrays equal bit for bit: {same}')
  sys.exit(not same)


if __name__ == '__main__':
  flags.DEFINE_integer('kills', 10, 'times that the run is killed, at most')
  flags.DEFINE_integer('seed', 0, 'of the moments')
  app.run(main)
