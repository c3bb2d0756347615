"""Requests of the command: one image each, its files by their names.

Fields of a Request are the flags of the command, the keys of a line of a
prompts file, and the text of a PNG.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

from sdxl_jax.sampling import (
  control_images,
  image_seeds,
  init_images,
  model_flags,
  prompt_plan,
  sampler_aliases,
  settings,
  validation,
)
from sdxl_jax.sampling.settings import (
  Levels,
  Pair,
  SampleSettings,
  Texts,
  option,
)
from sdxl_jax.text import prompt_tags

PNG_KEY = 'sdxl_jax'  # of the text chunk that holds a Request
LARGEST_NUMBER = 1e30  # which float32 holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(SampleSettings):
  """One image: its prompts, seed, files and settings."""

  prompt: str | None = option(None, 'what to show')
  negative_prompt: str | None = option(None, 'what to avoid')
  prompt_2: str | None = option(
    None, 'prompt of OpenCLIP ViT-bigG; default: prompt'
  )
  negative_prompt_2: str | None = option(
    None, 'negative prompt of OpenCLIP ViT-bigG; default: negative_prompt'
  )
  seed: int = option(
    0, '0 to 2**64 - 1, of the first image; the next has seed + 1; -1: drawn'
  )
  image: str | None = option(None, 'image file to start from')
  mask: str | None = option(
    None, 'image file, white or painted where the image is repainted'
  )
  control: Texts = option(
    (),
    'image file of each --controlnet, in their order; TYPE=FILE for a union '
    'net, as canny=edges.png; may be repeated',
  )


FIELDS = {f.name: f for f in dataclasses.fields(Request)}
# These may differ between the images of a batch.
PER_IMAGE_FIELDS = (*prompt_plan.REQUEST_FIELDS, 'seed')
# The values of each type, as JSON has them.
KINDS = {
  int: 'a whole number without a point, as 20',
  float: f'a number of less than {LARGEST_NUMBER:g}, as 7.5',
  bool: 'true or false',
  str: 'text in quotation marks',
  Pair: 'two whole numbers, as [1024, 1024]',
  Levels: 'two numbers, as [0.28, 5.42]',
  Texts: 'a list of texts, as ["edges.png"]',
}
# Settings that models distilled to few steps need; and `fast`, which trades the
# images of the defaults for time, with any model. Its interval is that of
# Kynkaanniemi et al. 2024 for SDXL, in which 9 of its 20 steps begin.
PRESETS = {
  'fast': {
    'sampler': 'dpmpp_2m',
    'sigmas': 'karras',
    'steps': 20,
    'guidance_interval': (0.28, 5.42),
  },
  'turbo': {
    'sampler': 'euler_ancestral',
    'spacing': 'trailing',
    'steps': 4,
    'guidance_scale': 1.0,
  },
  'lightning': {
    'sampler': 'euler',
    'spacing': 'trailing',
    'steps': 4,
    'guidance_scale': 1.0,
  },
  'lcm': {'sampler': 'lcm', 'steps': 4, 'guidance_scale': 1.0},
  'tcd': {'sampler': 'tcd', 'steps': 4, 'guidance_scale': 1.0},
}


def describe_trade(preset: str | None, fields: dict[str, Any]) -> str | None:
  """Returns a line on what a preset trades; None for one that trades nothing.

  Args:
    preset: one of PRESETS, or None.
    fields: of a Request, as they are used: flags may replace the preset's.
  """
  if preset != 'fast':
    return None
  low, high = fields['guidance_interval']
  return (
    f'preset fast: {fields["steps"]} steps of {fields["sampler"]}, '
    f'{fields["sigmas"]}, in place of {FIELDS["steps"].default} of the '
    f"model's own sampler, guided from noise level {high:g} to {low:g} alone: "
    'for less time, images differ from those of the defaults, in composition '
    'by the steps before that, which no guidance moves towards the prompt, and '
    'in details'
  )


def check(fields: Any, location: str) -> dict[str, Any]:
  """Returns {field: value} of JSON, with pairs as tuples.

  Args:
    fields: JSON value, which must be an object.
    location: of the JSON, for errors.

  Raises:
    ValueError: for a name or type that Request does not have.
  """
  if not isinstance(fields, dict):
    raise ValueError(
      f'{location} is not an object such as {{"prompt": "a fox"}}'
    )
  fields = from_other_names(fields)
  checked = {}
  for name, value in fields.items():
    if name not in FIELDS:
      raise ValueError(
        f'{location}: no setting {name!r}; there are {list(FIELDS)}'
      )
    kind = settings.value_type(FIELDS[name])
    if kind in (Pair, Levels, Texts) and isinstance(value, list):
      value = tuple(value)
    is_optional = FIELDS[name].default is None
    if not (is_of_type(value, kind) or (value is None and is_optional)):
      raise ValueError(
        f'{location}: {name} is {value!r}; it must be {KINDS[kind]}'
      )
    if name == 'seed':
      image_seeds.check(value, f'{location}: seed')
    check_value(name, value, f'{location}: ')
    checked[name] = value
  return checked


def check_value(name: str, value: Any, before: str = '') -> None:
  """Raises ValueError for a value that a field may not have.

  Args:
    name: of the field.
    value: of its type.
    before: what the error begins with.
  """
  if value is None:
    return
  kind, choices = settings.value_type(FIELDS[name]), choices_of(name)
  for text in value if kind == Texts else [value] if kind is str else ():
    validation.check_characters(f'{before}{name}', text)
  if kind is float and not abs(value) < LARGEST_NUMBER:  # or NaN
    raise ValueError(f'{before}{name} is {value}; it must be {KINDS[float]}')
  if choices and value not in choices:
    raise ValueError(f'{before}{name} is {value!r}; choose one of {choices}')


def choices_of(name: str) -> list[str] | None:
  """Returns the values that a field may have; None: it is not limited."""
  return FIELDS[name].metadata['choices']


def from_other_names(fields: dict[str, Any]) -> dict[str, Any]:
  """Replaces another program's name of a sampler by our settings.

  'DPM++ 2M Karras' becomes a sampler and its sigmas, unless these are set.
  """
  name = fields.get('sampler')
  if not isinstance(name, str) or name in choices_of('sampler'):
    return fields
  found = sampler_aliases.sampler(name)
  if found is None:
    return fields
  return found | fields | {'sampler': found['sampler']}


def is_of_type(value: Any, kind: Any) -> bool:
  """Returns whether a JSON value is of the type of a field."""
  is_integer = isinstance(value, int) and not isinstance(value, bool)
  if kind is int:
    return is_integer
  if kind is float:
    return is_integer or isinstance(value, float)
  if kind in (Pair, Levels):
    is_pair = isinstance(value, tuple) and len(value) == 2
    side = int if kind == Pair else float
    return is_pair and all(is_of_type(x, side) for x in value)
  if kind == Texts:
    return isinstance(value, tuple) and all(isinstance(x, str) for x in value)
  return isinstance(value, kind)


def to_generate_kwargs(
  batch: list[Request],
  default_size: Pair,
  load: Callable[..., dict[str, Any]] = init_images.load,
) -> dict[str, Any]:
  """Returns the arguments of sample.generate for one batch, its files read.

  Args:
    batch: of request_batches.batches.
    default_size: (height, width) in px without an image.
    load: init_images.load, or a function of its kind.

  Raises:
    ValueError: for files that are no images, or do not fit each other.
    OSError: for files that cannot be read.
  """
  first = batch[0]
  kwargs = {name: getattr(first, name) for name in settings.FIELDS}
  del kwargs['height'], kwargs['width']
  kwargs |= load(init_images.files_of(first), default_size)
  kwargs |= control_images.load(first.control, kwargs['size'])
  for name in PER_IMAGE_FIELDS:
    values = [getattr(request, name) for request in batch]
    if name in prompt_plan.REQUEST_FIELDS and values[0] is not None:
      # The command has named the tags already.
      values = [prompt_tags.remove(value) for value in values]
    kwargs[plural(name)] = None if values[0] is None else values
  return kwargs


def plural(name: str) -> str:
  """Returns what `generate` calls the list of a per-image field."""
  if name.endswith('_2'):
    return f'{name.removesuffix("_2")}s_2'
  return f'{name}s'


def to_png_metadata(
  request: Request, models: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, str]:
  """Returns the text chunk of a PNG, see `from_png_metadata`.

  Args:
    request: of the image.
    models: {flag: value} of MODEL_OPTIONS.
    shape: (height, width, ...) of the image in px.
  """
  fields = dataclasses.asdict(request)
  fields['height'], fields['width'] = shape[:2]
  text = json.dumps({'models': models} | fields, ensure_ascii=False)
  return {PNG_KEY: text}


def from_png_metadata(
  text: str, path: str | os.PathLike[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads ({field: value} of the Request, {flag: value} of the models).

  Args:
    text: of the text chunk.
    path: of the PNG, for errors.

  Raises:
    ValueError: for text that is cut off, or has unknown settings.
  """
  try:
    saved = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{path}: the text under {PNG_KEY!r} is cut off or was changed '
      f'({error}): pass the file as it was written'
    ) from None
  models = saved.pop('models', {}) if isinstance(saved, dict) else {}
  model_flags.check(models, f'{path}: the text under {PNG_KEY!r}')
  return check(saved, str(path)), models
