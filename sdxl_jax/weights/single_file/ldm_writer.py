"""Writes SDXL as one safetensors file, as ComfyUI and others read it."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sdxl_jax.models import vae
from sdxl_jax.weights import companions, pretrained, safetensors_file
from sdxl_jax.weights.diffusers import edm_config
from sdxl_jax.weights.single_file import (
  edm_markers,
  ldm_names,
  ldm_reader,
  open_nets,
  prediction_markers,
)

SPEC = ldm_reader.SPEC
Tensors = dict[str, safetensors_file.LazyTensor]


def tensors(model: pretrained.Model) -> Tensors:
  """Opens {original name: tensor} of a whole model.

  Raises:
    ValueError: for what single files have no names for.
  """
  if not isinstance(model.net('vae').config(), vae.VAEConfig):
    raise ValueError(
      f'the autoencoder of {model.path} is a TAESD, which single files of a '
      'whole model have no names for: write a diffusers folder'
    )
  converted = {}
  for component in model.index.components:
    prefix = ldm_names.PREFIXES[component]
    if model.index.refiner and component == 'text_encoder_2':
      prefix = ldm_names.REFINER_TEXT_ENCODER
    net = model.net(component)
    published = net.tensors()
    for key, names in open_nets.original_table(net).items():
      parts = [(published[name], transform) for name, transform in names]
      converted[prefix + key] = ldm_names.to_original(parts)
    positions = getattr(net.config(), 'max_position_embeddings', None)
    converted |= ldm_names.constants(prefix, component, positions)
  # Tensors mark the prediction type, most of them empty.
  empty = safetensors_file.from_array(np.zeros(0, np.float32))
  if edm_config.is_edm(model.scheduler):
    converted |= edm_markers.write(model)
  elif model.scheduler['prediction_type'] == 'v_prediction':
    converted[prediction_markers.V_TENSOR] = empty
    if model.scheduler.get('rescale_betas_zero_snr'):
      converted[prediction_markers.ZERO_SNR_TENSOR] = empty
  # Constants of a single file stay as they were stored.
  stored = {n: t for n, t in model.unused_tensors.items() if n in converted}
  return dict(sorted((converted | stored).items()))


def size(model: pretrained.Model, dtype: str | None = None) -> int:
  """Computes the bytes of the tensors that `save` writes."""
  return sum(safetensors_file.sizes(tensors(model), dtype).values())


def metadata(model: pretrained.Model, title: str) -> dict[str, str]:
  """Returns metadata: modelspec 1.0.0, and our configs.

  Raises:
    ValueError: if single files have no word for the prediction type.
  """
  predicted = model.scheduler.get('prediction_type', 'epsilon')
  is_edm = edm_config.is_edm(model.scheduler)
  words = prediction_markers.SPEC_WORDS
  if predicted not in words:
    raise ValueError(
      f'{model.path} predicts {predicted!r}, and a single file can express '
      f'only {" and ".join(words)}: write a diffusers folder'
    )
  configs = {
    'nets': {n: model.net(n).published for n in model.index.components},
    'index': vars(model.index),
    'scheduler': model.scheduler,
  }
  if model.added_tokens:
    configs['added_tokens'] = model.added_tokens
  # Metadata of the source stays, but for hashes, which no longer match.
  spec = {
    name: value
    for name, value in model.metadata.items()
    if name.startswith(SPEC) and not name.startswith(f'{SPEC}hash')
  }
  # modelspec has no word for continuous noise levels.
  prediction = {prediction_markers.SPEC: words[predicted]}
  if is_edm:
    spec.pop(prediction_markers.SPEC, None)
    prediction = {}
  scale = model.net('vae').config().downscale
  height, width = (side * scale for side in model.sample_size)
  kind = 'refiner' if model.index.refiner else 'base'
  return spec | {
    f'{SPEC}sai_model_spec': '1.0.0',
    f'{SPEC}architecture': f'stable-diffusion-xl-v1-{kind}',
    f'{SPEC}implementation': 'https://github.com/Stability-AI/'
    'generative-models',
    f'{SPEC}title': title or spec.get(f'{SPEC}title') or model.path.stem,
    f'{SPEC}resolution': f'{width}x{height}',
    **prediction,
    ldm_reader.OURS: json.dumps(configs, sort_keys=True),
  }


def notes(model: pretrained.Model) -> Iterator[str]:
  """Yields lines on facts that other programs do not read from the file."""
  config = model.net('vae').config()
  scaling = config.latents_mean, config.scaling_factor
  if scaling != (None, 0.13025) and not edm_config.is_edm(model.scheduler):
    yield (
      f'its latents are scaled by {config.scaling_factor}, and other programs '
      'assume 0.13025 for every SDXL file'
    )
  words = [t['content'] for ts in model.added_tokens.values() for t in ts]
  if words:
    words = companions.format_list(list(dict.fromkeys(words)))
    yield (
      f'its tokenizers have added tokens ({words}): they are in the metadata '
      'of the file, which other programs do not read'
    )


def save(
  path: str | pathlib.Path,
  model: pretrained.Model,
  dtype: str | None = None,
  title: str = '',
  watch: Callable[[int], Any] = lambda count: None,
) -> None:
  """Writes a whole model as one file; see safetensors_file.write."""
  pretrained.check_complete(model)
  safetensors_file.write(
    path, tensors(model), dtype, metadata(model, title), watch
  )
