"""What a visitor of the page enters, and its bounds."""

import datetime
import math
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from sdxl_jax.data import image_formats, images
from sdxl_jax.sampling import image_seeds
from sdxl_jax.sampling.sample_request import Request

# Choices of the size, the sampler and the LoRA besides those with a name.
AUTO, OWN, NONE = 'automatic', 'of the model', 'none'
# Characters.
LONGEST = {'prompt': 2000, 'negative_prompt': 2000, 'seed': 24, 'strength': 24}
MOST_GUIDANCE, MOST_LORA = 50, 4


class Form(NamedTuple):
  """The choices of a visitor, and the most that he may enter."""

  folder: pathlib.Path  # that images are written to
  sizes: Mapping[str, tuple[int, int]]  # {choice: (height, width) in px}
  loras: Mapping[str, pathlib.Path]  # {choice: file}
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
  strength: str = ''  # a number; '': as of `sample`
  refine: bool = False


def read(form: Form, fields: Fields) -> Request:
  """Reads what a visitor entered, and keeps its images in the form's folder.

  Raises:
    ValueError: for a value out of bounds, whatever the page let through.
  """
  for name, kind, least, most in (
    ('steps', int, 1, form.steps),
    ('count', int, 1, form.images),
    ('guidance_scale', int | float, 0, MOST_GUIDANCE),
    ('lora_weight', int | float, -MOST_LORA, MOST_LORA),
  ):
    value = getattr(fields, name)
    if not (isinstance(value, kind) and least <= value <= most):
      noun = 'whole number' if kind is int else 'number'
      raise ValueError(
        f'{name} is {value}; it must be a {noun} from {least} to {most}'
      )
  for name, most in LONGEST.items():
    if len(getattr(fields, name) or '') > most:
      raise ValueError(f'{name} is longer than {most} characters: shorten it')
  if not (fields.prompt or '').strip():
    raise ValueError('the prompt is empty: describe what to show')
  for name, known in (
    ('size', (AUTO, *form.sizes)),
    ('lora', (NONE, *form.loras)),
  ):
    if getattr(fields, name) not in known:
      raise ValueError(
        f'{name} is {getattr(fields, name)!r}, which is not in the list: '
        'choose one of it'
      )
  try:
    seed = int(str(fields.seed))
  except ValueError:
    seed = fields.seed  # the check names it
  height, width = form.sizes.get(fields.size, (None, None))
  if height is None and fields.image is not None:
    height, width = nearest(form.sizes.values(), fields.image.shape)
  return Request(
    prompt=fields.prompt,
    negative_prompt=fields.negative_prompt or None,
    height=height,
    width=width,
    steps=fields.steps,
    guidance_scale=float(fields.guidance_scale),
    sampler=None if fields.sampler == OWN else fields.sampler,
    seed=image_seeds.check(seed),
    strength=read_strength(fields.strength),
    **keep_files(form, fields),
  )


def read_strength(text: str | None) -> float | None:
  """Returns a number, or None for no text."""
  try:
    return float(text) if text else None
  except ValueError:
    raise ValueError(
      f'strength is {text!r}; it must be a number from 0 to 1, or empty'
    ) from None


def keep_files(form: Form, fields: Fields) -> dict[str, str | None]:
  """Writes {'image', 'mask'} of a visitor to where a PNG can name them.

  Raises:
    ValueError: for two masks, or one that is no image or too large.
  """
  if fields.drawn is not None and fields.mask is not None:
    raise ValueError('a mask is painted and another uploaded: remove one')
  folder, paths = form.folder / 'inputs', {'image': None, 'mask': None}
  for name, array in (('image', fields.image), ('mask', fields.drawn)):
    if array is not None:
      paths[name] = str(folder / f'{stamp()}-{name}.png')
      images.save(paths[name], array)
  if fields.mask is not None:
    check_upload(fields.mask, form.pixels)
    suffix = pathlib.Path(fields.mask).suffix.lower()
    suffix = suffix if suffix in image_formats.SUFFIXES else '.png'
    paths['mask'] = str(folder / f'{stamp()}-mask{suffix}')
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(fields.mask, paths['mask'])
  return paths


def check_upload(path: str, most: int) -> None:
  """Raises ValueError for an upload that is no image, or has too many pixels.

  Args:
    path: of the upload.
    most: pixels that it may have.
  """
  with open(path, 'rb') as file:
    try:
      height, width = images.upright_size(file)
    except images.UnreadableImage as error:
      reason = str(error).removeprefix(f'{error.name}: ')
      raise ValueError(f'the file that was uploaded is {reason}') from None
  if height * width > most:
    raise ValueError(
      f'the image that was uploaded has {height} x {width} px, more than '
      f'{most:,} in all: scale it down'
    )


def nearest(
  sizes: Collection[tuple[int, int]], shape: tuple[int, ...]
) -> tuple[int, int]:
  """Returns the (height, width) whose aspect is nearest to an array's."""
  wanted = math.log(shape[0] / shape[1])
  return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - wanted))


def stamp() -> str:
  """Returns the time, for names of files."""
  return f'{datetime.datetime.now():%Y%m%d-%H%M%S-%f}'
