"""Seconds per sampling step beside diffusers, on this CPU, in one run.

  python -m tests.benchmarks.sample_speed

Both draw the same pictures, float32, with the tiny model of the tests and with
one of about 100 M parameters (random weights): Euler, guidance, one picture.
They take turns, so that both meet what else the machine does; what is told is
the median over turns of the seconds of a whole call, text and decode included,
their ratio, and by how much the pictures differ. Needs torch and diffusers.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np
from absl import app, flags, logging

from sdxl_jax import sample
from sdxl_jax.sampling import pipelines
from tests.support import golden_sets

TINY = golden_sets.SETS[0] / 'tiny' / 'base'
# Of a UNet with all of SDXL's parts; the other nets stay tiny.
MIDDLE = dict(
  block_out_channels=(96, 192, 384),
  attention_head_dim=(2, 3, 6),
  transformer_layers_per_block=(1, 2, 4),
  norm_num_groups=32,
)
PROMPT = 'a photo of an astronaut riding a horse'


def write_middle(folder):
  """Writes a diffusers folder; how many parameters its UNet has."""
  import diffusers
  import torch

  torch.manual_seed(0)
  pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(TINY)
  config = dict(pipeline.unet.config) | MIDDLE
  pipeline.unet = diffusers.UNet2DConditionModel.from_config(config)
  pipeline.save_pretrained(folder)
  return pipeline.unet.num_parameters()


def compare(name, folder, side, args):
  """Prints a line for one model and size."""
  import diffusers
  import torch

  theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
  theirs.set_progress_bar_config(disable=True)
  ours = pipelines.load(folder)
  noise = np.random.default_rng(0).normal(size=(1, side // 8, side // 8, 4))
  noise = noise.astype(np.float32)

  def draw_theirs():
    image = theirs(
      PROMPT,
      height=side,
      width=side,
      num_inference_steps=args.steps,
      guidance_scale=8.0,
      latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
      output_type='np',
    ).images
    return 2 * image - 1

  def draw_ours():
    return sample.generate(
      ours,
      [PROMPT],
      size=(side, side),
      steps=args.steps,
      guidance_scale=8.0,
      init_noise=noise,
    )[0]

  spent = {draw_theirs: [], draw_ours: []}
  pictures = [draw() for draw in spent]  # and compiles
  for _ in range(args.turns):
    for draw, seconds in spent.items():
      began = time.perf_counter()
      draw()
      seconds.append((time.perf_counter() - began) / args.steps)
  theirs, ours = map(statistics.median, spent.values())
  apart = np.abs(pictures[0] - pictures[1]).max() * 127.5
  print(
    f'{name}, {side} x {side} px: diffusers {theirs:.3f} s per step, ours '
    f'{ours:.3f}, {theirs / ours:.2f} times as fast; pictures differ by '
    f'{apart:.2f} of 255 at most',
    flush=True,
  )


def main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  args = flags.FLAGS
  compare('tiny', TINY, 128, args)
  with tempfile.TemporaryDirectory() as folder:
    count = write_middle(pathlib.Path(folder))
    for side in (256, 512):
      compare(f'{count / 1e6:.0f} M parameters', folder, side, args)


if __name__ == '__main__':
  flags.DEFINE_integer('steps', 8, 'of each picture')
  flags.DEFINE_integer('turns', 5, 'that each takes')
  app.run(main)
