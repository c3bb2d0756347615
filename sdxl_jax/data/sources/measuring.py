"""Measures an item of a dataset for its index, from the header of its image."""

import json
import math
from typing import Any

import numpy as np
from PIL import Image

from sdxl_jax.data import image_formats, images
from sdxl_jax.data.sources import captions, indexed

# Models are conditioned on it in float32.
LARGEST_SCORE = float(np.finfo(np.float32).max)


def measure(
  name: str,
  file: Any,
  caption: captions.Caption,
  score: float | None = None,
  mask: Any = None,
) -> indexed.Measured:
  """Measures a record.

  Args:
    name: relative to the dataset.
    file: open file of the encoded image.
    caption: of `captions.parse`.
    score: aesthetic score, if there is one.
    mask: open file of its mask, if there is one.
  """
  try:
    size = images.upright_size(file)
  except images.UnreadableImage as error:
    return unreadable(name, error)
  # Where all captions are used, each of them decides the content.
  text = json.dumps(caption.texts) if caption.texts else caption.text
  return indexed.Measured(
    name,
    size,
    caption.problem,
    caption.detail,
    indexed.stamp(file, text, score, mask),
    caption.count,
  )


def unreadable(name: str, error: Exception) -> indexed.Measured:
  """Makes the row of an image whose file or header cannot be read."""
  cause = error.__cause__ or error
  problem, detail = indexed.UNREADABLE, f'{type(cause).__name__}: {cause}'
  if isinstance(cause, Image.DecompressionBombError):
    problem = indexed.TOO_LARGE
  elif isinstance(cause, image_formats.UnknownFormat):
    detail = str(cause)
  return indexed.Measured(name, None, problem, detail)


def parse_score(value: Any) -> tuple[float | None, str]:
  """Returns (score, what is wrong with it); None where there is no score.

  NaN, as pandas writes a missing value, is none.
  """
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  if value is None or isinstance(value, str) and not value.strip():
    return None, ''
  try:
    # bool is a number to Python.
    score = math.inf if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    score = math.inf
  if math.isnan(score):
    return None, ''
  if abs(score) > LARGEST_SCORE:
    return None, (
      f'aesthetic_score = {value!r:.60} is not a number; write one of about 1 '
      'to 10, or leave it empty'
    )
  return score, ''


def check_score(measured: indexed.Measured, wrong: str) -> indexed.Measured:
  """Adds what is wrong with its score to a record that is usable otherwise."""
  if wrong and measured.problem == indexed.USABLE:
    return measured._replace(problem=indexed.BAD_SCORE, detail=wrong)
  return measured
