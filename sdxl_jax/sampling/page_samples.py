"""Samples what a visitor of the page entered, within bounds.

The page itself is sdxl_jax/web.py; nothing here depends on its library.
"""

import dataclasses
import pathlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.data import images, paper_buckets
from sdxl_jax.sampling import (
  command_files,
  generation,
  image_seeds,
  page_request,
  pipelines,
  prompt_loras,
  request_checks,
  sample_request,
)
from sdxl_jax.sampling.located import Located
from sdxl_jax.weights.lora import lora_file, merge


class Progress(NamedTuple):
  """What the visitor is shown next."""

  line: str
  pixels: np.ndarray | None = None  # uint8 [h, w, 3] of a preview or an image
  file: pathlib.Path | None = None  # of an image that is done


@dataclasses.dataclass(frozen=True)
class Studio:
  """What the page samples with.

  Attributes:
    base: pipeline of the weights.
    refiner: that takes over where a visitor wants it, or None.
    models: {flag: value} of the models, for the text of PNGs.
    form: what a visitor may enter.
    preview_every: steps between two previews; 0: none.
    merged: {LoRAs: base with them}, of the last request alone.
  """

  base: pipelines.Pipeline
  refiner: pipelines.Pipeline | None
  models: dict[str, Any]
  form: page_request.Form
  preview_every: int = 5
  merged: dict[Any, Any] = dataclasses.field(default_factory=dict)


def make_form(
  base: pipelines.Pipeline, models: dict[str, Any], **bounds: Any
) -> page_request.Form:
  """Makes the Form of a base.

  Args:
    base: whose sizes may be chosen: those of its run, or the paper's.
    models: {flag: value}, with the folder of the LoRAs.
    **bounds: the other fields of the form.
  """
  side, unit = base.size[0], base.model.vae.downscale
  sizes = base.buckets or paper_buckets.around(side, max(unit, side // 16))
  folder = models['lora_dir']
  loras = lora_file.names_in(pathlib.Path(folder)) if folder else {}
  return page_request.Form(
    sizes={f'{h} x {w}': (h, w) for h, w in sizes},
    loras={name: path for path, name in loras.items()},
    **bounds,
  )


def sample(
  studio: Studio, fields: page_request.Fields, warn: Callable[[str], Any]
) -> Iterator[Progress]:
  """Samples the images that a visitor asked for; closing it ends that.

  Args:
    studio: models and bounds.
    fields: that the visitor entered.
    warn: shows a line to the visitor.

  Raises:
    ValueError, OSError: for values out of bounds, and files that do not fit.
  """
  request = page_request.read(studio.form, fields)
  refiner = studio.refiner if fields.refine else None
  # The PNG holds what is used: the LoRA too, and no refiner that is not.
  models = dict(studio.models)
  models['refiner'] = models['refiner'] if refiner else None
  if fields.lora != page_request.NONE:
    spec = f'{studio.form.loras[fields.lora]}:{float(fields.lora_weight)!r}'
    models['lora'] = (*models['lora'], spec)
  located = [Located('', request)]
  lines = request_checks.before_loading(located, models)
  base = with_loras(studio, models, located)
  lines += request_checks.after_loading(located, base, refiner)
  for line in lines:
    warn(line)
  request = generation.resolve(base, request)
  requests = [
    dataclasses.replace(request, seed=seed)
    for seed in image_seeds.repeat(request.seed, fields.count)
  ]

  def work(show):
    for i, one in enumerate(requests):
      begin = f'image {i + 1} of {len(requests)}'
      show(Progress(f'{begin}: starting'))
      watch = make_watch(show, begin, studio.preview_every)
      kwargs = sample_request.to_generate_kwargs([one], base.size)
      samples, _ = generation.generate(
        base, **kwargs, refiner=refiner, watch=watch
      )
      name = f'{page_request.stamp()}-{one.seed}.png'
      path = studio.form.folder / name
      text = sample_request.to_png_metadata(one, models, samples[0].shape)
      pixels = command_files.write_image(
        str(path), samples[0], text, base.zoom, watermarked=False
      )
      show(Progress(f'{name}: seed {one.seed}', pixels, path))

  yield from in_thread(work)


def with_loras(
  studio: Studio,
  models: dict[str, Any],
  located: list[Located],
) -> pipelines.Pipeline:
  """Returns the base with the LoRAs that a visitor chose and named.

  Those of the last request are kept; what they change is in memory twice.

  Args:
    studio: its base has the LoRAs of the command.
    models: {flag: value}, with the LoRA that was chosen.
    located: the request, whose prompt may name more.
  """
  named = prompt_loras.common(located, models['lora_dir'])
  specs = (*models['lora'][len(studio.models['lora']) :], *named)
  if specs and specs not in studio.merged:
    studio.merged.clear()
    base, skip = studio.base, models['skip_unsupported']
    loras = lora_file.load_all(base.params, specs, skip)
    params = merge.merge(merge.with_copies(base.params, loras), loras)
    studio.merged[specs] = dataclasses.replace(base, params=params)
  return studio.merged[specs] if specs else studio.base


def make_watch(
  show: Callable[[Progress], None], begin: str, every: int
) -> Callable[[int, int, Callable[[], Any]], None]:
  """Makes watch(done, total, preview) of `generate`, which shows progress.

  Args:
    show: takes a Progress.
    begin: of each line.
    every: steps between two previews; 0: none.
  """

  def watch(done, total, preview):
    wanted = every and done % every == 0 and done < total
    pixels = images.to_uint8(preview()[0]) if wanted else None
    show(Progress(f'{begin}: step {done} of {total}', pixels))

  return watch


class Stopped(Exception):
  """Raised in the thread that samples, where nobody waits any more."""


def in_thread(
  work: Callable[[Callable[[Progress], None]], None],
) -> Iterator[Progress]:
  """Yields what work(show) shows while it runs in a thread.

  An error of it is raised here. Closing stops the work where it shows more.
  """
  shown, stopped = queue.Queue(), threading.Event()

  def show(progress):
    if stopped.is_set():
      raise Stopped
    shown.put(progress)

  def run():
    try:
      work(show)
      shown.put(None)
    except BaseException as error:
      shown.put(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  try:
    while (item := shown.get()) is not None:
      if isinstance(item, BaseException):
        raise item
      yield item
  finally:
    stopped.set()
    thread.join()
