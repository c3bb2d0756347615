"""Measures an item of a dataset for its index, from the header of its image."""

from typing import Any

from PIL import Image, UnidentifiedImageError

from sdxl_jax.data import images
from sdxl_jax.data.sources import captions, indexed


def measure(
  name: str,
  file: Any,
  caption: captions.Caption,
  score: float | None = None,
) -> indexed.Measured:
  """Measures a record.

  Args:
    name: relative to the dataset.
    file: open file of the encoded image.
    caption: of `captions.parse`.
    score: aesthetic score, if there is one.
  """
  try:
    size = images.upright_size(file)
  except images.UnreadableImage as error:
    if not file.seek(0, 2):
      return indexed.Measured(name, None, indexed.UNREADABLE, 'empty')
    return unreadable(name, error)
  return indexed.Measured(
    name,
    size,
    caption.problem,
    caption.detail,
    indexed.stamp(file, caption.text, score),
    caption.count,
  )


def unreadable(name: str, error: Exception) -> indexed.Measured:
  """Makes the row of an image whose file or header cannot be read."""
  cause = error.__cause__ or error
  problem, detail = indexed.UNREADABLE, f'{type(cause).__name__}: {cause}'
  if isinstance(cause, Image.DecompressionBombError):
    problem = indexed.TOO_LARGE
  elif isinstance(cause, UnidentifiedImageError):
    # Pillow's message has the address of the file object.
    detail = 'in no format that Pillow knows'
  return indexed.Measured(name, None, problem, detail)
