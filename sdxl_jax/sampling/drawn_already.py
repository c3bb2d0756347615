"""Finds the images that a stopped command has written already."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from sdxl_jax.sampling import model_flags, png_settings, sample_request
from sdxl_jax.sampling.located import Located

AUTOMATIC = None, 'auto'  # values that a model or a device decides


def find(
  located: Sequence[Located], names: Sequence[str], models: dict[str, Any]
) -> list[int]:
  """Returns the indices of the images that are still to be drawn.

  A file is written as a whole, and holds what it was made with.

  Args:
    located: the requests.
    names: the file of each.
    models: {flag: value} of model_flags.MODEL_OPTIONS.

  Raises:
    ValueError: for a file that is there, but was made with other settings, or
      is no image of ours.
  """
  missing = []
  for i, (item, name) in enumerate(zip(located, names)):
    if not os.path.exists(name):
      missing.append(i)
      continue
    saved = png_settings.load(name)
    wanted = dataclasses.asdict(item.request) | models
    wanted = without_new(saved.fields | saved.models, wanted)
    difference = compare(saved.fields | saved.models, wanted)
    if difference:
      raise ValueError(
        item.line(
          f'{name} is there already, made with another {difference}: choose '
          'another --output, or remove the file'
        )
      )
  return missing


def without_new(
  saved: dict[str, Any], wanted: dict[str, Any]
) -> dict[str, Any]:
  """Leaves out defaults of settings that the file's version did not have."""
  defaults = {
    **{name: field.default for name, field in sample_request.FIELDS.items()},
    **{n: option.default for n, option in model_flags.MODEL_OPTIONS.items()},
  }
  return {
    name: value
    for name, value in wanted.items()
    if name in saved or value != defaults.get(name)
  }


def compare(saved: dict[str, Any], wanted: dict[str, Any]) -> str | None:
  """Describes the first value that is not the wanted one; None: all are.

  Args:
    saved: {name: value} of a file; the model has decided on all of them.
    wanted: {name: value}; the model decides on what is None.
  """
  for name, value in wanted.items():
    if value in AUTOMATIC:
      continue
    # Tuples are lists in a file.
    is_same = name in saved and json.dumps(saved[name]) == json.dumps(value)
    if not is_same:
      return f'{name}: {saved.get(name)!r}, and {value!r} is asked for'
  return None
