"""SDXL as one safetensors file, as ComfyUI and others read and write it.

It has the original names (original.py), and no config: what shapes do not tell
comes from metadata of ours, from another model, or is as all published nets
have it. A file may also hold a single net, in the original or in diffusers'
names. What a net predicts is told as ComfyUI reads it, by empty tensors named
v_pred and ztsnr, and by modelspec's prediction_type.
"""

import functools
import json
import pathlib
import re

import numpy as np

from sdxl_jax.weights import infer_config, pretrained, safetensors_file
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.single_file import ldm_names

# (component, whether its names are the original ones, a name that it has, what
# may stand before its names)
PLACES = (
  ('unet', True, 'input_blocks.0.0.weight',
   (ldm_names.PREFIXES['unet'], 'diffusion_model.', '')),
  ('unet', False, 'conv_in.weight', ('unet.', '')),
  ('vae', True, 'decoder.mid.block_1.conv1.weight',
   (ldm_names.PREFIXES['vae'], 'vae.', '')),
  ('vae', False, 'decoder.mid_block.resnets.0.conv1.weight', ('vae.', '')),
  ('text_encoder', True, 'text_model.embeddings.token_embedding.weight',
   (ldm_names.PREFIXES['text_encoder'],)),
  ('text_encoder_2', True, 'token_embedding.weight',
   (ldm_names.PREFIXES['text_encoder_2'], ldm_names.REFINER_TOWER)),
)  # fmt: skip
# What belongs to no net, or is no part of it that runs.
EXTRAS = (
  r'v_pred|ztsnr|denoiser\.sigmas|model_ema\..*|.*\.position_ids|.*logit_scale'
)
OTHERS = {
  'cond_stage_model.': 'Stable Diffusion 1 or 2',
  'edm_': 'a net of continuous noise levels, such as Playground 2.5',
  'double_blocks.': 'Flux',
  'joint_blocks.': 'Stable Diffusion 3',
  'lora_': 'a LoRA, which goes on top of a model',
}
OURS = 'sdxl_jax'  # in the metadata: configs and scheduler, as JSON
SPEC = 'modelspec.'
# prediction_type of a scheduler_config.json, and modelspec's.
PREDICTIONS = {'epsilon': 'epsilon', 'v_prediction': 'v'}
ZERO_SNR = {'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}


def open_model(path, base=None):
  """The published.Model of a file; of its weights nothing is read.

  Args:
    path: of a safetensors file.
    base: Model whose configs tell what shapes do not.

  Raises:
    ValueError: for a broken file, or one that holds something else.
  """
  file = safetensors_file.load(path)
  told = read_ours(file)
  extras = {n: t for n, t in file.tensors.items() if re.fullmatch(EXTRAS, n)}
  rest = {n: t for n, t in file.tensors.items() if n not in extras}
  loaders, refiner = {}, None
  for component, is_original, prefix in find_parts(file.tensors):
    part = {n: t for n, t in rest.items() if n.startswith(prefix)}
    rest = {n: t for n, t in rest.items() if n not in part}
    config = told.get('nets', {}).get(component)
    if config is None and base is not None and component in base.loaders:
      config = base.net(component).published
    part = {n.removeprefix(prefix): t for n, t in part.items()}
    where = f'{path}, {component}'
    open_net = open_original if is_original else open_diffusers
    net = functools.cache(
      functools.partial(open_net, component, part, config, where)
    )
    loaders[component] = net
    if component == 'text_encoder_2':
      refiner = prefix == ldm_names.REFINER_TOWER
  if rest or not loaders:
    refuse(path, rest)
  index = None if refiner is None else read_index(file, told, refiner)
  scheduler = pretrained.SCHEDULER if index else {}
  return pretrained.Model(
    kind='a single file' if index else 'a file of ' + ' and '.join(loaders),
    path=pathlib.Path(path),
    loaders={n: loaders[n] for n in pretrained.COMPONENTS if n in loaders},
    index=index,
    scheduler=scheduler | told.get('scheduler', {}) | predictions(file),
    metadata=file.metadata,
    unused_tensors=extras,
  )


def find_parts(tensors):
  """[(component, whether its names are original, prefix)] of a file."""
  found = {}
  for component, is_original, signature, prefixes in PLACES:
    for prefix in prefixes:
      if prefix + signature in tensors and component not in found:
        found[component] = component, is_original, prefix
  # Of a net without prefix are all names that are of no other net.
  return sorted(found.values(), key=lambda part: not part[2])


def refuse(path, rest):
  """Raises ValueError for tensors that belong to no net of SDXL."""
  for name in rest:
    for beginning, what in OTHERS.items():
      if name.startswith(beginning):
        raise ValueError(f'{path} is not SDXL but {what}: it has {name}')
  raise ValueError(
    f'{path}: {len(rest)} tensors belong to no net of SDXL: '
    f'{tensor_names.format_list(sorted(rest))}'
  )


def read_ours(file):
  """What our metadata tell: {'nets': {name: config.json}, 'index', ...}."""
  try:
    told = json.loads(file.metadata.get(OURS, '{}'))
    parts = [told, *told.values(), *told.get('nets', {}).values()]
    fits = all(isinstance(part, dict) for part in parts)
    kind = told.get('scheduler', {}).get('prediction_type', '')
    fits = fits and isinstance(kind, str)
  except (ValueError, RecursionError, AttributeError):
    fits = False
  if not fits:
    raise ValueError(f'{file.path}: its metadata {OURS!r} are broken')
  return told


def read_index(file, told, refiner):
  """The ModelIndex of a whole model, which its second tower's place tells."""
  ours = vars(pretrained.ModelIndex(refiner, force_zeros=not refiner))
  index = told.get('index', ours)
  kinds = {name: type(value) for name, value in index.items()}
  if kinds != dict.fromkeys(ours, bool) or index['refiner'] != refiner:
    raise ValueError(
      f'{file.path}: its metadata {OURS!r} tell of another model'
    )
  return pretrained.ModelIndex(**index)


def predictions(file):
  """What keys and metadata tell of the scheduler_config.json."""
  spec = file.metadata.get(f'{SPEC}prediction_type')
  if 'v_pred' not in file.tensors and spec not in ('v', 'v_prediction'):
    return {}
  zero_snr = ZERO_SNR if 'ztsnr' in file.tensors else {}
  return {'prediction_type': 'v_prediction'} | zero_snr


def open_diffusers(component, part, told, where):
  """The Net of tensors with diffusers' names, of whatever age."""
  today = {
    tensor_names.canonical_name(name): tensor for name, tensor in part.items()
  }
  shape = lambda name: today[name].shape if name in today else None
  config = infer_config.published(component, shape, told, where)
  return pretrained.Net(component, config, where, lambda: part)


def open_original(component, part, told, where):
  """The Net of tensors with the original names."""
  layout = ldm_names.infer_block_layout(part)

  def shape(name):
    key, to_do = ldm_names.original(component, name, layout)
    return key in part and ldm_names.to_diffusers(part[key], to_do).shape

  config = infer_config.published(component, shape, told, where)
  net = pretrained.Net(component, config, where, None)
  read = functools.partial(read_original, component, part, net)
  return pretrained.Net(component, config, where, read)


def read_original(component, part, net):
  """{diffusers name: Tensor} of all that a net has."""
  table = original_table(net)
  tensor_names.check_leftovers(part, table)
  return {
    name: ldm_names.to_diffusers(part[key], to_do)
    for key, names_of in table.items()
    for name, to_do in names_of
  }


def original_table(net):
  """{original name: [(diffusers name, what to do)]} of a Net."""
  config = net.config()
  wanted = tensor_names.locations(tensor_names.flat(net.shapes(config)))
  return ldm_names.table(net.name, wanted, ldm_names.block_layout(config))


def tensors(model):
  """{original name: Tensor} of a whole model."""
  found = {}
  for component in model.index.components:
    prefix = ldm_names.PREFIXES[component]
    if model.index.refiner and component == 'text_encoder_2':
      prefix = ldm_names.REFINER_TOWER
    net = model.net(component)
    ours = net.tensors()
    for key, parts in original_table(net).items():
      parts = [(ours[name], to_do) for name, to_do in parts]
      found[prefix + key] = ldm_names.to_original(parts)
    positions = getattr(net.config(), 'max_position_embeddings', None)
    found |= ldm_names.extras(prefix, component, positions)
  empty = safetensors_file.from_array(np.zeros(0, np.float32))
  if model.scheduler['prediction_type'] == 'v_prediction':
    found['v_pred'] = empty
    if model.scheduler.get('rescale_betas_zero_snr'):
      found['ztsnr'] = empty
  kept = {n: t for n, t in model.unused_tensors.items() if n in found}
  return dict(sorted((found | kept).items()))


def size(model, dtype=None):
  """Bytes of the tensors that `save` writes."""
  return sum(safetensors_file.sizes(tensors(model), dtype).values())


def metadata(model, title):
  """modelspec 1.0.0, and what only we read."""
  predicted = model.scheduler['prediction_type']
  if predicted not in PREDICTIONS:
    raise ValueError(
      f'{model.path} predicts {predicted!r}, and a single file can tell only '
      f'{" and ".join(PREDICTIONS)}: write a diffusers folder'
    )
  nets = {n: model.net(n).published for n in model.index.components}
  side = model.sample_size * model.net('vae').config().downscale
  ours = {
    'nets': nets,
    'index': vars(model.index),
    'scheduler': model.scheduler,
  }
  told = {
    name: value
    for name, value in model.metadata.items()
    if name.startswith(SPEC) and not name.startswith(f'{SPEC}hash')
  }
  kind = 'refiner' if model.index.refiner else 'base'
  return told | {
    f'{SPEC}sai_model_spec': '1.0.0',
    f'{SPEC}architecture': f'stable-diffusion-xl-v1-{kind}',
    f'{SPEC}implementation': 'https://github.com/Stability-AI/'
    'generative-models',
    f'{SPEC}title': title or told.get(f'{SPEC}title') or model.path.stem,
    f'{SPEC}resolution': f'{side}x{side}',
    f'{SPEC}prediction_type': PREDICTIONS[predicted],
    OURS: json.dumps(ours, sort_keys=True),
  }


def notes(model):
  """Lines on what others will not read of the file as it is."""
  config = model.net('vae').config()
  if config.latents_mean or config.scaling_factor != 0.13025:
    yield (
      f'its latents are scaled by {config.scaling_factor}, and other programs '
      'take 0.13025 for every SDXL file'
    )


def save(path, model, dtype=None, title='', watch=lambda count: None):
  """Writes a whole model as one file; see tensor_file.write."""
  pretrained.check_complete(model)
  told = metadata(model, title)
  safetensors_file.write(path, tensors(model), dtype, told, watch)
