"""Reads low-rank factors from LoRA files in all key formats of `lora_names`."""

import collections
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from sdxl_jax.weights import companions, safetensors_file
from sdxl_jax.weights.lora import lora_names, merge

# The file in a folder that diffusers or PEFT wrote.
FILES = ('pytorch_lora_weights.safetensors', 'adapter_model.safetensors')
ADAPTER = 'adapter_config.json'  # of PEFT, in the folder of its file
# Other methods, by a part of the names of their tensors.
OTHERS = {
  'dora_scale': 'DoRA',
  'lora_magnitude_vector': 'DoRA',
  'lora_mid': 'LoCon with a core between its factors',
  'hada_w1_a': 'LoHa',
  'lokr_w1': 'LoKr',
  'oft_blocks': 'OFT',
  'diff': 'a difference of whole weights',
  'diff_b': 'a difference of whole biases',
  'lora_B.bias': 'LoRA with biases',
}


def load(path: str | pathlib.Path, params: dict[str, Any]) -> merge.Lora:
  """Loads a LoRA file.

  Args:
    path: of a safetensors file, or of a folder that diffusers or PEFT wrote.
    params: {net: parameters, or their shapes} of the base model it is for.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is of another method or another base model.
  """
  path = find(path)
  file = safetensors_file.load(path)
  check_method(path, file.tensors)
  # Group the tensors by the layer that they belong to.
  layers = merge.layers_of(params)
  known = lora_names.key_prefixes(names_by_net(layers))
  groups, leftover = collections.defaultdict(dict), []
  for name, tensor in file.tensors.items():
    prefix, part = lora_names.split(name) or (None, None)
    if prefix in known:
      groups[prefix][part] = tensor.read()
    else:
      leftover.append(name)
  if leftover or not file.tensors:
    base = file.metadata.get('ss_base_model_version')
    raise ValueError(
      f'{path}: {len(leftover)} of {len(file.tensors)} tensors belong to no '
      f'layer of the base model: {companions.format_list(sorted(leftover))}. '
      f'The file is for another one{f": {base}" if base else ""}'
    )
  # Check their shapes, and add an alpha that is not among the tensors.
  key_format = lora_names.detect_key_format(file.tensors)
  settings = read_alpha_settings(path, key_format, file.metadata)
  factors = {}
  for prefix, parts in groups.items():
    layer, layer_factors = match_layer(
      path, prefix, parts, known[prefix], layers
    )
    if layer_factors.alpha is None and settings is not None:
      alpha = alpha_of(settings, layer, len(layer_factors.down))
      layer_factors = layer_factors._replace(alpha=alpha)
    if layer in factors:
      raise ValueError(
        f'{path} has the layer {".".join(layer)} twice, under two names; one '
        f'of them is {prefix}: write the file again with the tool it is from'
      )
    factors[layer] = layer_factors
  return merge.Lora(factors, key_format, file.metadata)


def find(path: str | pathlib.Path) -> pathlib.Path:
  """Returns the file at a path, which may be its folder."""
  path = pathlib.Path(path)
  for file in (path, *(path / name for name in FILES)):
    if file.is_file():
      return file
  raise FileNotFoundError(
    f'LoRA {path}: no such file, nor a folder with one of {", ".join(FILES)}'
  )


def check_method(path: pathlib.Path, names: Collection[str]) -> None:
  """Raises ValueError for the tensors of another method than LoRA."""
  for name in names:
    for suffix, method in OTHERS.items():
      if f'{name}.'.endswith((f'.{suffix}.', f'.{suffix}.weight.')):
        raise ValueError(
          f'{path} is not plain LoRA but {method}: it has {name}. Merge it '
          'into its base model with the tool it is from, and load the result'
        )


def names_by_net(layers: Collection[tuple[str, str]]) -> dict[str, list[str]]:
  """Groups (net, layer) by net."""
  names = collections.defaultdict(list)
  for net, name in layers:
    names[net].append(name)
  return names


