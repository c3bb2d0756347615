"""Loads Inception v3 of FID from pytorch-fid's file, or a copy of it."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdxl_jax.models import inception
from sdxl_jax.weights import metric_files, tensor_files
from sdxl_jax.weights.diffusers import tensor_names

# The classifiers, and counts of training.
UNUSED = re.compile(r'fc\.|AuxLogits\.|.*\.num_batches_tracked$')


def load_inception(
  path: str | pathlib.Path | None = None,
  config: inception.InceptionConfig | None = None,
  shard: Callable[[Any], Any] = lambda target: target,
) -> dict[str, Any]:
  """Loads the parameters of models.inception.Inception.

  Args:
    path: of the .pth or a .safetensors with the same names, or of the folder
      where it lies, see metric_files.find.
    config: of the net; None: float32.
    shard: adds shardings to a tree of shapes, see pretrained.Net.load.

  Raises:
    FileNotFoundError: where there is no file, with where to get it.
    ValueError: if the file holds something else.
  """
  path = metric_files.find(metric_files.INCEPTION, path)
  tensors = {
    canonical_name(name): tensor
    for name, tensor in tensor_files.open_file(path).tensors.items()
    if not UNUSED.match(name)
  }
  target = shard(shapes(config or inception.InceptionConfig()))
  try:
    return tensor_names.from_published(tensors, target)
  except ValueError as error:
    raise ValueError(
      f'{path}: not the Inception v3 of FID ({error}). It is published at '
      f'{metric_files.INCEPTION.url}'
    ) from error


def canonical_name(name: str) -> str:
  """Translates branch5x5_1.conv to branch5x5.1.conv, as lists are named."""
  return re.sub(r'_(\d+)\.', r'.\1.', name)


def shapes(config: inception.InceptionConfig) -> dict[str, Any]:
  """Returns the tree of shapes of the parameters."""
  image = jnp.zeros((1, inception.SIZE, inception.SIZE, 3))
  net = inception.Inception(config)
  return jax.eval_shape(net.init, jax.random.key(0), image)['params']
