"""Reads the changes of an open LoRA file, or explains why they do not fit."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from sdxl_jax.weights import checked_cast, companions, safetensors_file
from sdxl_jax.weights.lora import (
  alphas,
  deltas,
  layer_parts,
  lora_names,
  lora_tensors,
  merge,
  mismatches,
  reading_notes,
)

NO_BIAS = 'biases of layers that have none'


def read(
  file: safetensors_file.TensorFile,
  locations: merge.Locations,
  is_adapter_folder: bool = False,
  adapter: str | None = None,
  skip_unsupported: bool = False,
) -> merge.Lora:
  """Reads an open LoRA file.

  Args:
    file: open.
    locations: of the tensors of the base model.
    is_adapter_folder: whether adapter_config.json beside it belongs to it.
    adapter: which of several adapters of PEFT to read.
    skip_unsupported: whether to leave out what cannot be applied.

  Raises:
    ValueError: if the file is of another method or another base model, or
      broken.
  """
  # Group the tensors by the layer that they belong to.
  layers = layers_of(locations)
  known = lora_names.key_prefixes(lora_names.names_by_net(layers), file.tensors)
  contents = lora_tensors.sort(file.tensors, known, adapter)
  check_names(file, contents, layers, skip_unsupported)
  matched = match_layers(file, contents, known, layers)
  reading_notes.check_unsupported(contents, len(file.tensors), skip_unsupported)
  # Make the changes of each layer.
  key_format = lora_names.detect_key_format(file.tensors)
  is_peft = key_format == 'peft' or is_adapter_folder
  settings = alphas.read(file.path, is_peft, file.metadata)
  factors, others = {}, {}
  for key, names in matched.items():
    for leaf, delta in read_layer(file, key, names, layers[key], settings):
      if leaf == 'weight' and isinstance(delta, deltas.Factors):
        factors[key] = delta
      else:
        others[key[0], f'{key[1]}.{leaf}'] = delta
  if not factors and not others:
    remedy = 'leave it out'
    if contents.words:
      remedy = 'it has learned words, pass it as --embedding instead'
    raise ValueError(f'no tensor of it changes this base model: {remedy}')
  notes = reading_notes.describe(contents, factors)
  notes += reading_notes.describe_scale(file.metadata, factors)
  return merge.Lora(factors, key_format, file.metadata, others, notes)


def layers_of(locations: merge.Locations) -> layer_parts.Layers:
  """Returns {(net, layer): shapes} of all layers with a weight."""
  layers = {}
  for (net, name), location in locations.items():
    layer, _, leaf = name.rpartition('.')
    if leaf == 'weight':
      bias = locations.get((net, f'{layer}.bias'))
      layers[net, layer] = layer_parts.Layer(
        location.shape, bias and bias.shape
      )
  return layers


def check_names(
  file: safetensors_file.TensorFile,
  contents: lora_tensors.Contents,
  layers: layer_parts.Layers,
  skip_unsupported: bool,
) -> None:
  """Raises ValueError, with the true reason, for names of no layer."""
  total = len(file.tensors)
  if not total:
    raise ValueError('the file has no tensors: re-download it')
  whole = list(contents.unsupported.values()).count(lora_tensors.WHOLE)
  if whole > total / 2:
    raise ValueError(
      f'{whole} of {total} tensors are whole weights: it is a model, no LoRA; '
      'pass it as --weights'
    )
  unknown = contents.unknown
  is_foreign = mismatches.architecture_of(unknown) or not contents.layers
  if not unknown or (skip_unsupported and not is_foreign):
    return
  reason = mismatches.explain_unknown(
    unknown, file.tensors, file.metadata, layers
  )
  raise ValueError(
    f'{len(unknown)} of {total} tensors belong to no layer of the base model: '
    f'{companions.format_list(unknown, 3)}. {reason}'
  )


def match_layers(
  file: safetensors_file.TensorFile,
  contents: lora_tensors.Contents,
  known: dict[str, set[tuple[str, str]]],
  layers: layer_parts.Layers,
) -> dict[tuple[str, str], dict[str, str]]:
  """Returns {(net, layer): {part: name}}.

  What would change the bias of a layer without one is moved to the unsupported
  tensors of the contents.

  Raises:
    ValueError: if parts are missing, or their shapes do not fit.
  """
  matched, prefixes = {}, {}
  for prefix, names in contents.layers.items():
    key = match_layer(file, prefix, names, known[prefix], layers)
    if key in matched:
      raise ValueError(
        f'has the layer {".".join(key)} twice, under two names, {prefixes[key]}'
        f' and {prefix}: write the file again with the tool it is from'
      )
    prefixes[key] = prefix
    if layers[key].bias is None:
      for part in layer_parts.BIASES:
        if part in names and file.tensors[names[part]].read().any():
          contents.unsupported[names[part]] = NO_BIAS
    matched[key] = names
  return matched


def match_layer(
  file: safetensors_file.TensorFile,
  prefix: str,
  names: dict[str, str],
  candidates: Collection[tuple[str, str]],
  layers: layer_parts.Layers,
) -> tuple[str, str]:
  """Returns the (net, layer) of the tensors with one prefix.

  Raises:
    ValueError: if a part is missing, or the shapes match no layer, or layers of
      two nets.
  """
  shapes = {part: file.tensors[name].shape for part, name in names.items()}
  if layer_parts.rank_of(shapes) == 0:
    raise ValueError(
      f'{prefix} has rank 0, factors without numbers: remove this layer from '
      'the file, or write the file again with the tool it is from'
    )
  # Nets may share names; shapes decide.
  try:
    misfits = {
      key: layer_parts.check_shapes(shapes, layers[key]) for key in candidates
    }
  except ValueError as error:
    raise ValueError(f'{prefix} {error}') from None
  matching = [key for key, misfit in misfits.items() if misfit is None]
  if len(matching) == 1:
    return matching[0]
  if matching:
    nets = ' and '.join(sorted(net for net, _ in matching))
    raise ValueError(
      f'{prefix} may be of {nets}: put one of these before its names, as in '
      'text_encoder.base_model.model'
    )
  shapes_needed = {key: layers[key].weight for key in misfits}
  raise ValueError(
    mismatches.explain_misfit(shapes, prefix, names, misfits, shapes_needed)
  )


def read_layer(
  file: safetensors_file.TensorFile,
  key: tuple[str, str],
  names: dict[str, str],
  layer: layer_parts.Layer,
  settings: alphas.Settings,
) -> Iterator[tuple[str, Any]]:
  """Yields ('weight' or 'bias', change) of a layer."""
  parts = {
    p: read_tensor(p, name, file.tensors[name]) for p, name in names.items()
  }
  rank = layer_parts.rank_of({part: x.shape for part, x in parts.items()})
  if 'alpha' in parts:
    parts['alpha'] = read_alpha(names['alpha'], parts['alpha'])
  elif layer_parts.is_scaled(parts):
    # Of a layer without rank the settings have the scale itself.
    alpha = alphas.alpha_of(settings, key, rank)
    if alpha is not None:
      parts['alpha'], rank = np.float32(alpha), rank or 1
  scale = layer_parts.scale_of(parts, rank)
  yield from layer_parts.make_deltas(parts, scale, layer).items()


def read_tensor(
  part: str, name: str, tensor: safetensors_file.LazyTensor
) -> np.ndarray:
  """Reads a tensor that is some part of a layer.

  Raises:
    ValueError: if it is quantised, is not finite, or overflows float32.
  """
  if not checked_cast.is_floating(tensor.dtype) and part != 'alpha':
    raise ValueError(
      f'{name} is stored as {tensor.dtype}: quantised weights are not '
      'supported, use those in float16 or longer'
    )
  array = tensor.read()
  if array.dtype.itemsize > 4:
    checked_cast.check_finite(name, array, np.float32)
  return array


def read_alpha(name: str, alpha: np.ndarray) -> np.ndarray:
  """Returns an alpha as a scalar array."""
  if alpha.size != 1:
    raise ValueError(
      f'{name} has the shape {alpha.shape}, and an alpha is one number: write '
      'the file again with the tool it is from'
    )
  return alpha.reshape(())
