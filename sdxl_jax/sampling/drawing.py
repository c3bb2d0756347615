"""Draws the images of many requests, and writes each of them to its file."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from sdxl_jax.data import figures, images
from sdxl_jax.programs import program_cache
from sdxl_jax.sampling import (
  command_files,
  finiteness,
  generation,
  init_images,
  model_loading,
  phase_clock,
  pipelines,
  prompt_loras,
  request_batches,
  request_checks,
  request_workload,
  sample_request,
  sampler_choice,
  watermark,
)
from sdxl_jax.sampling.located import Located
from sdxl_jax.sampling.sample_request import Request


@dataclasses.dataclass(frozen=True)
class Options:
  """How images are drawn, and what is written beside them.

  Attributes:
    batch: images at once; None: one per device.
    offload: see load_options.LoadOptions.
    zoom: factor by which pixels are repeated; None: the model's own.
    watermark: whether to embed SDXL's invisible watermark.
    grid: PNG of all images.
    save_latents: .npy of all latents.
    preview: PNG that is written while sampling, after `preview_every` steps.
    warn: prints what is read otherwise than it may be meant.
  """

  batch: int | None = None
  offload: bool | str = 'auto'
  zoom: int | None = None
  watermark: bool = False
  grid: str | None = None
  save_latents: str | None = None
  preview: str | None = None
  preview_every: int = 5
  warn: Callable[[str], Any] = print


DEFAULT = Options()


def draw(
  located: Sequence[Located],
  names: Sequence[str],
  models: dict[str, Any],
  noise: np.ndarray | None = None,
  options: Options = DEFAULT,
) -> None:
  """Samples requests in batches; each image is written as soon as it is done.

  Args:
    located: the requests.
    names: the file of each.
    models: {flag: value} of model_flags.MODEL_OPTIONS.
    noise: N(0, 1) of each, [n, h/8, w/8, 4], or None for the seeds' own.
    options: how, and what is written beside the images.

  Raises:
    ValueError, OSError: for requests, files or weights that do not fit.
  """
  mesh, models = model_loading.prepare(models)
  clock = phase_clock.PhaseClock()
  requests, base, refiner = load_for(located, models, mesh, options)
  clock.stop('loading')
  for_grid, latents = [], []
  printed = set()  # masks, by the settings that change them
  size = options.batch or mesh.size
  for batch, kwargs in batches_of(requests, size, noise, base):
    done = len(latents)
    print_mask(batch[0], kwargs['mask'], base, printed)
    zoom = options.zoom or base.zoom
    if options.watermark:
      h, w = kwargs['size']
      watermark.check(np.empty((zoom * h, zoom * w, 3), np.uint8))

    # Sample, then write images and what they were made with.
    files = names[done : done + len(batch)]
    with tqdm.tqdm(unit='step', desc=f'{done} of {len(requests)}') as bar:
      sampled, z = sample_batch(base, refiner, kwargs, files, bar, options)
    for request, name, image in zip(batch, files, sampled):
      text = sample_request.to_png_metadata(request, models, image.shape)
      image = command_files.write_image(
        name, image, text, zoom, options.watermark
      )
      if options.grid:
        for_grid.append(image)
    latents.extend(z[: len(batch)])
    clock.stop('sampling')
  if options.grid:
    columns = round(len(for_grid) ** 0.5)
    images.save(options.grid, figures.grid(for_grid, columns))
  if options.save_latents:
    np.save(options.save_latents, np.stack(latents))
  print(f'wrote {describe_files(names)}')
  print(clock.summary(len(requests)))


def sample_batch(
  base: pipelines.Pipeline,
  refiner: pipelines.Pipeline | None,
  kwargs: dict[str, Any],
  files: Sequence[str],
  bar: tqdm.tqdm,
  options: Options,
) -> tuple[np.ndarray, np.ndarray]:
  """Samples one batch; returns (images, latents).

  Args:
    base, refiner: see load_for.
    kwargs: see sample_request.to_generate_kwargs.
    files: of the images, which an error names.
    bar: of the steps.
    options: of the preview.
  """
  try:
    return generation.generate(
      base,
      **kwargs,
      refiner=refiner,
      watch=make_watch(bar, options.preview),
      watch_every=options.preview_every if options.preview else 1,
    )
  except finiteness.NonFiniteError as error:
    raise ValueError(f'{describe_files(files)}: {error}') from error


def describe_files(names: Sequence[str]) -> str:
  """Returns the first and the last of the files of some images."""
  return names[0] if len(names) == 1 else f'{names[0]} ... {names[-1]}'


def warm_up(
  located: Sequence[Located],
  models: dict[str, Any],
  noise: np.ndarray | None = None,
  options: Options = DEFAULT,
) -> None:
  """Compiles the programs that `draw` would need, and draws no image."""
  mesh, models = model_loading.prepare(models)
  clock = phase_clock.PhaseClock()
  requests, base, refiner = load_for(located, models, mesh, options)
  clock.stop('loading')
  folder = program_cache.folder()
  if folder is None:
    raise ValueError(
      '--warm_up keeps programs for later starts, and no folder keeps them: '
      'name one by --cache_dir'
    )
  # Batches that differ in texts and seeds have the same programs.
  size, kinds = options.batch or mesh.size, []
  for batch, kwargs in batches_of(requests, size, noise, base):
    key = request_batches.batch_key(batch[0], base.tokenize, base.text_chunks)
    if (kind := (key, len(kwargs['prompts']))) not in kinds:
      kinds.append(kind)
      generation.generate(base, **kwargs, refiner=refiner, warm_up=True)
  batches = 'batch' if len(kinds) == 1 else 'batches'
  print(f'{folder} has the programs of {len(kinds)} {batches}')
  print(clock.before_sampling())


def batches_of(
  requests: Sequence[Request],
  size: int,
  noise: np.ndarray | None,
  base: Any,
) -> Iterator[tuple[list[Request], dict[str, Any]]]:
  """Yields batches of requests, and the arguments of `generate` for each.

  Args:
    requests: from load_for.
    size: of a batch, at most.
    noise: see `draw`.
    base: Pipeline that samples them; its tokenizer and size are used.
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


