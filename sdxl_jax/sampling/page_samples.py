"""Samples what a visitor of the page entered, within bounds.

The page itself is sdxl_jax/web.py; nothing here depends on its library.
"""

import dataclasses
import datetime
import math
import pathlib
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.data import image_formats, images, paper_buckets
from sdxl_jax.sampling import (
  command_files,
  generation,
  image_seeds,
  pipelines,
  prompt_loras,
  request_checks,
  sample_request,
  sampler_choice,
)
from sdxl_jax.sampling.located import Located
from sdxl_jax.sampling.sample_request import Request
from sdxl_jax.weights.lora import lora_file, merge

# Choices of the size, the sampler and the LoRA besides those with a name.
AUTO, OWN, NONE = 'automatic', 'of the model', 'none'
LONGEST = {'prompt': 2000, 'negative_prompt': 2000, 'seed': 24}  # characters
MOST_GUIDANCE, MOST_LORA = 50, 4


class Bounds(NamedTuple):
  """The most that a visitor may enter."""

  steps: int = 150
  images: int = 4
  pixels: int = 16_000_000  # of an image that is uploaded


class Fields(NamedTuple):
  """What a visitor enters, of any type until `read` has checked it."""

  prompt: str
  negative_prompt: str = ''
  size: str = AUTO
  steps: int = 30
  guidance_scale: float = 5.0
  sampler: str = OWN
  seed: str = '-1'
  count: int = 1  # images
  lora: str = NONE
  lora_weight: float = 1.0
  image: np.ndarray | None = None  # uint8 [h, w, 3] to start from
  drawn: np.ndarray | None = None  # uint8 [h, w, 3], white where painted
  mask: str | None = None  # file of an uploaded one
  strength: float | None = None  # None: as of `sample`
  refine: bool = False


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
    folder: that images are written to.
    bounds: of what a visitor enters.
    preview_every: steps between two previews; 0: none.
    merged: {LoRAs: base with them}, of the last request alone.
  """

  base: pipelines.Pipeline
  refiner: pipelines.Pipeline | None
  models: dict[str, Any]
  folder: pathlib.Path
  bounds: Bounds = Bounds()
  preview_every: int = 5
  merged: dict[Any, Any] = dataclasses.field(default_factory=dict)

  @property
  def sizes(self) -> dict[str, tuple[int, int]]:
    """{choice: (height, width) in px} that the base was trained on."""
    side, unit = self.base.size[0], self.base.model.vae.downscale
    paper = paper_buckets.around(side, max(unit, side // 16))
    return {f'{h} x {w}': (h, w) for h, w in self.base.buckets or paper}

  @property
  def loras(self) -> dict[str, pathlib.Path]:
    """{name: file} of the LoRAs below --lora_dir."""
    folder = self.models['lora_dir']
    found = lora_file.names_in(pathlib.Path(folder)) if folder else {}
    return {name: path for path, name in found.items()}


def sample(
  studio: Studio, fields: Fields, warn: Callable[[str], Any]
) -> Iterator[Progress]:
  """Samples the images that a visitor asked for; closing it ends that.

  Args:
    studio: models and bounds.
    fields: that the visitor entered.
    warn: shows a line to the visitor.

  Raises:
    ValueError, OSError: for values out of bounds, and files that do not fit.
  """
  request = read(studio, fields)
  refiner = studio.refiner if fields.refine else None
  # The LoRA that was chosen stands in the PNG beside those of the command.
  models = dict(studio.models)
  if fields.lora != NONE:
    spec = f'{studio.loras[fields.lora]}:{float(fields.lora_weight)!r}'
    models['lora'] = (*models['lora'], spec)
  located = [Located('', request)]
  lines = request_checks.before_loading(located, models)
  base = with_loras(studio, models, located)
  lines += request_checks.after_loading(located, base, refiner)
  for line in lines:
    warn(line)
  request = sampler_choice.resolve(base, request)
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
      path = studio.folder / f'{stamp()}-{one.seed}.png'
      text = sample_request.to_png_metadata(one, models, samples[0].shape)
      pixels = command_files.write_image(
        str(path), samples[0], text, base.zoom, watermarked=False
      )
      show(Progress(f'{path.name}: seed {one.seed}', pixels, path))

  yield from in_thread(work)


def read(studio: Studio, fields: Fields) -> Request:
  """Reads what a visitor entered, and keeps the files in the studio's folder.

  Raises:
    ValueError: for a value out of bounds, whatever the page let through.
  """
  for name, least, most in (
    ('steps', 1, studio.bounds.steps),
    ('count', 1, studio.bounds.images),
    ('guidance_scale', 0, MOST_GUIDANCE),
    ('lora_weight', -MOST_LORA, MOST_LORA),
  ):
    value = getattr(fields, name)
    if not (isinstance(value, (int, float)) and least <= value <= most):
      raise ValueError(f'{name} is {value}; it must be from {least} to {most}')
  for name, most in LONGEST.items():
    if len(getattr(fields, name) or '') > most:
      raise ValueError(f'{name} is longer than {most} characters: shorten it')
  if not (fields.prompt or '').strip():
    raise ValueError('the prompt is empty: describe what to show')
  for name, known in (
    ('size', (AUTO, *studio.sizes)),
    ('lora', (NONE, *studio.loras)),
  ):
    if getattr(fields, name) not in known:
      raise ValueError(
        f'{name} is {getattr(fields, name)!r}, which is not in the list: '
        'choose one of it'
      )
  try:
    seed = int(fields.seed)
  except ValueError:
    seed = fields.seed  # the check names it
  height, width = studio.sizes.get(fields.size, (None, None))
  if height is None and fields.image is not None:
    height, width = nearest(studio.sizes.values(), fields.image.shape)
  return Request(
    prompt=fields.prompt,
    negative_prompt=fields.negative_prompt or None,
    height=height,
    width=width,
    steps=fields.steps,
    guidance_scale=float(fields.guidance_scale),
    sampler=None if fields.sampler == OWN else fields.sampler,
    seed=image_seeds.check(seed),
    strength=fields.strength if fields.image is not None else None,
    **keep_files(studio, fields),
  )


def keep_files(studio: Studio, fields: Fields) -> dict[str, str | None]:
  """Writes {'image', 'mask'} of a visitor to where a PNG can name them.

  Raises:
    ValueError: for two masks, or one that is no image or too large.
  """
  if fields.drawn is not None and fields.mask is not None:
    raise ValueError('a mask is painted and another uploaded: remove one')
  folder, paths = studio.folder / 'inputs', {'image': None, 'mask': None}
  for name, array in (('image', fields.image), ('mask', fields.drawn)):
    if array is not None:
      paths[name] = str(folder / f'{stamp()}-{name}.png')
      images.save(paths[name], array)
  if fields.mask is not None:
    check_upload(fields.mask, studio.bounds.pixels)
    suffix = pathlib.Path(fields.mask).suffix.lower()
    suffix = suffix if suffix in image_formats.SUFFIXES else '.png'
    paths['mask'] = str(folder / f'{stamp()}-mask{suffix}')
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(fields.mask, paths['mask'])
  return paths


def check_upload(file: Any, most: int) -> None:
  """Raises ValueError for an upload that is no image, or has too many pixels.

  Args:
    file: path, or open file.
    most: pixels that it may have.
  """
  try:
    height, width = images.upright_size(file)
  except images.UnreadableImage as error:
    reason = str(error).removeprefix(f'{error.name}: ')
    reason = reason.replace(error.name, 'its name')
    raise ValueError(f'the file that was uploaded is {reason}') from None
  if height * width > most:
    raise ValueError(
      f'the image that was uploaded has {height} x {width} px, more than '
      f'{most:,} in all: scale it down'
    )


def nearest(sizes: Any, shape: tuple[int, ...]) -> tuple[int, int]:
  """Returns the (height, width) whose aspect is nearest to an array's."""
  wanted = math.log(shape[0] / shape[1])
  return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - wanted))


def stamp() -> str:
  """Returns the time, for names of files."""
  return f'{datetime.datetime.now():%Y%m%d-%H%M%S-%f}'


def with_loras(
  studio: Studio,
  models: dict[str, Any],
  located: list[Located],
) -> pipelines.Pipeline:
  """Returns the base with the LoRAs that a visitor chose and named.

  Those of the last request are kept; the memory holds two sets of weights.

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
    params = merge.merge(base.params, loras)
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
