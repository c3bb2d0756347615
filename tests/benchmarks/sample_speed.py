"""Compares seconds per sampling step with diffusers, on this CPU.

  python -m tests.benchmarks.sample_speed

Both sample the same image in float32 by Euler with guidance, with the tiny
model of the tests and with one of about 100 M parameters (random weights). They
take turns, so that other load on the machine affects both. Prints the median
over turns of the seconds per step, the text encoders and the decoder included,
their ratio, and by how much the images differ. Needs torch and diffusers.
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
# A UNet with all of SDXL's parts; the other nets stay tiny.
MIDDLE = dict(
  block_out_channels=(96, 192, 384),
  attention_head_dim=(2, 3, 6),
  transformer_layers_per_block=(1, 2, 4),
  norm_num_groups=32,
)
PROMPT = 'a photo of an astronaut riding a horse'


def write_middle(folder):
  """Writes a diffusers folder; returns the parameters of its UNet."""
  import diffusers
  import torch

  torch.manual_seed(0)
  pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(TINY)
  config = dict(pipeline.unet.config) | MIDDLE
  pipeline.unet = diffusers.UNet2DConditionModel.from_config(config)
  pipeline.save_pretrained(folder)
  return pipeline.unet.num_parameters()


def make_samplers(folder, side, steps):
  """Returns two functions that sample the same image, diffusers' and ours."""
  import diffusers
  import torch

  reference = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
  reference.set_progress_bar_config(disable=True)
  pipeline = pipelines.load(folder, 'float32', vae_dtype='float32')
  # Both start at the same noise, in NCHW and NHWC.
  noise = np.random.default_rng(0).normal(size=(1, side // 8, side // 8, 4))
  noise = noise.astype(np.float32)

  def sample_reference():
    image = reference(
      PROMPT,
      height=side,
      width=side,
      num_inference_steps=steps,
      guidance_scale=8.0,
      latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
      output_type='np',
    ).images
    return 2 * image - 1

  def sample_ours():
    return sample.generate(
      pipeline,
      [PROMPT],
      size=(side, side),
      steps=steps,
      guidance_scale=8.0,
      init_noise=noise,
    )[0]

  return sample_reference, sample_ours


def compare(name, folder, side, args):
  """Prints a line for one model and size."""
  samplers = make_samplers(folder, side, args.steps)
  images = [generate() for generate in samplers]  # compiles ours
  seconds = [[], []]
  for _ in range(args.turns):
    for generate, measured in zip(samplers, seconds):
      started = time.perf_counter()
      generate()
      measured.append((time.perf_counter() - started) / args.steps)
  reference, ours = map(statistics.median, seconds)
  difference = np.abs(images[0] - images[1]).max() * 127.5
  print(
    f'{name}, {side} x {side} px: diffusers {reference:.3f} s per step, ours '
    f'{ours:.3f}, {reference / ours:.2f} times as fast; images differ by '
    f'{difference:.2f} of 255 at most',
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
  flags.DEFINE_integer('steps', 8, 'steps per image')
  flags.DEFINE_integer('turns', 5, 'turns of each')
  app.run(main)
