"""Compares the losses of short runs that differ in some fields, in one figure.

  python -m tests.benchmarks.training_losses --compare optimizers --folder NEW \
    --figure losses.png

All runs are configs/tiny.py (or --config) from the same seed, on the same
images and noise, with the fields of COMPARISONS besides. Prints the losses,
line by line, and the mean of each run's distances to the first, relative to it;
draws them. A run whose folder is complete is not repeated, so that the same
command goes on.
Five minutes for each run on two cores, one with the smaller nets of
--config=tests/support/tiny_config.py; needs matplotlib.

'bfloat16': one run computes in float32 and keeps Adam's moments and the EMA in
it; the other computes in bfloat16, its gradients too, keeps moments and EMA in
bfloat16, rounded stochastically, and rematerialises.

'optimizers': each optimizer by name, with a learning rate that is usual for it
beside AdamW's of 2e-3, under a schedule that decays, but for schedule-free.
"""

import json
import pathlib
import subprocess
import sys

from absl import app, flags

EVERY = 10  # steps that a point of the figure averages over
COMMON = {
  'log_every': EVERY,
  'samples.every': 0,
  'optimizer.warmup_steps': 20,
  'checkpoint.every': 10**6,
}
NETS = 'unet', 'text_encoder', 'text_encoder_2'


def optimizer(name, **fields):
  """Returns the fields of a run with an optimizer."""
  return {f'optimizer.{n}': x for n, x in {'name': name, **fields}.items()}


# {comparison: {run: fields}}; the first run is what others are compared with.
COMPARISONS = {
  'bfloat16': {
    'float32': {f'{net}.dtype': 'float32' for net in NETS},
    'bfloat16': {f'{net}.dtype': 'bfloat16' for net in NETS}
    | {
      'unet.remat': 'dots',
      'optimizer.gradients_dtype': 'bfloat16',
      'optimizer.moments_dtype': 'bfloat16',
      'optimizer.ema_dtype': 'bfloat16',
    },
  },
  'optimizers': {
    'adamw': optimizer('adamw'),
    'adamw int8': optimizer('adamw', moments_dtype='int8'),
    'lion': optimizer('lion', learning_rate=3e-4),
    'prodigy': optimizer('prodigy', learning_rate=1.0),
    'schedule_free': optimizer('schedule_free_adamw', schedule='constant'),
    'muon': optimizer('muon'),
    'adafactor': optimizer('adafactor'),
    'came': optimizer('came'),
    'dadapt_adam': optimizer('dadapt_adam', learning_rate=1.0),
  },
}


def train(folder, fields):
  """Trains in a new process, unless that is done; returns [(step, loss)].

  Args:
    folder: the workdir of the run.
    fields: of the config, besides COMMON.
  """
  steps, fields = flags.FLAGS.steps, COMMON | fields
  path = folder / 'metrics.jsonl'
  found = read(path)
  if not found or found[-1][0] < steps:
    command = [sys.executable, '-m', 'sdxl_jax.train']
    command += [f'--config={flags.FLAGS.config}', f'--workdir={folder}']
    fields = fields | {'total_steps': steps}
    command += [f'--config.{name}={value}' for name, value in fields.items()]
    subprocess.run(command, check=True)
    found = read(path)
  return found


def read(path):
  """Returns [(step, loss)] of a run so far."""
  if not path.is_file():
    return []
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [(line['step'], line['loss']) for line in lines if 'loss' in line]


def draw(losses, path):
  """Draws {run: [(step, loss)]} to a file."""
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  for i, (name, points) in enumerate(losses.items()):
    style = ('-', '--', ':')[i * 3 // len(losses)]
    axes.plot(*zip(*points), style, label=name)
  axes.set(xlabel='step', ylabel=f'loss, mean of {EVERY} steps', yscale='log')
  axes.legend(ncols=1 + (len(losses) > 4))
  figure.savefig(path, dpi=120)


def report(losses):
  """Prints the losses of all runs, and their distances to the first."""
  first, *others = losses
  width = max(8, *map(len, losses))
  print('step', *(f'{name:>{width}}' for name in losses))
  for row in zip(*losses.values(), strict=True):
    print(f'{row[0][0]:4}', *(f'{loss:{width}.4f}' for _, loss in row))
  for name in others:
    distances = [
      abs(b - a) / a for (_, a), (_, b) in zip(losses[first], losses[name])
    ]
    mean = sum(distances) / len(distances)
    print(f'{name}: mean distance to {first} {mean:.2%}')


def main(_):
  runs = COMPARISONS[flags.FLAGS.compare]
  names = flags.FLAGS.runs or list(runs)
  folder = pathlib.Path(flags.FLAGS.folder)
  folder.mkdir(parents=True, exist_ok=True)
  losses = {
    name: train(folder / name.replace(' ', '_'), runs[name]) for name in names
  }
  report(losses)
  draw(losses, flags.FLAGS.figure)


if __name__ == '__main__':
  flags.DEFINE_enum('compare', 'bfloat16', list(COMPARISONS), 'which runs')
  flags.DEFINE_string('config', 'configs/tiny.py', 'of all runs')
  flags.DEFINE_list('runs', [], 'names of some of them; none: all')
  flags.DEFINE_string('folder', None, 'folder of the workdirs')
  flags.DEFINE_string('figure', 'losses.png', 'file to draw to')
  flags.DEFINE_integer('steps', 200, 'of each run', 20)
  flags.mark_flag_as_required('folder')
  app.run(main)