def match_layer(
  path: pathlib.Path,
  prefix: str,
  parts: dict[str, np.ndarray],
  candidates: Collection[tuple[str, str]],
  layers: merge.Layers,
) -> tuple[tuple[str, str], merge.Factors]:
  """Returns ((net, layer), Factors) of the tensors with one prefix.

  Raises:
    ValueError: if a factor is missing, or the shapes match no layer, or layers
      of two text encoders.
  """
  if not {'down', 'up'} <= set(parts):
    raise ValueError(
      f'{path}: {prefix} has no {"up" if "down" in parts else "down"}: the '
      'file is incomplete'
    )
  # The two text encoders may share names; shapes decide.
  factors = merge.Factors(parts['down'], parts['up'], parts.get('alpha'))
  matching = [c for c in candidates if fits(factors, layers[c].shape)]
  if len(matching) > 1:
    nets = ' and '.join(sorted(net for net, _ in matching))
    raise ValueError(
      f'{path}: {prefix} may be of {nets}: put one of these before its names, '
      'as in text_encoder.base_model.model'
    )
  if not matching:
    shapes = ' or '.join(str(layers[c].shape) for c in sorted(candidates))
    raise ValueError(
      f'{path}: {prefix} has the factors {factors.down.shape} and '
      f'{factors.up.shape}, and the layer is {shapes}: it is for another base '
      'model'
    )
  return matching[0], factors


def fits(factors: merge.Factors, shape: tuple[int, ...]) -> bool:
  """Checks factors against the shape of a weight, [out, in (, kh, kw)]."""
  rank, *inputs = factors.down.shape
  outputs, *rest = factors.up.shape
  # A linear layer may be stored as a convolution of size one.
  plain = [*shape[1:], *[1] * (len(inputs) - len(shape) + 1)]
  ones = [1] * (len(rest) - 1)
  return outputs == shape[0] and inputs == plain and rest == [rank, *ones]


def read_alpha_settings(
  path: pathlib.Path, key_format: str, metadata: dict[str, str]
) -> dict[str, dict[str, Any]] | None:
  """Reads {net: settings of PEFT}, or None if the file has none.

  PEFT keeps the settings of one net in adapter_config.json; diffusers keeps
  those of several in the metadata of the file, as {net.name: value}.
  """
  config = path.parent / ADAPTER
  if key_format == 'peft' and config.is_file():
    settings = json.loads(config.read_text())
    return collections.defaultdict(lambda: settings)
  if 'lora_adapter_metadata' not in metadata:
    return None
  by_net = collections.defaultdict(dict)
  for name, value in json.loads(metadata['lora_adapter_metadata']).items():
    net, _, field = name.partition('.')
    by_net[net][field] = value
  return by_net


def alpha_of(
  settings: dict[str, dict[str, Any]], layer: tuple[str, str], rank: int
) -> np.float32 | None:
  """Returns the alpha of a (net, layer) by the settings of PEFT."""
  net, name = layer
  of_net = settings[net]
  if 'lora_alpha' not in of_net:
    return None
  # The first pattern that ends the layer's name wins, as in PEFT.
  patterns = of_net.get('alpha_pattern') or {}
  alpha = next(
    (v for k, v in patterns.items() if f'.{name}'.endswith(f'.{k}')),
    of_net['lora_alpha'],
  )
  if of_net.get('use_rslora'):  # which divides by the root of the rank
    alpha = alpha * rank**0.5
  return np.float32(alpha)


def parse(spec: str) -> tuple[str, float]:
  """Parses 'FILE' or 'FILE:WEIGHT' into (file, weight)."""
  file, colon, weight = spec.rpartition(':')
  try:
    return (file, float(weight)) if colon else (spec, 1.0)
  except ValueError:
    return spec, 1.0


def add(params: dict[str, Any], specs: Sequence[str]) -> dict[str, Any]:
  """Merges LoRA files, each as 'FILE' or 'FILE:WEIGHT', into parameters."""
  pairs = [parse(spec) for spec in specs]
  return merge.merge(params, [(load(file, params), w) for file, w in pairs])
