"""Compares the losses of training in bfloat16 and in float32, in one figure.

  python -m tests.benchmarks.bfloat16_training --folder NEW --figure losses.png

Both runs are configs/tiny.py from the same seed, on the same images and noise.
One computes in float32 and keeps Adam's moments and the EMA in it; the other
computes in bfloat16, its gradients too, keeps moments and EMA in bfloat16,
rounded stochastically, and rematerialises. Prints both losses, line by line,
and the mean of the distances relative to float32; draws them. Ten minutes on
two cores; needs matplotlib.
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
RUNS = {
  'float32': {f'{net}.dtype': 'float32' for net in NETS},
  'bfloat16': {f'{net}.dtype': 'bfloat16' for net in NETS}
  | {
    'unet.remat': 'dots',
    'optimizer.gradients_dtype': 'bfloat16',
    'optimizer.moments_dtype': 'bfloat16',
    'optimizer.ema_dtype': 'bfloat16',
  },
}


def train(folder, fields):
  """Trains in a new process; returns [(step, loss)].

  Args:
    folder: the workdir of the run.
    fields: of the config, besides COMMON.
  """
  fields = COMMON | fields | {'total_steps': flags.FLAGS.steps}
  command = [sys.executable, '-m', 'sdxl_jax.train', '--config=configs/tiny.py']
  command += [f'--workdir={folder}']
  command += [f'--config.{name}={value}' for name, value in fields.items()]
  subprocess.run(command, check=True)
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [(line['step'], line['loss']) for line in found if 'loss' in line]


def draw(losses, path):
  """Draws {run: [(step, loss)]} to a file."""
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  for (name, points), style in zip(losses.items(), ('-', '--')):
    axes.plot(*zip(*points), style, label=name)
  axes.set(xlabel='step', ylabel=f'loss, mean of {EVERY} steps')
  axes.legend()
  figure.savefig(path, dpi=120)


def main(_):
  folder = pathlib.Path(flags.FLAGS.folder)
  folder.mkdir(parents=True)
  losses = {name: train(folder / name, f) for name, f in RUNS.items()}
  print(f'step  {"  ".join(losses)}')
  for (step, a), (_, b) in zip(*losses.values(), strict=True):
    print(f'{step:4}  {a:7.4f}  {b:8.4f}')
  distances = [abs(b - a) / a for (_, a), (_, b) in zip(*losses.values())]
  print(f'mean distance {sum(distances) / len(distances):.2%}')
  draw(losses, flags.FLAGS.figure)


if __name__ == '__main__':
  flags.DEFINE_string('folder', None, 'folder to work in; must not exist')
  flags.DEFINE_string('figure', 'losses.png', 'file to draw to')
  flags.DEFINE_integer('steps', 200, 'of each run', 20)
  flags.mark_flag_as_required('folder')
  app.run(main)
