"""Kills a run at random moments and compares its end with an unbroken run.

  python -m tests.benchmarks.kill_and_resume --kills 10

The moments are spread over start, training and saving. Prints the step of each
kill and whether step, parameters, EMA and moments are equal bit for bit; exits
with 1 if they are not, or if the run ended before the last kill.
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

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.models import from_config
from sdxl_jax.training import tasks
from tests.support import tiny_config

COMMAND = (
  sys.executable,
  '-m',
  'sdxl_jax.train',
  '--config',
  'tests/support/tiny_config.py',
  '--config.total_steps=600',
  '--config.checkpoint.every=20',
  '--workdir',
)
QUIET = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def final_state(workdir):
  """Returns the State in the last checkpoint."""
  config = tiny_config.get_config()
  task = tasks.make_task(config, from_config.make_model(config))
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def spec(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  checkpoints = orbax_checkpoint.Checkpoints(workdir)
  state, _ = checkpoints.restore(jax.tree.map(spec, shapes))
  checkpoints.close()
  return state


def steps_done(workdir):
  """Returns the number of steps whose metrics are in the workdir."""
  path = workdir / 'metrics.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def wait(run, workdir, rng, seconds):
  """Waits for a random moment, with probability 1/4 during the start."""
  if rng.random() < 0.25:
    time.sleep(rng.uniform(0, 10))
    return
  before = steps_done(workdir)
  while run.poll() is None and steps_done(workdir) == before:
    time.sleep(0.05)
    # A resumed run drops the lines of steps that it will repeat.
    before = min(before, steps_done(workdir))
  time.sleep(rng.uniform(0, seconds))


def main(argv):
  del argv
  rng = random.Random(flags.FLAGS.seed)
  kills = flags.FLAGS.kills
  with tempfile.TemporaryDirectory() as folder:
    unbroken, killed = pathlib.Path(folder, 'a'), pathlib.Path(folder, 'b')
    # Measure how long the run trains, to spread the kills over it.
    run = subprocess.Popen([*COMMAND, unbroken], **QUIET)
    wait(run, unbroken, random.Random(1), 0)
    start = time.monotonic()
    assert run.wait() == 0, 'the unbroken run failed'
    training = time.monotonic() - start
    print(f'unbroken run: {training:.0f} s after its first step', flush=True)
    for i in range(kills):
      run = subprocess.Popen([*COMMAND, killed], **QUIET)
      wait(run, killed, rng, training / kills)
      if run.poll() is not None:
        sys.exit(f'the run ended by itself after {i} kills')
      run.kill()
      run.wait()
      print(f'kill {i + 1}, after step {steps_done(killed)}', flush=True)
    subprocess.run([*COMMAND, killed], check=True, **QUIET)
    equal = jax.tree.map(np.array_equal, *map(final_state, (unbroken, killed)))
    same = all(jax.tree.leaves(equal))
  print(f'{kills} kills; all arrays equal bit for bit: {same}')
  sys.exit(not same)


if __name__ == '__main__':
  flags.DEFINE_integer('kills', 10, 'number of kills')
  flags.DEFINE_integer('seed', 0, 'seed of the moments')
  app.run(main)
