"""Reads SDXL from one safetensors file, as ComfyUI and others write it.

Such a file has the original names (see ldm_names) and no config. Facts that
cannot be inferred from shapes come from metadata that this project writes, from
another model, or are those of all published nets. A file may also hold a single
net, in the original or in diffusers' names. The prediction type is stored as
ComfyUI reads it, by empty tensors named v_pred and ztsnr, and as modelspec's
prediction_type.
"""

import functools
import json
import pathlib
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from sdxl_jax.weights import (
  infer_config,
  pretrained,
  read_options,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.single_file import ldm_names


class NetKeys(NamedTuple):
  """The names by which a net is detected in a file."""

  component: str
  is_original: bool  # or in diffusers' names
  signature: str  # a tensor that the net always has
  prefixes: tuple[str, ...]  # that its names may have


KNOWN_NETS = (
  NetKeys(
    'unet',
    True,
    'input_blocks.0.0.weight',
    (ldm_names.PREFIXES['unet'], 'diffusion_model.', ''),
  ),
  NetKeys('unet', False, 'conv_in.weight', ('unet.', '')),
  NetKeys(
    'vae',
    True,
    'decoder.mid.block_1.conv1.weight',
    (ldm_names.PREFIXES['vae'], 'vae.', ''),
  ),
  NetKeys(
    'vae', False, 'decoder.mid_block.resnets.0.conv1.weight', ('vae.', '')
  ),
  NetKeys(
    'text_encoder',
    True,
    'text_model.embeddings.token_embedding.weight',
    (ldm_names.PREFIXES['text_encoder'],),
  ),
  NetKeys(
    'text_encoder_2',
    True,
    'token_embedding.weight',
    (ldm_names.PREFIXES['text_encoder_2'], ldm_names.REFINER_TEXT_ENCODER),
  ),
)
# Tensors that belong to no net, or are not used when it runs.
UNUSED = (
  r'v_pred|ztsnr|denoiser\.sigmas|model_ema\..*|.*\.position_ids|.*logit_scale'
)
# Other models, by the beginning of a name.
OTHERS = {
  'cond_stage_model.': 'Stable Diffusion 1 or 2',
  'edm_': 'a net of continuous noise levels, such as Playground 2.5',
  'double_blocks.': 'Flux',
  'joint_blocks.': 'Stable Diffusion 3',
  'lora_': 'a LoRA, which goes on top of a model',
}
OURS = 'sdxl_jax'  # metadata key of our configs and scheduler, as JSON
SPEC = 'modelspec.'
Tensors = dict[str, safetensors_file.LazyTensor]


def open_model(
  path: str | pathlib.Path,
  base: pretrained.Model | None = None,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens a file and reads no tensor data.

  Args:
    path: of a safetensors file.
    base: whose configs complete what shapes do not determine.
    options: what the user decided.

  Raises:
    ValueError: if the file is broken, or holds another model.
  """
  file = safetensors_file.load(path)
  saved = read_our_metadata(file)
  unused = {n: t for n, t in file.tensors.items() if re.fullmatch(UNUSED, n)}
  rest = {n: t for n, t in file.tensors.items() if n not in unused}
  # Give each net the tensors with its prefix.
  loaders, refiner = {}, None
  for component, is_original, prefix in find_nets(file.tensors):
    part = {n: t for n, t in rest.items() if n.startswith(prefix)}
    rest = {n: t for n, t in rest.items() if n not in part}
    config = saved.get('nets', {}).get(component)
    if config is None and base is not None and component in base.loaders:
      config = base.net(component).published
    part = {n.removeprefix(prefix): t for n, t in part.items()}
    open_net = open_original if is_original else open_diffusers
    loaders[component] = functools.cache(
      functools.partial(
        open_net, component, part, config, f'{path}, {component}'
      )
    )
    if component == 'text_encoder_2':
      refiner = prefix == ldm_names.REFINER_TEXT_ENCODER
  if rest or not loaders:
    raise ValueError(explain_leftovers(path, rest))
  # Only a file with the second text encoder is a whole model.
  index = None if refiner is None else read_index(file, saved, refiner)
  scheduler = saved.get('scheduler', {}) | read_prediction_type(file)
  kind = 'a file of ' + ' and '.join(loaders)
  return pretrained.Model(
    kind='a single file' if index else kind,
    path=pathlib.Path(path),
    loaders={n: loaders[n] for n in pretrained.COMPONENTS if n in loaders},
    index=index,
    scheduler=(pretrained.SCHEDULER if index else {}) | scheduler,
    metadata=file.metadata,
    unused_tensors=unused,
  )


def find_nets(names: Collection[str]) -> list[tuple[str, bool, str]]:
  """Detects the nets in a file: [(component, is_original, prefix)]."""
  nets = {}
  # Longer prefixes come first: any name starts with the empty one.
  for component, is_original, signature, prefixes in KNOWN_NETS:
    for prefix in prefixes:
      if prefix + signature in names and component not in nets:
        nets[component] = component, is_original, prefix
  # A net without prefix comes last and gets all names that are left.
  return sorted(nets.values(), key=lambda net: not net[2])


def explain_leftovers(path: str | pathlib.Path, rest: Collection[str]) -> str:
  """Describes tensors that belong to no net of SDXL."""
  for name in rest:
    for beginning, model in OTHERS.items():
      if name.startswith(beginning):
        return f'{path} is not SDXL but {model}: it has {name}'
  return (
    f'{path}: {len(rest)} tensors belong to no net of SDXL: '
    f'{tensor_names.format_list(sorted(rest))}'
  )


def read_our_metadata(file: safetensors_file.TensorFile) -> dict[str, Any]:
  """Reads our metadata: {'nets': {name: config.json}, 'index', 'scheduler'}."""
  try:
    saved = json.loads(file.metadata.get(OURS, '{}'))
    parts = [saved, *saved.values(), *saved.get('nets', {}).values()]
    prediction = saved.get('scheduler', {}).get('prediction_type', '')
    is_valid = all(isinstance(part, dict) for part in parts)
    is_valid = is_valid and isinstance(prediction, str)
  except (ValueError, RecursionError, AttributeError):
    is_valid = False
  if not is_valid:
    raise ValueError(f'{file.path}: its metadata {OURS!r} is corrupt')
  return saved


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


def read_prediction_type(file: safetensors_file.TensorFile) -> dict[str, Any]:
  """Reads the fields of scheduler_config.json from keys and modelspec."""
  spec = file.metadata.get(f'{SPEC}prediction_type')
  if 'v_pred' not in file.tensors and spec not in ('v', 'v_prediction'):
    return {}
  zero_snr = read_options.ZERO_SNR if 'ztsnr' in file.tensors else {}
  return {'prediction_type': 'v_prediction'} | zero_snr


def open_diffusers(
  component: str,
  part: Tensors,
  known_config: dict[str, Any] | None,
  location: str,
) -> pretrained.Net:
  """Opens a net with diffusers' names, of an older or newer library."""
  shapes = {
    tensor_names.canonical_name(name): tensor.shape
    for name, tensor in part.items()
  }
  config = infer_config.infer_config_json(
    component, shapes.get, known_config, location
  )
  return pretrained.Net(component, config, location, lambda: part)


def open_original(
  component: str,
  part: Tensors,
  known_config: dict[str, Any] | None,
  location: str,
) -> pretrained.Net:
  """Opens a net with the original names."""
  layout = ldm_names.infer_block_layout(part)

  def shape(name):
    key, transform = ldm_names.original(component, name, layout)
    return transform.to_diffusers(part[key]).shape if key in part else None

  config = infer_config.infer_config_json(
    component, shape, known_config, location
  )
  # Which tensors to read follows from the config of the net itself.
  net = pretrained.Net(component, config, location, None)
  read = functools.partial(read_original, part, net)
  return pretrained.Net(component, config, location, read)


def read_original(part: Tensors, net: pretrained.Net) -> Tensors:
  """Opens {diffusers name: tensor} of a net with the original names."""
  table = original_table(net)
  tensor_names.check_leftovers(part, table)
  return {
    name: transform.to_diffusers(part[key])
    for key, names in table.items()
    for name, transform in names
  }


def original_table(
  net: pretrained.Net,
) -> dict[str, list[tuple[str, ldm_names.Transform]]]:
  """Returns {original name: [(diffusers name, transform)]} of a net."""
  config = net.config()
  names = tensor_names.locations(tensor_names.flat(net.shapes(config)))
  return ldm_names.table(net.name, names, ldm_names.block_layout(config))
