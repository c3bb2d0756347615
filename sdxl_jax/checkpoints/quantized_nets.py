"""Quantises nets that were loaded whole, see models/stored_kernels.py."""

from collections.abc import Callable
from typing import Any

from sdxl_jax.models import autoencoder_gan, sdxl, stored_kernels
from sdxl_jax.weights import net_shapes, quantization

Nets = sdxl.SDXL | autoencoder_gan.AutoencoderGAN
Tree = dict[str, Any]  # of arrays, or of jax.ShapeDtypeStruct


def names(model: Nets) -> list[str]:
  """Returns the names of the nets whose kernels are stored in 8 bits."""
  return [
    name
    for name, config in model.configs.items()
    if stored_kernels.type_of(config)
  ]


def unquantized(model: Nets) -> Nets:
  """Returns the same model with all kernels as its other parameters."""
  quantized = names(model)
  if not quantized:
    return model
  fields = {name: {} for name in model.configs}
  for name in quantized:
    fields[name] = {'weights_dtype': None}
  return model.replace_each(fields)


def quantize(
  model: Nets,
  params: dict[str, Tree],
  shard_of: Callable[[str], Callable[[Tree], Tree]],
) -> dict[str, Tree]:
  """Quantises those of some nets whose kernels are stored in 8 bits.

  Args:
    model: whose nets are wanted.
    params: {net: parameters}, of `unquantized` nets in host memory.
    shard_of: (net) -> the function that adds shardings to its shapes.
  """
  params = dict(params)
  for name in names(model):
    if name in params:
      target = shard_of(name)(net_shapes.abstract_params(model.configs[name]))
      params[name] = quantization.quantize_tree(params.pop(name), target)
  return params
