"""SDXL as a folder in the diffusers layout, base or refiner.

  DIR/model_index.json            which model, which components
  DIR/unet/config.json            and weights, as one or several safetensors
  DIR/vae  text_encoder  text_encoder_2  scheduler  tokenizer  tokenizer_2

The same folder may hold a net's weights as our tree instead, an orbax
checkpoint DIR/unet/params. Tensors pass one at a time, so that the host needs
memory for one of them; for our tree, for that of one net.
"""

import functools
import json
import pathlib
import shutil

from sdxl_jax.weights import orbax_params, pretrained, safetensors_file
from sdxl_jax.weights.diffusers import tensor_names

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


def load_model_index(folder):
  """The ModelIndex of a diffusers folder."""
  path = pathlib.Path(folder) / 'model_index.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is not there: give a folder in the diffusers layout, which has '
      'model_index.json and a folder for each component'
    )
  index = read_json(path)
  pipeline = str(index.get('_class_name', 'thing without _class_name'))
  if not pipeline.startswith('StableDiffusionXL'):
    raise ValueError(f'{path} describes a {pipeline}, not an SDXL model')
  return pretrained.ModelIndex(
    refiner=index.get('requires_aesthetics_score', False),
    force_zeros=index.get('force_zeros_for_empty_prompt', True),
    inpainting='Inpaint' in pipeline,
  )


def load_scheduler(folder):
  """scheduler_config.json as a dict."""
  return read_json(pathlib.Path(folder) / 'scheduler' / 'scheduler_config.json')


def open_model(folder, variant=None):
  """The published.Model of a folder; of its weights nothing is read."""
  folder = pathlib.Path(folder)
  index = load_model_index(folder)
  stored = (folder / 'unet' / orbax_params.FOLDER).is_dir()
  found = pretrained.TOKENIZERS.values()
  return pretrained.Model(
    kind='an orbax export' if stored else 'a folder in the diffusers layout',
    path=folder,
    loaders={
      name: functools.partial(open_net, folder / name, name, variant)
      for name in index.components
    },
    index=index,
    scheduler=load_scheduler(folder),
    tokenizers={
      n: functools.partial(shutil.copytree, folder / n)
      for n in found
      if (folder / n).is_dir()
    },
  )


def open_part(folder):
  """The published.Model of the folder of a single net, such as a VAE's."""
  folder = pathlib.Path(folder)
  name = part_of(folder)
  return pretrained.Model(
    kind=f'a folder of {name}',
    path=folder,
    loaders={name: functools.partial(open_net, folder, name)},
    index=None,
    scheduler={},
  )


def part_of(folder):
  """The component that a folder is of by its config.json, or None."""
  path = pathlib.Path(folder) / 'config.json'
  config = read_json(path) if path.is_file() else {}
  classes = [config.get('_class_name'), *(config.get('architectures') or [])]
  ours = {of: name for name, (_, of) in LIBRARIES.items() if name in STEMS}
  return next((ours[of] for of in classes if of in ours), None)


def open_net(path, name, variant=None):
  """The published.Net of a component's folder.

  Without `variant` the plain files are read, else the fp16 ones.
  """
  path = pathlib.Path(path)
  config, tree = read_json(path / 'config.json'), path / orbax_params.FOLDER
  if tree.is_dir():
    read = functools.partial(orbax_params.lazy, tree)
    restore = functools.partial(orbax_params.restore, tree)
  else:
    read, restore = lambda: read_tensors(path, STEMS[name], variant), None
  return pretrained.Net(name, config, str(path), read, restore)


def read_json(path):
  """The object in a JSON file."""
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is not there: the folder is not whole, copy it again'
    )
  try:
    found = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not JSON ({error}): copy it again') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no JSON object: copy it again')
  return found


def read_tensors(folder, stem, variant=None):
  """{name: Tensor} of all the files of a component."""
  found = {}
  for path in weight_files(folder, stem, variant):
    if not path.is_file():
      raise FileNotFoundError(f'{path} is not there, but its index names it')
    tensors = safetensors_file.load(path).tensors
    twice = sorted(set(tensors) & set(found))
    if twice:
      raise ValueError(
        f'{path}: {tensor_names.format_list(twice)} is in another file too'
      )
    found |= tensors
  return found


def weight_files(folder, stem, variant=None):
  """The safetensors of a component: one file, or all shards of an index."""
  looked_for = []
  for tag in [f'.{variant}'] if variant else ['', '.fp16']:
    single = folder / f'{stem}{tag}.safetensors'
    index = folder / f'{stem}.safetensors.index{tag}.json'
    if single.is_file():
      return [single]
    if index.is_file():
      return shards_of(index)
    looked_for += [single.name, index.name]
  raise FileNotFoundError(
    f'{folder} has no weights: none of {", ".join(looked_for)} is there. '
    'Other formats (.bin, .ckpt, .msgpack) are not read: convert them to '
    'safetensors'
  )


def shards_of(index):
  """The files that an index names, which lie beside it."""
  weight_map = read_json(index).get('weight_map')
  files = weight_map.values() if isinstance(weight_map, dict) else [None]
  for file in files:
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise ValueError(f'{index} names {file!r}, no file beside it')
  return [index.parent / file for file in sorted(set(files))]
