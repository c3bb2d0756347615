"""Control images of a batch: checked, and placed on its devices."""

from typing import Any

import numpy as np

from sdxl_jax.distributed import batch_padding
from sdxl_jax.sampling import control_specs, control_steps, pipelines
from sdxl_jax.sampling.settings import SampleSettings


def check(pipeline: pipelines.Pipeline, inputs: Any, guess_mode: bool) -> None:
  """Raises ValueError for control images that do not fit the ControlNets.

  Args:
    pipeline: base, with its ControlNets.
    inputs: generation.Inputs.
    guess_mode: see settings.SampleSettings.
  """
  count = 0 if inputs.control is None else len(inputs.control)
  check_count(len(pipeline.controls), count, guess_mode)
  types_of(pipeline, inputs)
  for i, image in enumerate(inputs.control or ()):
    check_pixels(f'control[{i}]', image)


def check_count(nets: int, images: int, guess_mode: bool) -> None:
  """Raises ValueError unless each ControlNet has one image.

  And where guess_mode is set without any.
  """
  if nets != images:
    raise ValueError(
      f'ControlNets: {nets}, control images: {images}; pass one --control for '
      'each --controlnet, in their order'
    )
  if guess_mode and not images:
    raise ValueError('guess_mode is set without a ControlNet: leave it out')


def check_pixels(name: str, image: Any) -> None:
  """Raises ValueError for an image that is not of finite values in [0, 1]."""
  image = np.asarray(image, np.float32)
  low, high = image.min(initial=0), image.max(initial=0)
  if not (np.isfinite(image).all() and low >= 0 and high <= 1):
    raise ValueError(
      f'{name} has values from {low:g} to {high:g}; a control image is from 0 '
      'to 1: divide pixels of 0 to 255 by 255, and map those of -1 to 1 by '
      '(x + 1) / 2'
    )


def types_of(pipeline: pipelines.Pipeline, inputs: Any) -> list[int | None]:
  """Returns the number of the type of each control image, None of plain nets.

  Raises:
    ValueError: for types that are missing, unknown, or of no use.
  """
  given = inputs.control_types or [None] * len(pipeline.controls)
  if len(given) != len(pipeline.controls):
    raise ValueError(
      f'there are {len(given)} control_types for {len(pipeline.controls)} '
      'control images: pass one each, None for ControlNets of one type'
    )
  found = {}
  for use in control_specs.uses(pipeline.model.configs, pipeline.controls):
    known = pipeline.model.configs[use.net].control_types
    for i in use.places:
      spec = pipeline.controls[i]
      found[i] = control_specs.type_number(given[i], spec, known)
  return [found[i] for i in range(len(given))]


def place(
  pipeline: pipelines.Pipeline,
  rows: batch_padding.Rows,
  inputs: Any,
  size: tuple[int, int],
  chosen: SampleSettings,
  steps: range,
) -> control_steps.Controls | None:
  """Places the control images of a batch; None without ControlNets.

  Args:
    pipeline: base, with its ControlNets.
    rows: the batch on its devices.
    inputs: generation.Inputs that were checked.
    size: (height, width) of the images in px.
    chosen: settings of the batch.
    steps: that are taken.

  Raises:
    ValueError: for images of another size.
  """
  if not pipeline.controls:
    return None
  placed = [
    rows.put_each(f'control[{i}]', image, (*size, 3))
    for i, image in enumerate(inputs.control)
  ]
  return control_steps.make_controls(
    pipeline.model.configs,
    pipeline.controls,
    placed,
    types_of(pipeline, inputs),
    steps,
    chosen.guess_mode,
  )
