"""Sample images: prompt > tokens > context > latents > image.

  python -m sdxl_jax.sample --weights DIR --prompt "..." --output out.png

DIR is a diffusers folder, a single file, an orbax export or a run's workdir.
From Python: sample.generate(sample.load(DIR), ['a fox', 'a pig']).
"""

import sys
import warnings

import jax
import numpy as np
import tqdm
from absl import flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading
from sdxl_jax.data import figures, images
from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import (
  command_files,
  generation,
  init_images,
  model_flags,
  phase_clock,
  pipelines,
  prompt_loras,
  request_batches,
  request_checks,
  sample_flags,
  sample_request,
  sampler_choice,
  watermark,
)
from sdxl_jax.text import prompt_brackets
from sdxl_jax.weights import formats, read_options, textual_inversion
from sdxl_jax.weights.lora import lora_file

load, generate = pipelines.load, generation.generate
# What to do where the memory of a device is exhausted.
MEMORY = (
  'pass a smaller --batch, --dtype bfloat16, --offload, --tile 256, or a '
  'smaller --height and --width'
)


def sample(located, names, models, noise, args):
  """Samples requests in batches; each image is written as soon as it is done.

  Args:
    located: list of request_checks.Located.
    names: the file of each.
    models: see sample_flags.model_options.
    noise: N(0, 1) of each, [n, h/8, w/8, 4], or None for the seeds' own.
    args: the other flags.
  """
  command_files.check_arrays([request for _, request in located], noise, args)
  mesh = device_mesh.make_mesh(devices=jax.local_devices())
  clock = phase_clock.PhaseClock()
  requests, base, refiner = load_for(located, models, mesh, args.offload)
  clock.stop('loading')
  size, for_grid, latents = args.batch or mesh.size, [], []
  printed = set()  # masks, by the settings that change them
  for batch in request_batches.batches(
    requests, size, base.tokenize, base.text_chunks
  ):
    done = len(latents)
    # Fill the last batch: a program for fewer images would have to be compiled.
    surplus = size - len(batch) if done else 0
    kwargs = sample_request.to_generate_kwargs(
      [*batch, *[batch[-1]] * surplus], base.size
    )
    if noise is not None:
      rows = noise[done : done + len(batch)]
      kwargs['init_noise'] = [*rows, *[rows[-1]] * surplus]
    print_mask(batch[0], kwargs['mask'], base, printed)
    zoom = args.zoom or base.zoom
    if args.watermark:
      h, w = kwargs['size']
      watermark.check(np.empty((zoom * h, zoom * w, 3), np.uint8))

    # Sample, then write images and what they were made with.
    with tqdm.tqdm(unit='step', desc=f'{done} of {len(requests)}') as bar:
      sampled, z = generate(
        base,
        **kwargs,
        refiner=refiner,
        watch=make_watch(bar, args.preview),
        watch_every=args.preview_every if args.preview else 1,
      )
    for request, name, image in zip(batch, names[done:], sampled):
      text = sample_request.to_png_metadata(request, models, image.shape)
      image = command_files.write_image(name, image, text, zoom, args.watermark)
      if args.grid:
        for_grid.append(image)
    latents.extend(z[: len(batch)])
    clock.stop('sampling')
  if args.grid:
    columns = round(len(for_grid) ** 0.5)
    images.save(args.grid, figures.grid(for_grid, columns))
  if args.save_latents:
    np.save(args.save_latents, np.stack(latents))
  last = f' ... {names[-1]}' if len(names) > 1 else ''
  print(f'wrote {names[0]}{last}')
  print(clock.summary(len(requests)))


