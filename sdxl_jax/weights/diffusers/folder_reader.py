"""Reads SDXL, base or refiner, from a folder in the diffusers layout.

  DIR/model_index.json            which model, which components
  DIR/unet/config.json            and weights, as one or several safetensors
  DIR/vae  text_encoder  text_encoder_2  scheduler  tokenizer  tokenizer_2

The same folder may hold a net's weights as our own tree instead, an orbax
checkpoint DIR/unet/params. Tensors are read one at a time, so that the host
needs memory for one of them; for our own tree, for one net.
"""

import functools
import json
import pathlib
import shutil
from typing import Any

from sdxl_jax.weights import (
  orbax_params,
  pretrained,
  read_options,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import tensor_names, weight_files

# The stem of the names of a component's files.
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
# The dtype that a variant of the weights is stored in.
VARIANTS = {'fp16': 'float16', 'bf16': 'bfloat16'}


def load_model_index(folder: str | pathlib.Path) -> pretrained.ModelIndex:
  """Loads model_index.json.

  Raises:
    FileNotFoundError: if the folder has none.
    ValueError: if it describes another pipeline than one of SDXL.
  """
  path = pathlib.Path(folder) / 'model_index.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} not found: pass a folder in the diffusers layout, which has '
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


def load_scheduler(folder: str | pathlib.Path) -> dict[str, Any]:
  """Loads scheduler_config.json."""
  return read_json(pathlib.Path(folder) / 'scheduler' / 'scheduler_config.json')


def open_model(
  folder: str | pathlib.Path,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens a folder of a model and reads no tensor data."""
  folder = pathlib.Path(folder)
  index = load_model_index(folder)
  folders = {name: folder / name for name in index.components}
  check_variant(folder, folders, options.variant)
  is_orbax = (folder / 'unet' / orbax_params.FOLDER).is_dir()
  return pretrained.Model(
    kind='an orbax export' if is_orbax else 'a folder in the diffusers layout',
    path=folder,
    loaders={
      name: functools.partial(open_net, path, name, options.variant)
      for name, path in folders.items()
    },
    index=index,
    scheduler=load_scheduler(folder),
    tokenizers={
      name: functools.partial(shutil.copytree, folder / name)
      for name in pretrained.TOKENIZERS.values()
      if (folder / name).is_dir()
    },
    notes=variant_notes(folders, options.variant),
  )


def check_variant(
  folder: pathlib.Path, nets: dict[str, pathlib.Path], variant: str | None
) -> None:
  """Raises ValueError where none of the nets of a folder has a variant."""
  found = {
    tag
    for name, path in nets.items()
    for tag in weight_files.find_variants(path, STEMS[name])
  }
  if variant is not None and variant not in found:
    raise ValueError(
      f'{folder} has no weights of the variant {variant!r}; it has '
      f'{", ".join(sorted(filter(None, found))) or "plain ones only"}: choose '
      'another --variant, or leave it out'
    )


def variant_notes(
  folders: dict[str, pathlib.Path], variant: str | None
) -> tuple[str, ...]:
  """Returns lines on files of another variant than was asked for."""
  notes = []
  for name, folder in folders.items():
    # An error is raised when the net itself is opened.
    if weight_files.find_variants(folder, STEMS[name]):
      notes.append(weight_files.choose(folder, STEMS[name], variant).note)
  return tuple(filter(None, notes))


def open_component(
  folder: str | pathlib.Path,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens the folder of a single net, such as a VAE's, as a partial model."""
  folder = pathlib.Path(folder)
  name = component_of(folder)
  check_variant(folder, {name: folder}, options.variant)
  return pretrained.Model(
    kind=f'a folder of {name}',
    path=folder,
    loaders={name: functools.partial(open_net, folder, name, options.variant)},
    index=None,
    scheduler={},
    notes=variant_notes({name: folder}, options.variant),
  )


def component_of(folder: str | pathlib.Path) -> str | None:
  """Detects by its config.json which component a folder holds, or None."""
  path = pathlib.Path(folder) / 'config.json'
  config = read_json(path) if path.is_file() else {}
  classes = [config.get('_class_name'), *(config.get('architectures') or [])]
  component = {LIBRARIES[name][1]: name for name in STEMS}
  return next((component[c] for c in classes if c in component), None)


def open_net(
  path: str | pathlib.Path, name: str, variant: str | None = None
) -> pretrained.Net:
  """Opens the folder of a component; `variant` as in weight_files.choose."""
  path = pathlib.Path(path)
  tree = path / orbax_params.FOLDER
  if tree.is_dir():
    read = functools.partial(orbax_params.lazy, tree)
    restore = functools.partial(orbax_params.restore, tree)
  else:
    read = functools.partial(read_tensors, path, STEMS[name], variant)
    restore = None
  config = read_json(path / 'config.json')
  return pretrained.Net(name, config, str(path), read, restore)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads the object in a JSON file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is corrupt.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} not found: the folder is incomplete, re-download it'
    )
  try:
    value = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not JSON ({error}): re-download it') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} holds no JSON object: re-download it')
  return value


def read_tensors(
  folder: pathlib.Path, stem: str, variant: str | None = None
) -> dict[str, safetensors_file.LazyTensor]:
  """Opens {name: tensor} of all the files of a component."""
  tensors = {}
  for path in files_of(folder, stem, variant):
    if not path.is_file():
      raise FileNotFoundError(f'{path} not found, but its index names it')
    shard = safetensors_file.load(path).tensors
    repeated = sorted(set(shard) & set(tensors))
    if repeated:
      raise ValueError(
        f'{path}: {tensor_names.format_list(repeated)} is in another file too'
      )
    tensors |= shard
  return tensors


def files_of(
  folder: pathlib.Path, stem: str, variant: str | None = None
) -> list[pathlib.Path]:
  """Finds the files of a component: a single one, or the shards of an index."""
  path = weight_files.choose(folder, stem, variant).path
  return shards_of(path) if path.suffix == '.json' else [path]


def shards_of(index: pathlib.Path) -> list[pathlib.Path]:
  """Reads the files that an index names, all in the folder of the index."""
  weight_map = read_json(index).get('weight_map')
  files = weight_map.values() if isinstance(weight_map, dict) else [None]
  for file in files:
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise ValueError(f'{index} names {file!r}, which is no file next to it')
  return [index.parent / file for file in sorted(set(files))]
