"""Draw pictures: prompt > tokens > context > latents > image.

  python -m sdxl_jax.sample --weights DIR --prompt "..." --output out.png

DIR is a diffusers folder, a single file, or the workdir of a run. From Python:
sample.generate(sample.load(DIR), ['a fox', 'a pig']).
"""

import os
import pathlib
import time

import jax
import numpy as np
import tqdm
from absl import flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading
from sdxl_jax.data import images
from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import (
  generation,
  pipelines,
  sample_flags,
  sample_request,
  watermark,
)
from sdxl_jax.weights import formats
from sdxl_jax.weights.lora import lora_file

load, generate = pipelines.load, generation.generate


def draw(asked, names, models, noise, args):
  """Draws Requests in batches, each picture written as soon as it is done.

  Args:
    asked: list of requests.Request.
    names: the file of each.
    models: see command_line.models.
    noise: N(0, 1) of each, [n, h/8, w/8, 4], or None for the seeds' own.
    args: the other flags.
  """
  check_arrays(asked, noise, args)
  mesh = device_mesh.make_mesh(devices=jax.local_devices())
  clock = Clock()
  base, refiner = load_models(mesh, **models, offload=args.offload)
  clock.stop('loading')
  size, kept, latents = args.batch or mesh.size, [], []
  for batch in sample_request.batches(asked, size, base.tokenize):
    done = len(latents)
    # A program for fewer pictures would take longer to compile than these.
    surplus = size - len(batch) if done else 0
    settings = sample_request.arguments(
      [*batch, *[batch[-1]] * surplus], base.size
    )
    if args.watermark:
      watermark.check(np.empty((*settings['size'], 3), np.uint8))
    if noise is not None:
      ours = noise[done : done + len(batch)]
      settings['init_noise'] = [*ours, *[ours[-1]] * surplus]
    with tqdm.tqdm(unit='step', desc=f'{done} of {len(asked)}') as bar:
      drawn, z = generate(
        base,
        **settings,
        refiner=refiner,
        watch=watcher(bar, args.preview),
        watch_every=args.preview_every if args.preview else 1,
      )
    pictures = images.to_uint8(drawn[: len(batch)])
    if args.watermark:
      pictures = [watermark.embed(picture) for picture in pictures]
    for request, name, picture in zip(batch, names[done:], pictures):
      text = sample_request.to_text(request, models, picture.shape)
      images.save(name, picture, text)
    kept.extend(pictures if args.grid else [])
    latents.extend(z[: len(batch)])
    clock.stop('drawing')
  if args.grid:
    images.save(args.grid, images.grid(kept, columns=round(len(kept) ** 0.5)))
  if args.save_latents:
    np.save(args.save_latents, np.stack(latents))
  print(f'wrote {names[0]}' + f' ... {names[-1]}' * (len(names) > 1))
  print(clock.summary(len(asked)))


def load_models(mesh, weights, refiner, average, lora, **settings):
  """(base, refiner or None); a part of the mesh's devices where it is one."""
  mesh = mesh if mesh.size > 1 else None
  for folder in filter(None, (weights, refiner)):
    loading.check_source(folder)  # before one of them takes minutes
  for spec in lora:
    lora_file.find(lora_file.parse(spec)[0])
  print(f'loading {weights}', flush=True)
  base = pipelines.load(
    weights, average=average, mesh=mesh, loras=lora, **settings
  )
  if refiner is None:
    return base, None
  print(f'loading {refiner}', flush=True)
  # Only a workdir has averages to choose from.
  average = 'ema' if formats.is_published(refiner) else average
  return base, pipelines.load(refiner, average=average, mesh=mesh, **settings)


def watcher(bar, preview):
  """watch(done, total, preview) that moves a bar and writes a picture."""

  def watch(done, total, show):
    bar.total = total
    bar.update(done - bar.n)
    if preview and done < total:
      pictures = show()
      columns = round(len(pictures) ** 0.5)
      images.save(preview, images.grid(pictures, columns))

  return watch


class Clock:
  """Seconds by what they were spent for; compiling is told apart."""

  def __init__(self):
    self.spent, self.compiling = {}, 0.0
    self.last = self.now()
    jax.monitoring.register_event_duration_secs_listener(self.listen)

  def listen(self, event, seconds, **details):
    del details
    if event.endswith('backend_compile_duration'):
      self.compiling += seconds

  def now(self):
    """Seconds that nothing was compiled in."""
    return time.monotonic() - self.compiling

  def stop(self, what):
    now = self.now()
    self.spent[what] = self.spent.get(what, 0.0) + now - self.last
    self.last = now

  def summary(self, pictures):
    drawing = self.spent['drawing']
    return (
      f'loading {self.spent["loading"]:.1f} s, compiling {self.compiling:.1f} '
      f's, drawing {drawing:.1f} s: {drawing / pictures:.2f} s a picture'
    )


def check_arrays(asked, noise, args):
  """Raises ValueError for what one array of all pictures cannot hold."""
  if noise is not None and len(noise) != len(asked):
    raise ValueError(
      f'--init_noise={args.init_noise} has noise for {len(noise)} pictures, '
      f'and {len(asked)} are asked for: give one each'
    )
  sizes = {(request.height, request.width, request.image) for request in asked}
  if args.save_latents and len(sizes) > 1:
    raise ValueError(
      f'--save_latents={args.save_latents} is one array, and the pictures may '
      'be of several sizes: draw them by one command for each size'
    )


def check_writable(path):
  """Raises OSError before anything is drawn that could not be kept."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(path.parent, os.W_OK) and not path.is_dir()
  except OSError:
    writable = False
  if not writable:
    raise OSError(f'{path} cannot be written: choose another --output')


def main(args):
  asked = sample_flags.read(args)
  names = sample_flags.names(args.output, asked)
  files = *names, args.grid, args.preview, args.save_latents
  for path in filter(None, files):
    check_writable(pathlib.Path(path))
  noise = None if args.init_noise is None else np.load(args.init_noise)
  draw(asked, names, sample_flags.models(args), noise, args)


if __name__ == '__main__':
  sample_flags.define()
  flags.adopt_module_key_flags(sample_flags)  # so that --help lists them
  cli.run(main)
