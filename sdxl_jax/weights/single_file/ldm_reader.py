"""Reads SDXL from one file, as ComfyUI and others write it.

Such a file has the original names (see ldm_names) and no config. Facts that
cannot be inferred from shapes come from metadata that this project writes, from
another model, or are those of all published nets. A file may also hold only
some of the nets, each in the original or in diffusers' names and with a prefix
or without. What the UNet predicts is marked as prediction_markers and
edm_markers describe.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from sdxl_jax.weights import (
  companions,
  pretrained,
  read_options,
  safetensors_file,
  tensor_files,
)
from sdxl_jax.weights.diffusers import edm_config, spellings
from sdxl_jax.weights.single_file import (
  edm_markers,
  find_nets,
  open_nets,
  other_models,
  prediction_markers,
  tiny_names,
)

# Tensors that mark what the UNet predicts.
MARKERS = (
  prediction_markers.V_TENSOR,
  prediction_markers.ZERO_SNR_TENSOR,
  *edm_markers.NAMES,
)
# Tensors that sgm's loader requires.
CONSTANTS = r'.*\.position_ids|.*logit_scale'
OURS = 'sdxl_jax'  # metadata key of our configs and scheduler, as JSON
SPEC = 'modelspec.'
Tensors = dict[str, safetensors_file.LazyTensor]


def open_model(
  path: str | pathlib.Path,
  base: pretrained.Model | None = None,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens a file and reads of its tensors only small ones that mark facts.

  Args:
    path: of a safetensors file, or of a state dict of PyTorch.
    base: whose configs complete what shapes do not determine.
    options: what the user decided.

  Raises:
    ValueError: if the file is broken, or holds another model.
  """
  file = tensor_files.open_file(path)
  check_not_shard(pathlib.Path(path))
  if tiny_names.is_tiny(file.tensors):
    return tiny_names.open_model(file)
  file = unwrap(file)
  tensors = file.tensors
  other_models.check_is_sdxl(tensors, f'{path}')
  marks = edm_markers.read(tensors, f'{path}')
  saved = read_our_metadata(file)
  # Find the nets; what is left must change nothing.
  markers = {n: t for n, t in tensors.items() if n in MARKERS}
  others = {n: t for n, t in tensors.items() if n not in markers}
  try:
    companions.check_not_quantised(others)
    nets, rest = find_nets.find_nets(others, functools.partial(like, base))
    passed_over = check_rest(rest, bool(nets), options.skip_unsupported)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  saved_configs = saved.get('nets', {})
  loaders = {
    net.component: make_loader(net, saved_configs, base, f'{path}', options)
    for net in nets
  }
  if 'vae' in loaders and 'vae' not in saved_configs:
    loaders['vae'] = edm_markers.with_latents(loaders['vae'], marks.latents)
  index = None
  if {'unet', 'text_encoder_2'} <= set(loaders):  # a whole model
    index = read_index(file, saved, is_refiner(nets))
  predicted = prediction_markers.read(file, options.prediction is not None)
  stored = saved.get('scheduler', {})
  scheduler = stored | predicted.scheduler | marks.scheduler
  # Marks have nothing of how their net is sampled.
  if edm_markers.is_of(stored, marks.scheduler):
    scheduler = stored
  kind = 'a file of ' + ' and '.join(loaders)
  constants = {n: t for n, t in tensors.items() if re.fullmatch(CONSTANTS, n)}
  return pretrained.Model(
    kind='a single file' if index else kind,
    path=pathlib.Path(path),
    loaders={n: loaders[n] for n in pretrained.COMPONENTS if n in loaders},
    index=index,
    scheduler=edm_config.join(pretrained.SCHEDULER if index else {}, scheduler),
    added_tokens=saved.get('added_tokens', {}),
    metadata=file.metadata,
    unused_tensors=constants | markers,
    passed_over=passed_over,
    notes=predicted.notes,
  )


def make_loader(
  net: find_nets.FoundNet,
  saved_configs: dict[str, Any],
  base: pretrained.Model | None,
  path: str,
  options: read_options.ReadOptions,
) -> Callable[[], pretrained.Net]:
  """Makes the function that opens a net when it is first needed.

  Args:
    net: with its tensors.
    saved_configs: {component: config.json} of our metadata.
    base: whose config is taken where there is no saved one.
    path: of the file, for errors.
    options: what the user decided.
  """
  name = net.component
  config = saved_configs.get(name)
  if config is None and base is not None and name in base.loaders:
    config = base.net(name).published
  return functools.cache(
    functools.partial(
      open_nets.open_net,
      net,
      config,
      f'{path}, {name}',
      options.skip_unsupported,
    )
  )


