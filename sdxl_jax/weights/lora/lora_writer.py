"""Writes low-rank factors as LoRA files in all key formats of `lora_names`."""

import collections
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.lora import alphas, deltas, lora_names, merge


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
  names = lora_names.names_by_net(merge.kernels_of(params))
  layout = lora_names.unet_block_layout(names['unet'])
  # Name the tensors.
  arrays = {}
  for (net, layer), factors in lora.factors.items():
    prefix = lora_names.key_prefix(key_format, net, layer, layout)
    if key_format.startswith('diffusers'):
      factors = fold_scale(factors)
    for part in ('down', 'up'):
      suffix = lora_names.key_suffix(key_format, net, part)
      arrays[prefix + suffix] = cast(getattr(factors, part), dtype)
    if key_format.startswith('kohya') and factors.alpha is not None:
      arrays[f'{prefix}.alpha'] = cast(factors.alpha, dtype)
  # Metadata of the source stays if its key format does.
  source = lora.metadata if key_format == lora.key_format else {}
  metadata = describe(key_format, lora) | source | (metadata or {})
  metadata.pop(alphas.METADATA, None)  # alpha is in the tensors now
  tensors = {n: safetensors_file.from_array(x) for n, x in arrays.items()}
  with atomic_write.atomic_path(path, overwrite) as partial:
    safetensors_file.write(partial, tensors, metadata=metadata)
  if key_format == 'peft':
    config = json.dumps(adapter_config(lora), indent=2)
    atomic_write.write_text(path.parent / alphas.CONFIG, config + '\n')


def check_key_format(key_format: str, lora: merge.Lora) -> None:
  """Raises ValueError if a key format is unknown or cannot hold the factors."""
  if key_format not in lora_names.KEY_FORMATS:
    raise ValueError(
      f'dialect is {key_format!r}; choose one of {lora_names.KEY_FORMATS}'
    )
  if lora.others:
    net, name = next(iter(lora.others))
    raise ValueError(
      f'{len(lora.others)} tensors are changed in other ways than by low-rank '
      f'factors of a weight, the first is {net}.{name}, and a LoRA file is '
      'written of such factors alone: merge the file into a model with --lora'
    )
  nets = sorted({net for net, _ in lora.factors})
  if key_format == 'peft' and len(nets) > 1:
    raise ValueError(
      f'PEFT keeps one net in a file, and these factors are of {nets}: choose '
      "the dialect 'diffusers', which has the same names for several"
    )


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
  """Casts an array; None: leaves it as it is."""
  array = np.asarray(array)
  return array if dtype is None else array.astype(jnp.dtype(dtype))


def fold_scale(factors: deltas.Factors) -> deltas.Factors:
  """Multiplies the scale into `up`, which makes alpha = r."""
  if factors.scale == 1:
    return factors._replace(alpha=None)
  up = (np.float32(factors.up) * factors.scale).astype(factors.up.dtype)
  return deltas.Factors(factors.down, up)


def describe(key_format: str, lora: merge.Lora) -> dict[str, str]:
  """Returns the metadata by which other programs recognise a file."""
  if not key_format.startswith('kohya'):
    return {'format': 'pt'}
  ranks = {len(f.down) for f in lora.factors.values()}
  scaled = {f.scale * len(f.down) for f in lora.factors.values()}
  return {
    'ss_network_module': 'networks.lora',
    'ss_network_dim': one_or_dynamic(ranks),
    'ss_network_alpha': one_or_dynamic(scaled),
    'ss_base_model_version': 'sdxl_base_v1-0',
    'ss_v2': 'False',
    'modelspec.sai_model_spec': '1.0.0',
    'modelspec.architecture': 'stable-diffusion-xl-v1-base/lora',
    'modelspec.implementation': (
      'https://github.com/Stability-AI/generative-models'
    ),
  }


def one_or_dynamic(values: set[int] | set[float]) -> str:
  """Formats the value of all layers; 'Dynamic' where layers differ."""
  return f'{min(values):g}' if len(values) == 1 else 'Dynamic'


def adapter_config(lora: merge.Lora) -> dict[str, Any]:
  """Returns PEFT's adapter_config.json for the factors of one net."""
  ranks, scaled = {}, {}
  for (_, layer), factors in lora.factors.items():
    ranks[layer] = len(factors.down)
    scaled[layer] = factors.scale * len(factors.down)
  rank, alpha = most_common(ranks), most_common(scaled)
  return {
    'peft_type': 'LORA',
    'r': rank,
    'lora_alpha': alpha,
    'rank_pattern': {n: r for n, r in ranks.items() if r != rank},
    'alpha_pattern': {n: a for n, a in scaled.items() if a != alpha},
    'target_modules': list(ranks),
    'lora_dropout': 0.0,
    'bias': 'none',
  }


def most_common(values: dict[str, Any]) -> Any:
  """Returns the value that most layers have."""
  return collections.Counter(values.values()).most_common(1)[0][0]
