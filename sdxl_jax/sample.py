"""Sample images: prompt > tokens > context > latents > image.

  python -m sdxl_jax.sample --weights DIR --prompt "..." --output out.png

DIR is a diffusers folder, a single file, an orbax export or a run's workdir.
From Python: sample.generate(sample.load(DIR), ['a fox', 'a pig']).
"""

import functools
import sys
import warnings

import numpy as np
import tqdm
from absl import flags

from sdxl_jax import cli
from sdxl_jax.data import figures, images
from sdxl_jax.programs import program_cache
from sdxl_jax.sampling import (
  command_files,
  drawn_already,
  finiteness,
  generation,
  init_images,
  model_loading,
  pairs,
  phase_clock,
  pipelines,
  prompt_loras,
  request_batches,
  request_checks,
  request_workload,
  sample_flags,
  sample_request,
  sampler_choice,
  watermark,
)
from sdxl_jax.text import prompt_brackets

load, load_pair = pipelines.load, pairs.load_pair
generate = generation.generate
# What to do where the memory of a device is exhausted.
MEMORY = (
  'pass a smaller --batch, --dtype auto, --offload, --tile 256, or a '
  'smaller --height and --width'
)


def sample(located, names, models, noise, args):
  """Samples requests in batches; each image is written as soon as it is done.

  Args:
    located: list of located.Located.
    names: the file of each.
    models: see sample_flags.model_options.
    noise: N(0, 1) of each, [n, h/8, w/8, 4], or None for the seeds' own.
    args: the other flags.
  """
  command_files.check_arrays([request for _, request in located], noise, args)
  mesh, models = model_loading.prepare(models)
  clock = phase_clock.PhaseClock()
  requests, base, refiner = load_for(
    located, models, mesh, args.offload, workload_of(located, mesh, args)
  )
  clock.stop('loading')
  for_grid, latents = [], []
  printed = set()  # masks, by the settings that change them
  size = args.batch or mesh.size
  for batch, kwargs in batches_of(requests, size, noise, base):
    done = len(latents)
    print_mask(batch[0], kwargs['mask'], base, printed)
    zoom = args.zoom or base.zoom
    if args.watermark:
      h, w = kwargs['size']
      watermark.check(np.empty((zoom * h, zoom * w, 3), np.uint8))

    # Sample, then write images and what they were made with.
    files = names[done : done + len(batch)]
    with tqdm.tqdm(unit='step', desc=f'{done} of {len(requests)}') as bar:
      sampled, z = sample_batch(base, refiner, kwargs, files, bar, args)
    for request, name, image in zip(batch, files, sampled):
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
  print(f'wrote {describe_files(names)}')
  print(clock.summary(len(requests)))


def sample_batch(base, refiner, kwargs, files, bar, args):
  """Samples one batch; returns (images, latents).

  Args:
    base, refiner: see load_for.
    kwargs: see sample_request.to_generate_kwargs.
    files: of the images, which an error names.
    bar: of tqdm.
    args: flags of the preview.
  """
  try:
    return generate(
      base,
      **kwargs,
      refiner=refiner,
      watch=make_watch(bar, args.preview),
      watch_every=args.preview_every if args.preview else 1,
    )
  except finiteness.NonFiniteError as error:
    raise ValueError(f'{describe_files(files)}: {error}') from error


def describe_files(names):
  """Returns the first and the last of the files of some images."""
  return names[0] if len(names) == 1 else f'{names[0]} ... {names[-1]}'