def load_for(located, models, mesh, offload):
  """Loads the models for some requests, and checks these by them.

  Args:
    located: list of request_checks.Located.
    models: see sample_flags.model_options.
    mesh: of the devices.
    offload: whether idle nets wait in the host's memory.

  Returns:
    (requests, base, refiner or None).
  """
  # Weights are merged once, with what the prompts name as well.
  tags = prompt_loras.common(located, models['lora_dir'])
  loaded = models | {'lora': (*models['lora'], *tags)}
  base, refiner = load_models(mesh, loaded, offload)
  warn(request_checks.after_loading(located, base, refiner))
  # So that a PNG names the sampler it was made with.
  requests = [sampler_choice.resolve(base, request) for _, request in located]
  for request in requests:
    sampler_choice.advise(base, request)
  return requests, base, refiner


def load_models(mesh, models, offload):
  """Loads (base, refiner or None); a mesh of one device is left out."""
  mesh = mesh if mesh.size > 1 else None
  options = dict(models)
  weights, refiner = options.pop('weights'), options.pop('refiner')
  # Find faults in all paths before one of them takes minutes to load.
  # What is on the Hugging Face hub is downloaded now.
  vae, reading = options['vae'], read_options.ReadOptions(options['variant'])
  loading.check_source(weights, reading, pipelines.needed_nets(vae))
  for other, nets in ((refiner, None), (vae, ('vae',))):
    if other is not None:
      loading.check_source(other, formats.for_other(other, reading), nets)
  for spec in prompt_loras.resolve(options['lora'], options['lora_dir']):
    lora_file.find(lora_file.parse(spec)[0])
  for spec in options['embedding']:
    textual_inversion.find(textual_inversion.parse(spec)[1])
  base = load_expert(weights, mesh, options | {'offload': offload})
  if refiner is None:
    return base, None
  shared = {name: options[name] for name in model_flags.REFINER_OPTIONS}
  variant = shared['variant']
  if variant and not formats.has_variant(refiner, variant):
    shared['variant'] = None
  # Only a workdir has averages to choose from.
  if not formats.is_published(refiner):
    shared['average'] = options['average']
  return base, load_expert(refiner, mesh, shared | {'offload': offload})


def load_expert(weights, mesh, options):
  """Loads a base or a refiner, and prints how its weights were read.

  Args:
    weights: path of it.
    mesh: whose devices share a batch, or None.
    options: {flag: value} of model_flags.MODEL_OPTIONS, and offload.
  """
  print(f'loading {weights}', flush=True)
  names = model_flags.LOAD_OPTIONS
  settings = {names.get(name, name): x for name, x in options.items()}
  pipeline = pipelines.load(weights, mesh=mesh, **settings)
  for note in pipeline.notes:
    print(f'note: {note}')
  return pipeline


def print_mask(request, mask, base, printed):
  """Prints once for each mask what share of the image it repaints."""
  key = request.mask, request.mask_threshold, request.height, request.width
  if mask is None or key in printed:
    return
  printed.add(key)
  cell, threshold = base.model.vae.downscale, request.mask_threshold
  print(init_images.describe_mask(request.mask, mask, cell, threshold))


def make_watch(bar, preview):
  """Makes watch(done, total, preview), which moves a bar and writes a PNG."""

  def watch(done, total, make_preview):
    bar.total = total
    bar.update(done - bar.n)
    if preview and done < total:
      previews = make_preview()
      columns = round(len(previews) ** 0.5)
      images.save(preview, figures.grid(previews, columns))

  return watch


def warn(lines):
  """Prints what is read otherwise than it may be meant."""
  for line in lines:
    print(f'warning: {line}', file=sys.stderr)


def main(args):
  located = sample_flags.read(args)
  names = sample_flags.file_names(args.output, [r for _, r in located])
  command_files.check_outputs(names, args)
  noise = (
    None
    if args.init_noise is None
    else command_files.read_noise(args.init_noise)
  )
  models = sample_flags.model_options(args)
  warn(request_checks.before_loading(located, models))
  with warnings.catch_warnings():  # those that were just printed
    warnings.simplefilter('ignore', prompt_brackets.PromptSyntaxWarning)
    sample(located, names, models, noise, args)


if __name__ == '__main__':
  sample_flags.define()
  flags.adopt_module_key_flags(sample_flags)  # so that --help lists them
  cli.run(main, memory=MEMORY)
