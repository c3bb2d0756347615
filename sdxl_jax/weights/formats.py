"""Detects the format of the weights at a path, and opens them."""

import dataclasses
import enum
import pathlib

from sdxl_jax.weights import pretrained, read_options
from sdxl_jax.weights.diffusers import folder_reader
from sdxl_jax.weights.single_file import ldm_reader


class Format(enum.Enum):
  """The formats of pretrained weights."""

  DIFFUSERS_FOLDER = enum.auto()  # with safetensors or orbax checkpoints
  COMPONENT_FOLDER = enum.auto()  # of one net, in the diffusers layout
  SINGLE_FILE = enum.auto()


def detect_format(path: str | pathlib.Path) -> Format | None:
  """Detects the format at a path from its contents; None: no such weights."""
  path = pathlib.Path(path)
  if path.is_file():
    return Format.SINGLE_FILE
  if (path / 'model_index.json').is_file():
    return Format.DIFFUSERS_FOLDER
  if path.is_dir() and folder_reader.component_of(path) is not None:
    return Format.COMPONENT_FOLDER
  return None


def is_published(path: str | pathlib.Path) -> bool:
  """Checks whether a path holds pretrained weights, rather than a workdir."""
  return detect_format(path) is not None


def open_model(
  path: str | pathlib.Path,
  base: pretrained.Model | None = None,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens the weights at a path and reads no tensor data.

  Args:
    path: folder of a model or of one of its nets, or a file of either.
    base: whose configs are used where the path has none.
    options: what the user decided.

  Raises:
    FileNotFoundError: if the path holds no known format.
    ValueError: if the weights are broken.
  """
  path = pathlib.Path(path)
  model = open_format(path, base, options)
  return dataclasses.replace(model, scheduler=options.schedule(model.scheduler))


def open_format(
  path: pathlib.Path,
  base: pretrained.Model | None,
  options: read_options.ReadOptions,
) -> pretrained.Model:
  """Opens the weights at a path with the reader of their format."""
  # A file may lack configs, which the base completes.
  match detect_format(path):
    case Format.SINGLE_FILE:
      return ldm_reader.open_model(path, base, options)
    case Format.DIFFUSERS_FOLDER:
      return folder_reader.open_model(path, options)
    case Format.COMPONENT_FOLDER:
      return folder_reader.open_component(path, options)
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist')
  raise FileNotFoundError(
    f'{path} holds no weights of a known format: it has neither '
    'model_index.json nor config.json'
  )
