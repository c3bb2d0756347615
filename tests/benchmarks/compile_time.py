"""Compares what the first image costs to compile with torch.compile, on a CPU.

  python -m tests.benchmarks.compile_time

The UNet of 105 M parameters of sample_speed, one image with guidance: its first
step, and the second, ours as `sample` compiles it and diffusers' by
torch.compile (inductor), each in new processes with nothing in any cache, in
turns. Prints medians over the turns of the seconds of CPU, those of child
processes included, and by the clock, that the first step takes beyond the
second. Needs torch, diffusers and a C++ compiler; three minutes a turn.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

FLAGS = flags.FLAGS


def cpu_seconds():
  """Returns the seconds of CPU of this process and of its children."""
  total = 0.0
  for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
    usage = resource.getrusage(who)
    total += usage.ru_utime + usage.ru_stime
  return total


def measure(step):
  """Prints the seconds that the first call of `step` takes beyond another."""
  spent = []
  for _ in range(2):
    started, cpu = time.monotonic(), cpu_seconds()
    step()
    spent.append((time.monotonic() - started, cpu_seconds() - cpu))
  (first, first_cpu), (second, second_cpu) = spent
  print(json.dumps([first_cpu - second_cpu, first - second]), flush=True)


def compile_ours(folder, side):
  """Measures a sample of one step, its nets beside the UNet tiny."""
  from sdxl_jax.sampling import generation, pipelines

  pipeline = pipelines.load(folder, 'float32', vae_dtype='float32')
  measure(
    lambda: generation.generate(
      pipeline, ['a fox'], size=(side, side), steps=1, guidance_scale=8.0
    )
  )


def compile_torch(folder, side):
  """Measures the same in diffusers, the UNet by torch.compile."""
  import diffusers
  import torch

  pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
  pipeline.set_progress_bar_config(disable=True)
  pipeline.unet = torch.compile(pipeline.unet)

  def step():
    with torch.no_grad():
      pipeline(
        'a fox',
        height=side,
        width=side,
        num_inference_steps=1,
        guidance_scale=8.0,
      )

  measure(step)


KINDS = {'ours': compile_ours, 'torch.compile': compile_torch}


def start(kind, folder):
  """Runs one of KINDS in a new process; returns (CPU seconds, seconds)."""
  with tempfile.TemporaryDirectory() as caches:
    environment = os.environ | {
      'JAX_ENABLE_COMPILATION_CACHE': 'false',
      'TORCHINDUCTOR_CACHE_DIR': caches,
      'TORCHINDUCTOR_FX_GRAPH_CACHE': '0',
    }
    command = [sys.executable, '-m', 'tests.benchmarks.compile_time']
    command += [f'--kind={kind}', f'--folder={folder}', f'--side={FLAGS.side}']
    done = subprocess.run(
      command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
  return json.loads(done.stdout.splitlines()[-1])


def main(argv):
  del argv
  if FLAGS.kind:
    KINDS[FLAGS.kind](FLAGS.folder, FLAGS.side)
    return
  from tests.benchmarks import sample_speed

  spent = {kind: [] for kind in KINDS}
  with tempfile.TemporaryDirectory() as folder:
    count = sample_speed.write_middle(folder)
    print(f'{count / 1e6:.0f} M parameters, {FLAGS.side} px', flush=True)
    for _ in range(FLAGS.turns):
      for kind, measured in spent.items():
        measured.append(start(kind, folder))
  for kind, measured in spent.items():
    cpu, seconds = map(statistics.median, zip(*measured))
    print(f'{kind}: {cpu:.1f} s of CPU, {seconds:.1f} s by the clock')


if __name__ == '__main__':
  flags.DEFINE_enum('kind', None, [*KINDS], 'measure in this process')
  flags.DEFINE_string('folder', None, 'of the weights, for --kind')
  flags.DEFINE_integer('side', 256, 'of the image, px')
  flags.DEFINE_integer('turns', 3, 'new processes of each')
  app.run(main)
