"""Reads SDXL, base or refiner, from a folder in the diffusers layout.

  DIR/model_index.json            which model, which components
  DIR/unet/config.json            and weights, as one or several safetensors
  DIR/vae  text_encoder  text_encoder_2  scheduler  tokenizer  tokenizer_2

The same folder may hold a net's weights as our own tree instead, an orbax
checkpoint DIR/unet/params. Tensors are read when their array is filled, so that
the host needs memory for a few of them; for our own tree, for one net.
"""

import functools
import json
import pathlib
import shutil
from typing import Any

from sdxl_jax.weights import (
  companions,
  orbax_params,
  pretrained,
  read_options,
  safetensors_file,
  tensor_files,
)
from sdxl_jax.weights.diffusers import (
  config_defaults,
  controlnet_json,
  scheduler_defaults,
  tiny_json,
  weight_files,
)

LIBRARIES = {
  'unet': ('diffusers', 'UNet2DConditionModel'),
  'vae': ('diffusers', 'AutoencoderKL'),
  'text_encoder': ('transformers', 'CLIPTextModel'),
  'text_encoder_2': ('transformers', 'CLIPTextModelWithProjection'),
  'tokenizer': ('transformers', 'CLIPTokenizer'),
  'tokenizer_2': ('transformers', 'CLIPTokenizer'),
}
# Beginnings of the classes of other programs, and what they store weights in.
OTHER_WEIGHTS = {
  'ORT': 'the format of ONNX',
  'OV': 'the format of OpenVINO',
  'Flax': 'the older format of Flax (.msgpack)',
  'Neuron': 'the format of AWS Neuron',
}
# The dtype that a variant of the weights is stored in.
VARIANTS = {'fp16': 'float16', 'bf16': 'bfloat16'}


def load_model_index(folder: str | pathlib.Path) -> pretrained.ModelIndex:
  """Loads model_index.json.

  Raises:
    FileNotFoundError: if the folder has none.
    ValueError: if it describes another pipeline than one of SDXL.
  """
  folder = pathlib.Path(folder)
  path = folder / 'model_index.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} not found: pass a folder in the diffusers layout, which has '
      'model_index.json and a folder for each component'
    )
  index = read_json(path)
  pipeline = index.get('_class_name')
  if isinstance(pipeline, list):  # [module, class] of a pipeline in the folder
    pipeline = pipeline[-1] if pipeline else None
  # Without a class of its own, the second text encoder distinguishes SDXL.
  is_sdxl = (folder / 'text_encoder_2').is_dir()
  if pipeline not in (None, 'DiffusionPipeline') or not is_sdxl:
    pipeline = str(pipeline or 'model without a second text encoder')
    check_pipeline(pipeline, path)
  refiner = index.get('requires_aesthetics_score')
  if refiner is None:
    first = index.get('text_encoder')
    is_named = isinstance(first, list) and any(first)
    is_there = is_named or (folder / 'text_encoder').is_dir()
    refiner = is_sdxl and not is_there
  return pretrained.ModelIndex(
    refiner=bool(refiner),
    force_zeros=bool(index.get('force_zeros_for_empty_prompt', True)),
    inpainting='Inpaint' in (pipeline or ''),
  )


def check_pipeline(pipeline: str, path: pathlib.Path) -> None:
  """Raises ValueError for a pipeline that is none of SDXL.

  Args:
    pipeline: class in model_index.json.
    path: of this file.
  """
  for prefix, stored in OTHER_WEIGHTS.items():
    if pipeline.startswith(f'{prefix}StableDiffusionXL'):
      raise ValueError(
        f'{path} describes a {pipeline}: the weights of SDXL in {stored}, '
        'which are not read; use the folder of this model with .safetensors'
      )
  if not pipeline.startswith('StableDiffusionXL'):
    raise ValueError(
      f'{path} describes a {pipeline}, not an SDXL model: use the folder of '
      'one, whose class begins with StableDiffusionXL'
    )


