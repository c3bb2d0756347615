"""Loads nets whose kernels are stored in 8 bits, see models/stored_kernels.py.

Published weights are quantised array by array as they are read, so that neither
device nor host holds a whole net before. The nets of a run are restored whole,
to host memory. LoRA files are merged before: 8 bits have too few digits for
their changes.
"""

import dataclasses
import functools
from typing import Any

import jax

from sdxl_jax.checkpoints import loading
from sdxl_jax.models import sdxl, stored_kernels
from sdxl_jax.sampling import sources
from sdxl_jax.sampling.load_options import LoadOptions
from sdxl_jax.weights import net_shapes, quantization
from sdxl_jax.weights.lora import lora_file, merge


def quantized_nets(model: sdxl.SDXL) -> list[str]:
  """Returns the names of the nets whose kernels are stored in 8 bits."""
  return [
    name
    for name, config in model.configs.items()
    if stored_kernels.type_of(config)
  ]


def unquantized(model: sdxl.SDXL) -> sdxl.SDXL:
  """Returns the same model with all kernels as its other parameters."""
  fields = {name: {} for name in model.configs}
  for name in quantized_nets(model):
    fields[name] = {'weights_dtype': None}
  return model.replace_each(fields)


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
  configs = unquantized(source.model).configs
  shapes = {n: net_shapes.abstract_params(c) for n, c in configs.items()}
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


def quantize(
  model: sdxl.SDXL,
  params: dict[str, Any],
  options: LoadOptions,
  mesh: jax.sharding.Mesh | None,
) -> dict[str, Any]:
  """Quantises nets that were loaded whole, to where the options have them.

  Args:
    model: as it is sampled.
    params: {net: parameters}, of `unquantized` nets in host memory.
    options: see load_options.LoadOptions.
    mesh: whose devices share a batch.
  """
  params = dict(params)
  for name in quantized_nets(model):
    shard = loading.make_sharding_fn(mesh, options.memory(name))
    target = shard(net_shapes.abstract_params(model.configs[name]))
    params[name] = quantization.quantize_tree(params.pop(name), target)
  return params