def workload_of(
  located: Sequence[Located], mesh: jax.sharding.Mesh, options: Options
) -> Callable[..., Any]:
  """Makes (size) -> what is sampled at once, see pairs.choose."""
  return functools.partial(
    request_workload.largest,
    [request for _, request in located],
    batch=-(-min(options.batch or mesh.size, len(located)) // mesh.size),
    previews=options.preview is not None,
  )


def load_for(
  located: Sequence[Located],
  models: dict[str, Any],
  mesh: jax.sharding.Mesh,
  options: Options,
) -> tuple[list[Request], pipelines.Pipeline, pipelines.Pipeline | None]:
  """Loads (requests, base, refiner or None), the requests checked by them."""
  # Weights are merged once, with what the prompts name as well.
  loaded = dict(models)
  loras = prompt_loras.common(located, loaded.pop('lora_dir'))
  loaded['lora'] = *models['lora'], *loras
  workload = workload_of(located, mesh, options)
  base, refiner = model_loading.load_models(
    mesh, loaded, options.offload, workload
  )
  for line in request_checks.after_loading(located, base, refiner):
    options.warn(line)
  # So that a PNG names the sampler and the tiles it was made with.
  requests = [generation.resolve(base, request) for _, request in located]
  for request in requests:
    sampler_choice.advise(base, request)
  return requests, base, refiner


def print_mask(
  request: Request,
  mask: np.ndarray | None,
  base: Any,
  printed: set[Any],
) -> None:
  """Prints once for each mask what share of the image it repaints."""
  key = request.mask, request.mask_threshold, request.height, request.width
  if mask is None or key in printed:
    return
  printed.add(key)
  cell, threshold = base.model.vae.downscale, request.mask_threshold
  print(init_images.describe_mask(request.mask, mask, cell, threshold))


def make_watch(
  bar: tqdm.tqdm, preview: str | None
) -> Callable[[int, int, Callable[[], Any]], None]:
  """Makes watch(done, total, preview), which moves a bar and writes a PNG."""

  def watch(done, total, make_preview):
    bar.total = total
    bar.update(done - bar.n)
    if preview and done < total:
      previews = make_preview()
      columns = round(len(previews) ** 0.5)
      images.save(preview, figures.grid(previews, columns))

  return watch
