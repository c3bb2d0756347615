"""Which of the formats of published weights lies at a path, told by looking.

A further format is a further row of FORMATS.
"""

import pathlib

from sdxl_jax.weights.diffusers import folder_reader
from sdxl_jax.weights.single_file import ldm_file

# (whether a path is of the format, its published.Model); `base` is a Model
# whose configs tell what the path does not.
FORMATS = (
  (
    lambda path: (path / 'model_index.json').is_file(),
    lambda path, base: folder_reader.open_model(path),
  ),
  (
    lambda path: path.is_dir() and folder_reader.part_of(path) is not None,
    lambda path, base: folder_reader.open_part(path),
  ),
  (lambda path: path.is_file(), ldm_file.open_model),
)


def is_published(path):
  """Whether a path holds published weights, and not a run's workdir."""
  path = pathlib.Path(path)
  return any(fits(path) for fits, _ in FORMATS)


def open_model(path, base=None):
  """The published.Model at a path; of its weights nothing is read.

  Args:
    path: folder of a model or of one of its nets, or a file of either.
    base: Model of which the rest is taken where a net or more are missing.

  Raises:
    FileNotFoundError: where nothing is that we know.
    ValueError: for what is broken.
  """
  path = pathlib.Path(path)
  for fits, open_format in FORMATS:
    if fits(path):
      return open_format(path, base)
  raise FileNotFoundError(
    f'{path} is not there'
    if not path.exists()
    else f'{path} holds no weights '
    'that we know: neither model_index.json nor config.json is in it'
  )
