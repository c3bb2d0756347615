"""Measures what it costs to report each step of a sample.

  python -m tests.benchmarks.report_cost

Samples with the tests' tiny model, whose steps take about as long as the host
needs to dispatch one, as those of a small image do on a fast GPU: all steps as
one program; each one reported while the next runs; and each one waited for
before the next is dispatched. They take turns. Prints milliseconds per step,
the ratio to one program in the same turn (medians over turns), and the host's
milliseconds of a dispatch. A minute.
"""

import statistics
import time

from absl import app, flags

from sdxl_jax.sampling import denoising_loop, generation, pipelines
from tests.support import golden_sets

TINY = golden_sets.SETS[0] / 'tiny' / 'base'
FLAGS = flags.FLAGS


def sample(pipeline, take_steps, watch):
  """Samples an image; returns the seconds of each step."""
  whole, denoising_loop.take_steps = denoising_loop.take_steps, take_steps
  started = time.perf_counter()
  generation.generate(
    pipeline,
    ['a red fox'],
    size=(FLAGS.size, FLAGS.size),
    steps=FLAGS.steps,
    guidance_scale=5.0,
    watch=watch,
  )
  denoising_loop.take_steps = whole
  return (time.perf_counter() - started) / FLAGS.steps


def main(argv):
  del argv
  pipeline = pipelines.load(TINY)
  take_steps, dispatches = denoising_loop.take_steps, []

  def timed(*args, **kwargs):
    started = time.perf_counter()
    state = take_steps(*args, **kwargs)
    dispatches.append(time.perf_counter() - started)
    return state

  def waited_for(*args, **kwargs):
    state = take_steps(*args, **kwargs)
    state.x.block_until_ready()
    return state

  def watch(done, total, preview):
    del done, total, preview

  modes = {
    'one program': (take_steps, None),
    'reported while the next runs': (timed, watch),
    'waited for': (waited_for, watch),
  }
  seconds = {name: [] for name in modes}
  for turn in range(FLAGS.turns + 1):
    for name, mode in modes.items():
      measured = sample(pipeline, *mode)
      if turn:  # the first compiles
        seconds[name].append(measured)
  for name, measured in seconds.items():
    ratios = [b / a for a, b in zip(seconds['one program'], measured)]
    print(
      f'{name}: {1e3 * statistics.median(measured):.2f} ms per step, '
      f'{statistics.median(ratios):.2f} times'
    )
  print(f'a dispatch: {1e3 * statistics.median(dispatches):.2f} ms of the host')


if __name__ == '__main__':
  flags.DEFINE_integer('size', 64, 'height and width in px')
  flags.DEFINE_integer('steps', 30, 'steps per image')
  flags.DEFINE_integer('turns', 15, 'turns of each')
  app.run(main)