def warm_up(located, models, noise, args):
  """Compiles the programs that `sample` would need, and draws no image."""
  mesh, models = model_loading.prepare(models)
  clock = phase_clock.PhaseClock()
  requests, base, refiner = load_for(
    located, models, mesh, args.offload, workload_of(located, mesh, args)
  )
  clock.stop('loading')
  folder = program_cache.folder()
  if folder is None:
    raise ValueError(
      '--warm_up keeps programs for later starts, and no folder keeps them: '
      'name one by --cache_dir'
    )
  # Batches that differ in texts and seeds have the same programs.
  size, kinds = args.batch or mesh.size, []
  for batch, kwargs in batches_of(requests, size, noise, base):
    key = request_batches.batch_key(batch[0], base.tokenize, base.text_chunks)
    if (kind := (key, len(kwargs['prompts']))) not in kinds:
      kinds.append(kind)
      generate(base, **kwargs, refiner=refiner, warm_up=True)
  batches = 'batch' if len(kinds) == 1 else 'batches'
  print(f'{folder} has the programs of {len(kinds)} {batches}')
  print(clock.before_sampling())


def batches_of(requests, size, noise, base):
  """Yields batches of requests, and the arguments of `generate` for each.

  Args:
    requests: from load_for.
    size: of a batch, at most.
    noise: see `sample`.
    base: that samples them.
  """
  done, load_files = 0, init_images.cached_load()
  for batch in request_batches.batches(
    requests, size, base.tokenize, base.text_chunks
  ):
    # Fill the last batch: a program for fewer images would have to be compiled.
    surplus = size - len(batch) if done else 0
    kwargs = sample_request.to_generate_kwargs(
      [*batch, *[batch[-1]] * surplus], base.size, load_files
    )
    if noise is not None:
      rows = noise[done : done + len(batch)]
      kwargs['init_noise'] = [*rows, *[rows[-1]] * surplus]
    yield batch, kwargs
    done += len(batch)


def workload_of(located, mesh, args):
  """Makes (size) -> what is sampled at once, see pairs.choose."""
  return functools.partial(
    request_workload.largest,
    [request for _, request in located],
    batch=-(-min(args.batch or mesh.size, len(located)) // mesh.size),
    previews=args.preview is not None,
  )


def load_for(located, models, mesh, offload, workload_of):
  """Loads the models for some requests, and checks these by them.

  Args:
    located: list of located.Located.
    models: see sample_flags.model_options.
    mesh: of the devices.
    offload: see load_options.LoadOptions.
    workload_of: (size) -> what is sampled at once, see pairs.choose.

  Returns:
    (requests, base, refiner or None).
  """
  # Weights are merged once, with what the prompts name as well.
  loaded = dict(models)
  loras = prompt_loras.common(located, loaded.pop('lora_dir'))
  loaded['lora'] = *models['lora'], *loras
  base, refiner = model_loading.load_models(mesh, loaded, offload, workload_of)
  warn(request_checks.after_loading(located, base, refiner))
  # So that a PNG names the sampler and the tiles it was made with.
  requests = [generation.resolve(base, request) for _, request in located]
  for request in requests:
    sampler_choice.advise(base, request)
  return requests, base, refiner


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
    sys.stderr.write(cli.warning_line(line))


def main(args):
  png = sample_flags.load_png(args)
  located = sample_flags.read(args, png)
  names = sample_flags.file_names(args.output, [r for _, r in located])
  if not args.warm_up:
    command_files.check_outputs(names, args)
  noise = (
    None
    if args.init_noise is None
    else command_files.read_noise(args.init_noise)
  )
  models = sample_flags.model_options(args, png)
  if args.skip_existing:
    missing = drawn_already.find(located, names, models)
    print(f'{len(names) - len(missing)} of {len(names)} images are there')
    if not missing:
      return
    located = [located[i] for i in missing]
    names = [names[i] for i in missing]
    noise = noise if noise is None else noise[missing]
  warn(request_checks.before_loading(located, models))
  with warnings.catch_warnings():  # those that were just printed
    warnings.simplefilter('ignore', prompt_brackets.PromptSyntaxWarning)
    if args.warm_up:
      warm_up(located, models, noise, args)
    else:
      sample(located, names, models, noise, args)


if __name__ == '__main__':
  sample_flags.define()
  flags.adopt_module_key_flags(sample_flags)  # so that --help lists them
  cli.define_cache_dir()
  cli.run(main, memory=MEMORY)
