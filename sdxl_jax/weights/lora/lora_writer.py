"""Writes changes of weights as LoRA files, in all formats of `lora_names`."""

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.lora import (
  alphas,
  deltas,
  file_metadata,
  lora_names,
  merge,
  peft_config,
  published_parts,
)

# The kinds that a key format has names for; those of kohya have all.
DORA = f'LoRA{published_parts.DORA}'
HELD = {
  'diffusers': ('LoRA', DORA),
  'diffusers_old': ('LoRA',),
  'peft': ('LoRA', DORA, 'LoHa', 'LoKr'),
}


def save(
  path: str | pathlib.Path,
  lora: merge.Lora,
  params: dict[str, Any],
  key_format: str | None = None,
  dtype: str | None = None,
  metadata: dict[str, str] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a LoRA file atomically.

  Args:
    path: of the file; 'peft' also writes adapter_config.json next to it.
    lora: to write.
    params: {net: parameters, or their shapes} of its base model.
    key_format: one of lora_names.KEY_FORMATS; default: that of `lora`. Those of
      diffusers have no alpha: the scale is multiplied into `up`.
    dtype: 'float32', 'float16' or 'bfloat16'; default: the stored one.
    metadata: {name: text} in addition to that of the key format.
    overwrite: whether to replace an existing file.
  """
  path, key_format = pathlib.Path(path), key_format or lora.key_format
  check_key_format(key_format, lora)
  config = None
  if key_format == 'peft':
    config = peft_config.make(lora, weight_shapes(params))
  arrays = {
    name: cast(array, dtype)
    for name, array in name_arrays(lora, params, key_format).items()
  }
  # Metadata of the source stays if its key format does.
  source = lora.metadata if key_format == lora.key_format else {}
  metadata = (
    file_metadata.describe(key_format, lora) | source | (metadata or {})
  )
  metadata.pop(alphas.METADATA, None)  # alpha is in the tensors now
  if key_format.startswith('kohya'):
    metadata |= file_metadata.hashes(arrays, metadata)
  tensors = {n: safetensors_file.from_array(x) for n, x in arrays.items()}
  with atomic_write.atomic_path(path, overwrite) as partial:
    safetensors_file.write(partial, tensors, metadata=metadata)
  if config:
    text = json.dumps(config, indent=2)
    atomic_write.write_text(path.parent / alphas.CONFIG, text + '\n')


def weight_shapes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns {published layer: shape of its weight} of all nets."""
  kernels = merge.kernels_of(params)
  return {name: location.shape for (_, name), location in kernels.items()}


def name_arrays(
  lora: merge.Lora, params: dict[str, Any], key_format: str
) -> dict[str, np.ndarray]:
  """Returns {name: array} of all changes, in a key format.

  Args:
    lora: the changes.
    params: {net: parameters, or their shapes} of their base model.
    key_format: one of lora_names.KEY_FORMATS.
  """
  locations, arrays = merge.tensors_of(params), {}
  names = lora_names.names_by_net(merge.kernels_of(params))
  layout = lora_names.unet_block_layout(names['unet'])
  is_kohya = key_format.startswith('kohya')
  for (net, tensor), delta in lora.changes().items():
    layer, _, leaf = tensor.rpartition('.')
    prefix = lora_names.key_prefix(key_format, net, layer, layout)
    ndim = len(locations[net, f'{layer}.weight'].shape)
    if key_format.startswith('diffusers'):
      delta = fold_scale(delta)
    for part, array in published_parts.parts_of(delta).items():
      if not is_kohya:
        array = published_parts.shape_for_peft(part, array)
      if is_kohya or part != 'alpha':
        part = published_parts.named_part(part, leaf, ndim)
        end = published_parts.suffix(key_format, net, part)
        arrays[prefix + end] = array
  return arrays


def check_key_format(key_format: str, lora: merge.Lora) -> None:
  """Raises ValueError if a key format is unknown or cannot hold the factors."""
  if key_format not in lora_names.KEY_FORMATS:
    raise ValueError(
      f'dialect is {key_format!r}; choose one of {lora_names.KEY_FORMATS}'
    )
  held = HELD.get(key_format)
  missing = {
    name: kind
    for name, kind in kinds_of(lora).items()
    if held is not None and kind not in held
  }
  if missing:
    net, name = next(iter(missing))
    raise ValueError(
      f'{len(missing)} tensors are changed in other ways than {key_format} has '
      f'names for, by {" and ".join(sorted(set(missing.values())))}; the first '
      f'is {net}.{name}: choose the dialect kohya, which has all, or merge the '
      'file into a model with --lora'
    )
  nets = sorted({net for net, _ in lora.changes()})
  if key_format == 'peft' and len(nets) > 1:
    raise ValueError(
      f'PEFT keeps one net in a file, and these factors are of {nets}: choose '
      "the dialect 'diffusers', which has the same names for several"
    )


def kinds_of(lora: merge.Lora) -> dict[tuple[str, str], str]:
  """Returns {(net, tensor): kind}, of DoRA with what no other program has."""
  kinds = {}
  for (net, name), delta in lora.changes().items():
    kinds[net, name] = published_parts.kind_of(delta)
    if published_parts.is_of_inputs(delta):
      kinds[net, name] += ' of inputs'
    if name.endswith('.bias'):
      kinds[net, name] += ' of biases'
  return kinds


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
  """Casts an array; None: leaves it as it is."""
  array = np.asarray(array)
  return array if dtype is None else array.astype(jnp.dtype(dtype))


def fold_scale(delta: deltas.Delta) -> deltas.Delta:
  """Multiplies the scale of factors into `up`, which makes alpha = r."""
  if isinstance(delta, deltas.Decomposed):
    return dataclasses.replace(delta, direction=fold_scale(delta.direction))
  if delta.scale == 1:
    return delta._replace(alpha=None)
  up = (np.float32(delta.up) * delta.scale).astype(delta.up.dtype)
  return deltas.Factors(delta.down, up)
