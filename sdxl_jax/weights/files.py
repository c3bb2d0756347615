"""Read and write SDXL as a folder in the diffusers layout, base or refiner.

  DIR/model_index.json            which model, which components
  DIR/unet/config.json            and weights, as one or several safetensors
  DIR/vae  text_encoder  text_encoder_2  scheduler  tokenizer  tokenizer_2

Tensors pass one at a time, so that the host needs memory for the tree and one
tensor more.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from sdxl_jax.models import clip, unet, vae
from sdxl_jax.weights import config_json, names

# Components and the stem of their files' names.
STEMS = {
  'unet': 'diffusion_pytorch_model',
  'vae': 'diffusion_pytorch_model',
  'text_encoder': 'model',
  'text_encoder_2': 'model',
}
LIBRARIES = {
  'unet': ('diffusers', 'UNet2DConditionModel'),
  'vae': ('diffusers', 'AutoencoderKL'),
  'text_encoder': ('transformers', 'CLIPTextModel'),
  'text_encoder_2': ('transformers', 'CLIPTextModelWithProjection'),
  'tokenizer': ('transformers', 'CLIPTokenizer'),
  'tokenizer_2': ('transformers', 'CLIPTokenizer'),
}
# What a variant of the weights is stored in.
VARIANTS = {'fp16': 'float16', 'bf16': 'bfloat16'}
DTYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}
MAX_SHARD_BYTES = 10 * 10**9  # as diffusers splits


@dataclasses.dataclass(frozen=True)
class ModelIndex:
  """What model_index.json says of the model."""

  refiner: bool  # one text tower, and an aesthetic score for the target size
  force_zeros: bool  # zeros instead of an encoded '' without negative prompt

  @property
  def components(self):
    """Names of the nets that the folder holds."""
    return [n for n in STEMS if n != 'text_encoder' or not self.refiner]


def load_model_index(folder):
  """The ModelIndex of a diffusers folder."""
  path = pathlib.Path(folder) / 'model_index.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is not there: give a folder in the diffusers layout, which has '
      'model_index.json and a folder for each component'
    )
  index = read_json(path)
  pipeline = index.get('_class_name', 'thing without _class_name')
  if not pipeline.startswith('StableDiffusionXL'):
    raise ValueError(f'{path} describes a {pipeline}, not an SDXL model')
  return ModelIndex(
    refiner=index.get('requires_aesthetics_score', False),
    force_zeros=index.get('force_zeros_for_empty_prompt', True),
  )


def load_scheduler(folder):
  """scheduler_config.json as a dict."""
  return read_json(pathlib.Path(folder) / 'scheduler' / 'scheduler_config.json')


def load_sample_size(folder):
  """Side in latents of the pictures that the UNet was made for."""
  config = read_json(pathlib.Path(folder) / 'unet' / 'config.json')
  return config.get('sample_size', 128)


def load_config(folder, name, **fields):
  """The config of a component, with some of its fields replaced."""
  where = pathlib.Path(folder) / name / 'config.json'
  config = config_json.read(name, read_json(where), where)
  return dataclasses.replace(config, **fields)


def load_component(folder, name, variant=None, place=names.keep, **fields):
  """(config, params) of 'unet', 'vae', 'text_encoder' or 'text_encoder_2'.

  `fields` replace fields of the config: dtype, param_dtype (to which tensors
  are cast as they are read), scan_blocks, attention, remat. Params are what
  `place(path, array)` makes of each numpy array once it is read. Without
  `variant` the plain file is read, else the fp16 one.
  """
  path = pathlib.Path(folder) / name
  config = load_config(folder, name, **fields)
  target = abstract_params(config)
  with contextlib.ExitStack() as stack:
    owners = {}
    for file in weight_files(path, STEMS[name], variant):
      tensors = stack.enter_context(open_tensors(file))
      owners |= dict.fromkeys(tensors.keys(), tensors)
    read = lambda tensor: owners[tensor].get_tensor(tensor)
    try:
      params = names.from_published(list(owners), read, target, place)
    except ValueError as error:
      raise ValueError(f'{path}: {error}') from None
  return config, params


@functools.cache  # tracing a net takes seconds
def abstract_params(config):
  """The tree of shapes and dtypes of the net that a config describes."""
  if isinstance(config, unet.UNetConfig):
    inputs = (
      jnp.zeros((1, 8, 8, config.in_channels)),
      jnp.zeros(1),
      jnp.zeros((1, 77, config.context_dim)),
      jnp.zeros((1, config.vector_dim)),
    )
    net = unet.UNet(config)
  elif isinstance(config, clip.CLIPTextConfig):
    ids = jnp.zeros((1, config.max_position_embeddings), jnp.int32)
    inputs, net = (ids,), clip.CLIPText(config)
  else:
    inputs = (jnp.zeros((1, 64, 64, config.in_channels)),)
    net = vae.make_vae(config)
  return jax.eval_shape(net.init, jax.random.key(0), *inputs).get('params', {})


def read_json(path):
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is not there: the folder is not whole, copy it again'
    )
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON ({error}): copy it again') from error


def weight_files(folder, stem, variant=None):
  """The safetensors of a component: one file, or all shards of an index."""
  looked_for = []
  for tag in [f'.{variant}'] if variant else ['', '.fp16']:
    single = folder / f'{stem}{tag}.safetensors'
    index = folder / f'{stem}.safetensors.index{tag}.json'
    if single.is_file():
      return [single]
    if index.is_file():
      shards = set(read_json(index)['weight_map'].values())
      return [folder / shard for shard in sorted(shards)]
    looked_for += [single.name, index.name]
  raise FileNotFoundError(
    f'{folder} has no weights: none of {", ".join(looked_for)} is there. '
    'Other formats (.bin, .ckpt, .msgpack) are not read: convert them to '
    'safetensors'
  )


def open_tensors(path):
  """The tensors of a safetensors file, mapped and not read."""
  if not path.is_file():
    raise FileNotFoundError(f'{path} is not there, but its index names it')
  try:
    return safetensors.safe_open(path, framework='numpy')
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} is no whole safetensors file ({error}): copy it again'
    ) from error


def save(
  folder,
  components,
  model_index,
  scheduler,
  tokenizers=None,
  variant=None,
  max_shard_bytes=MAX_SHARD_BYTES,
):
  """Write a folder that diffusers loads; it appears whole or not at all.

  `components` is {name: (config, params)}, `scheduler` the dict of
  scheduler_config.json, and `tokenizers` {name: folder to copy}. A `variant`,
  'fp16' or 'bf16', casts the weights and marks their files.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise FileExistsError(f'{folder} exists: remove it or write elsewhere')
  if set(components) != set(model_index.components):
    raise ValueError(
      f'the model consists of {model_index.components}, not {list(components)}'
    )
  partial = folder.with_name(f'{folder.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  for name, (config, params) in components.items():
    save_component(
      partial / name, name, config, params, variant, max_shard_bytes
    )
  for name, source in (tokenizers or {}).items():
    shutil.copytree(source, partial / name)
  (partial / 'scheduler').mkdir()
  write_json(partial / 'scheduler' / 'scheduler_config.json', scheduler)
  index = model_index_json(model_index, scheduler['_class_name'])
  write_json(partial / 'model_index.json', index)
  os.rename(partial, folder)


def model_index_json(model_index, scheduler):
  absent = {'text_encoder', 'tokenizer'} if model_index.refiner else set()
  parts = {n: (None, None) if n in absent else v for n, v in LIBRARIES.items()}
  pipeline = 'StableDiffusionXL' + 'Img2Img' * model_index.refiner + 'Pipeline'
  index = {
    '_class_name': pipeline,
    'force_zeros_for_empty_prompt': model_index.force_zeros,
    'add_watermarker': None,
    'scheduler': ('diffusers', scheduler),
    **parts,
  }
  if model_index.refiner:
    index['requires_aesthetics_score'] = True
  return index


def save_component(
  folder, name, config, params, variant=None, max_shard_bytes=MAX_SHARD_BYTES
):
  """Write config.json and the weights of one component into a new folder."""
  published = config_json.write(name, config)
  folder.mkdir()
  write_json(folder / 'config.json', published)
  flat = traverse_util.flatten_dict(params)
  dtype = VARIANTS[variant] if variant else next(iter(flat.values())).dtype.name
  slots, tag = names.slots(flat), f'.{variant}' if variant else ''
  shards = split(slots, jnp.dtype(dtype).itemsize, max_shard_bytes)
  stem, weight_map = STEMS[name], {}
  for i, shard in enumerate(shards, 1):
    number = f'-{i:05d}-of-{len(shards):05d}' if len(shards) > 1 else ''
    file = f'{stem}{tag}{number}.safetensors'
    write_tensors(folder / file, flat, {n: slots[n] for n in shard}, dtype)
    weight_map |= dict.fromkeys(shard, file)
  if len(shards) > 1:
    size = sum(math.prod(s.shape) for s in slots.values())
    total = {'total_size': size * jnp.dtype(dtype).itemsize}
    index = {'metadata': total, 'weight_map': weight_map}
    write_json(folder / f'{stem}.safetensors.index{tag}.json', index)


def split(slots, itemsize, max_bytes):
  """Names in order, in groups of at most `max_bytes` (or of one tensor)."""
  shards, size = [[]], 0
  for name, slot in slots.items():
    size += math.prod(slot.shape) * itemsize
    if size > max_bytes and shards[-1]:
      shards.append([])
      size = math.prod(slot.shape) * itemsize
    shards[-1].append(name)
  return shards


def write_tensors(path, flat, slots, dtype):
  """A safetensors file, streamed: the library would hold all of it at once.

  Format: length of the header (uint64), header (JSON), the tensors' bytes.
  """
  header, end = {'__metadata__': {'format': 'pt'}}, 0
  for name, slot in slots.items():
    begin, end = end, end + math.prod(slot.shape) * jnp.dtype(dtype).itemsize
    header[name] = {
      'dtype': DTYPES[dtype],
      'shape': slot.shape,
      'data_offsets': (begin, end),
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for slot in slots.values():
      names.tensor(flat, slot).astype(dtype, order='C').tofile(file)


def save_tensors(path, tensors, metadata):
  """A safetensors file of {name: array}; it appears whole or not at all."""
  partial = path.with_name(f'{path.name}.partial')
  # The library writes memory as it lies, also that of a transposed view.
  tensors = {n: np.asarray(x, order='C') for n, x in tensors.items()}
  safetensors.numpy.save_file(tensors, partial, metadata)
  os.rename(partial, path)


def write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + '\n')