def check_not_shard(path: pathlib.Path) -> None:
  """Raises ValueError for the file of one part of a net, by its name."""
  parts = re.search(r'-\d+-of-(\d+)(?=\.)', path.name)
  if parts and int(parts[1]) > 1:
    raise ValueError(
      f'{path} is one of {int(parts[1])} files of one net: pass the folder '
      f'that they are in, {path.parent}, with the config.json of the net'
    )


def unwrap(file: safetensors_file.TensorFile) -> safetensors_file.TensorFile:
  """Renames tensors: without the names of modules that wrap others."""
  try:
    tensors = spellings.collect(
      (spellings.unwrap(name), dataclasses.replace(tensor, name=name))
      for name, tensor in file.tensors.items()
    )
  except ValueError as error:
    raise ValueError(f'{file.path}: {error}') from None
  return dataclasses.replace(file, tensors=tensors)


def check_rest(
  rest: Tensors, has_nets: bool, skip_unsupported: bool
) -> tuple[str, ...]:
  """Checks tensors that belong to no net; returns their names in the file.

  Raises:
    ValueError: if one of them is unknown or would change the image, or if the
      file has no net.
  """
  names = sorted(tensor.name for tensor in rest.values())
  found = companions.classify(names)
  if not found.quantised and (found.unknown or not has_nets):
    unknown = found.unknown or names
    remedy = 'It is no model of SDXL, nor a net of one: pass another file'
    if has_nets:
      remedy = (
        'Whether they change the image is not known: use a file without them'
      )
    raise ValueError(
      f'{companions.count(unknown)} of no net of SDXL: '
      f'{companions.format_list(unknown)}. {remedy}'
    )
  companions.check(found, skip_unsupported)
  return tuple(names)


def like(base: pretrained.Model | None, width: int) -> str | None:
  """Returns the text encoder of a model that is as wide, or None."""
  if base is None:
    return None
  widths = {
    name: base.net(name).config().hidden_size
    for name in pretrained.TOKENIZERS
    if name in base.loaders
  }
  alike = [name for name in widths if widths[name] == width]
  return alike[0] if len(alike) == 1 else None


def is_refiner(nets: list[find_nets.FoundNet]) -> bool:
  """Checks whether the UNet reads the second text encoder alone."""
  by_name = {net.component: net for net in nets}
  second = by_name['text_encoder_2']
  if 'text_encoder' in by_name:
    return False
  if second.prefix.startswith('conditioner.'):
    return second.prefix.startswith(find_nets.FIRST_EMBEDDER)
  # A prefix of ComfyUI leaves it open whether a file lacks the first one.
  widths = {
    kind: {
      tensor.shape[-1]
      for name, tensor in by_name[component].tensors.items()
      if name.endswith(suffix) and tensor.shape
    }
    for kind, component, suffix in (
      ('context', 'unet', 'attn2.to_k.weight'),
      ('text', 'text_encoder_2', 'token_embedding.weight'),
    )
  }
  return widths['context'] == widths['text']


def read_our_metadata(file: safetensors_file.TensorFile) -> dict[str, Any]:
  """Reads our metadata as a dict.

  It has 'nets', {name: config.json}; 'index'; 'scheduler'; and 'added_tokens',
  see pretrained.Model.
  """
  try:
    saved = json.loads(file.metadata.get(OURS, '{}'))
    parts = [saved, *saved.values(), *saved.get('nets', {}).values()]
    prediction = saved.get('scheduler', {}).get('prediction_type', '')
    is_valid = all(isinstance(part, dict) for part in parts)
    is_valid = is_valid and isinstance(prediction, str)
    for tokens in saved.get('added_tokens', {}).values():
      is_valid = is_valid and all(map(is_token, tokens))
  except (ValueError, RecursionError, AttributeError, TypeError):
    is_valid = False
  if not is_valid:
    raise ValueError(f'{file.path}: its metadata {OURS!r} is corrupt')
  return saved


def is_token(value: Any) -> bool:
  """Whether a JSON value describes an added token."""
  types = {name: type(entry) for name, entry in value.items()}
  id_type, text = types.pop('id', None), types.pop('content', None)
  return (id_type, text) == (int, str) and set(types.values()) <= {bool}


def read_index(
  file: safetensors_file.TensorFile, saved: dict[str, Any], refiner: bool
) -> pretrained.ModelIndex:
  """Reads the index of a whole model; the prefixes decide on `refiner`."""
  default = vars(pretrained.ModelIndex(refiner, force_zeros=not refiner))
  index = saved.get('index', default)
  types = {name: type(value) for name, value in index.items()}
  if types != dict.fromkeys(default, bool) or index['refiner'] != refiner:
    raise ValueError(
      f'{file.path}: its metadata {OURS!r} describes another model'
    )
  return pretrained.ModelIndex(**index)
