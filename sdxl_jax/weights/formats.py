"""Detects the format of the weights at a path, and opens them."""

import dataclasses
import enum
import pathlib
from typing import Any

from sdxl_jax.weights import (
  foreign_files,
  hub,
  pretrained,
  read_options,
  tensor_files,
  unknown_paths,
)
from sdxl_jax.weights.diffusers import folder_reader, weight_files
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
  """Checks whether a path holds pretrained weights, rather than a workdir.

  A name on the Hugging Face hub does.
  """
  return hub.is_name(path) or detect_format(path) is not None


def open_model(
  path: str | pathlib.Path,
  base: pretrained.Model | None = None,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens the weights at a path and reads no tensor data.

  Args:
    path: folder of a model or of one of its nets, or a file of either; or their
      name on the Hugging Face hub.
    base: whose configs are used where the path has none.
    options: what the user decided.

  Raises:
    FileNotFoundError: if the path holds no known format.
    ValueError: if the weights are broken.
  """
  path, options = hub.locate(path, options)
  model = open_format(pathlib.Path(path), base, options)
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
  raise FileNotFoundError(unknown_paths.explain(path))


def added_tokens(
  path: str | pathlib.Path | None,
) -> dict[str, list[dict[str, Any]]]:
  """Returns the tokens that a single file adds to CLIP's vocabulary.

  A folder has its own tokenizers, and adds none; nor does None, no weights. See
  pretrained.Model.added_tokens.
  """
  if path is None or detect_format(path) != Format.SINGLE_FILE:
    return {}
  if foreign_files.is_torch_pickle(pathlib.Path(path)):
    return {}  # it has no metadata
  return ldm_reader.read_our_metadata(tensor_files.open_file(path)).get(
    'added_tokens', {}
  )


def has_variant(path: str | pathlib.Path, variant: str) -> bool:
  """Checks whether a net of a folder is stored as a variant."""
  if hub.is_name(path):
    return variant in hub.variants(path)
  path = pathlib.Path(path)
  match detect_format(path):
    case Format.DIFFUSERS_FOLDER:
      nets = {name: path / name for name in weight_files.STEMS}
    case Format.COMPONENT_FOLDER:
      nets = {folder_reader.component_of(path): path}
    case _:
      return False
  return variant in weight_files.variants_of(nets)


def for_other(
  path: str | pathlib.Path, options: read_options.ReadOptions
) -> read_options.ReadOptions:
  """Returns the options with which weights beside the first ones are read.

  What the user decided of the UNet concerns the first ones alone, and a variant
  is read where the others have it.
  """
  variant = options.variant
  if variant is not None and not has_variant(path, variant):
    variant = None
  return dataclasses.replace(
    options, variant=variant, prediction=None, zero_snr=None
  )
