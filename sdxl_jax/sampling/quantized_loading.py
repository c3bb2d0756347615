"""Merges LoRA files into nets before their kernels are stored in 8 bits.

Published weights are quantised array by array as they are read, so that neither
device nor host holds a whole net before. 8 bits have too few digits for the
changes of LoRA files, so that these are merged as the arrays are read.
"""

import dataclasses
import functools
from typing import Any

from sdxl_jax.checkpoints import quantized_nets
from sdxl_jax.models import sdxl
from sdxl_jax.sampling import sources
from sdxl_jax.sampling.load_options import LoadOptions
from sdxl_jax.weights import net_shapes
from sdxl_jax.weights.lora import lora_file, merge


def with_loras(
  source: sources.Source, options: LoadOptions
) -> tuple[sources.Source, tuple[str, ...]]:
  """Returns published weights that are read with the changes of LoRA files.

  Args:
    source: pretrained weights.
    options: with the files.

  Returns:
    The source, and lines for the user on the files.

  Raises:
    FileNotFoundError, ValueError: see lora_file.load.
  """
  configs = quantized_nets.unquantized(source.model).configs
  shapes = {
    name: net_shapes.abstract_params(config)
    for name, config in configs.items()
    if not sdxl.is_controlnet(name)
  }
  loras = lora_file.load_all(shapes, options.loras, options.skip_unsupported)
  opened = source.opened
  loaders = {
    name: functools.partial(read_merged, load, loras)
    for name, load in opened.loaders.items()
  }
  opened = dataclasses.replace(opened, loaders=loaders)
  return source._replace(opened=opened), lora_file.notes(options.loras, loras)


def read_merged(load: Any, loras: lora_file.Loras) -> Any:
  """Opens a net with the changes of LoRA files."""
  return merge.merge_published(load(), loras)