def load_scheduler(
  folder: str | pathlib.Path, decided: bool = False
) -> dict[str, Any]:
  """Loads scheduler_config.json, with the defaults of its class.

  Args:
    folder: of the model.
    decided: whether the user sets what the UNet predicts.

  Raises:
    FileNotFoundError: if the folder has none.
    ValueError: if it is corrupt, or has an unknown prediction.
  """
  folder = pathlib.Path(folder)
  path = folder / 'scheduler' / 'scheduler_config.json'
  config = read_json(path)
  if '_class_name' not in config:
    entry = read_json(folder / 'model_index.json').get('scheduler')
    is_entry = isinstance(entry, list) and len(entry) == 2
    name = entry[1] if is_entry else pretrained.SCHEDULER['_class_name']
    config = {'_class_name': name} | config
  return scheduler_defaults.complete(config, str(path), decided)


def open_model(
  folder: str | pathlib.Path,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens a folder of a model and reads no tensor data."""
  folder = pathlib.Path(folder)
  index = load_model_index(folder)
  folders = {name: folder / name for name in index.components}
  weight_files.check_variant(folder, folders, options.variant)
  is_orbax = (folder / 'unet' / orbax_params.FOLDER).is_dir()
  return pretrained.Model(
    kind='an orbax export' if is_orbax else 'a folder in the diffusers layout',
    path=folder,
    loaders={
      name: functools.partial(
        open_net, path, name, options.variant, options.skip_unsupported
      )
      for name, path in folders.items()
    },
    index=index,
    scheduler=load_scheduler(folder, options.prediction is not None),
    tokenizers={
      name: functools.partial(shutil.copytree, folder / name)
      for name in pretrained.TOKENIZERS.values()
      if (folder / name).is_dir()
    },
    notes=weight_files.variant_notes(folders, options.variant),
  )


def open_component(
  folder: str | pathlib.Path,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens the folder of a single net, such as a VAE's, as a partial model."""
  folder = pathlib.Path(folder)
  name = component_of(folder)
  weight_files.check_variant(folder, {name: folder}, options.variant)
  return pretrained.Model(
    kind=f'a folder of {name}',
    path=folder,
    loaders={
      name: functools.partial(
        open_net, folder, name, options.variant, options.skip_unsupported
      )
    },
    index=None,
    scheduler={},
    notes=weight_files.variant_notes({name: folder}, options.variant),
  )


def component_of(folder: str | pathlib.Path) -> str | None:
  """Detects by its config.json which component a folder holds, or None."""
  path = pathlib.Path(folder) / 'config.json'
  config = read_json(path) if path.is_file() else {}
  classes = [config.get('_class_name'), *(config.get('architectures') or [])]
  component = {kind: name for name, (_, kind) in LIBRARIES.items()}
  component[tiny_json.CLASS] = 'vae'
  component |= dict.fromkeys(controlnet_json.CLASSES, 'controlnet')
  named = next((component[c] for c in classes if c in component), None)
  if named or any(classes):
    return named
  return config_defaults.component_of(config)


def open_net(
  path: str | pathlib.Path,
  name: str,
  variant: str | None = None,
  skip_unsupported: bool = False,
) -> pretrained.Net:
  """Opens the folder of a component.

  Args:
    path: of the folder.
    name: of the component.
    variant: see weight_files.choose.
    skip_unsupported: see companions.check.
  """
  path = pathlib.Path(path)
  tree = path / orbax_params.FOLDER
  if tree.is_dir():
    read = functools.partial(orbax_params.lazy, tree)
    restore = functools.partial(orbax_params.restore, tree)
  else:
    read = functools.partial(
      read_tensors, path, weight_files.STEMS[name], variant
    )
    restore = None
  config = read_json(path / 'config.json')
  check_not_quantised(config, path / 'config.json')
  return pretrained.Net(
    name, config, str(path), read, restore, skip_unsupported
  )


def check_not_quantised(config: dict[str, Any], path: pathlib.Path) -> None:
  """Raises ValueError for the config.json of a quantised net."""
  settings = config.get('quantization_config')
  if settings is None:
    return
  method = settings.get('quant_method') if isinstance(settings, dict) else None
  raise ValueError(
    f'{path} has a quantization_config of {method or "an unknown method"}, and '
    'quantised weights are not supported: use those in float16, bfloat16 or '
    'float32, from which they were made'
  )


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
    # Editors of Windows put a mark before the text.
    value = json.loads(path.read_text('utf-8-sig'))
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
    shard = tensor_files.open_file(path).tensors
    repeated = sorted(set(shard) & set(tensors))
    if repeated:
      raise ValueError(
        f'{path}: {companions.format_list(repeated)} is in another file too'
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
