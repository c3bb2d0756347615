"""Writes a model as a folder in the diffusers layout; see `folder_reader`."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from sdxl_jax.weights import (
  checked_cast,
  orbax_params,
  pretrained,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import (
  folder_reader,
  tensor_names,
  weight_files,
)

MAX_SHARD_BYTES = 10 * 10**9  # the default of diffusers
Watch = Callable[[float], Any]


def save(
  folder: pathlib.Path, model: pretrained.Model, **settings: Any
) -> None:
  """Writes a model into a new folder, which diffusers loads.

  Args:
    folder: which does not exist yet; see atomic_write.atomic_path.
    model: with all its nets and tokenizers.
    **settings: of save_net.
  """
  pretrained.check_complete(model)
  if model.net('vae').published.get('num_encoder_blocks') == []:
    raise ValueError(
      f'the autoencoder of {model.path} has a decoder only, and diffusers has '
      'no such class: pass one with both halves'
    )
  folder.mkdir(parents=True)
  for name in model.index.components:
    save_net(folder / name, model.net(name), **settings)
  for name, write in model.tokenizers.items():
    write(folder / name)
  (folder / 'scheduler').mkdir()
  write_json(folder / 'scheduler' / 'scheduler_config.json', model.scheduler)
  index = model_index_json(model.index, model.scheduler['_class_name'])
  vae_class = model.net('vae').published.get('_class_name', 'AutoencoderKL')
  index['vae'] = 'diffusers', vae_class
  write_json(folder / 'model_index.json', index)


def save_net(
  folder: pathlib.Path,
  net: pretrained.Net,
  *,
  form: str = 'safetensors',
  dtype: str | None = None,
  variant: str | None = None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  watch: Watch = lambda count: None,
) -> None:
  """Writes config.json and the weights of a net into a new folder.

  Args:
    folder: which does not exist yet.
    net: to write.
    form: of the weights, 'safetensors' or 'orbax'.
    dtype: to cast weights to; None: the stored one.
    variant: 'fp16' or 'bf16': casts weights to that dtype, and is put into the
      names of the files.
    max_shard_bytes: largest safetensors file, unless of a single tensor.
    watch: called with the bytes of each tensor written.
  """
  folder.mkdir()
  write_json(folder / 'config.json', net.published)
  if form == 'orbax':
    save_orbax(folder / orbax_params.FOLDER, net, dtype, watch)
    return
  # diffusers marks the files of a variant.
  dtype = folder_reader.VARIANTS[variant] if variant else dtype
  tag = f'.{variant}' if variant else ''
  save_tensors(folder, net, dtype, tag, max_shard_bytes, watch)


def model_index_json(
  model_index: pretrained.ModelIndex, scheduler: str
) -> dict[str, Any]:
  """Returns model_index.json; `scheduler` is the name of a diffusers class."""
  absent = {'text_encoder', 'tokenizer'} if model_index.refiner else set()
  parts = folder_reader.LIBRARIES | dict.fromkeys(absent, (None, None))
  task = 'Img2Img' if model_index.refiner else ''
  task = 'Inpaint' if model_index.inpainting else task
  index = {
    '_class_name': f'StableDiffusionXL{task}Pipeline',
    'force_zeros_for_empty_prompt': model_index.force_zeros,
    'add_watermarker': None,
    'scheduler': ('diffusers', scheduler),
    **parts,
  }
  if model_index.refiner:
    index['requires_aesthetics_score'] = True
  return index


def save_tensors(
  folder: pathlib.Path,
  net: pretrained.Net,
  dtype: str | None,
  tag: str,
  max_shard_bytes: int,
  watch: Watch,
) -> None:
  """Writes the weights of a net as safetensors, with a tag in their names."""
  tensors, stem, weight_map = net.tensors(), weight_files.STEMS[net.name], {}
  sizes = safetensors_file.sizes(tensors, dtype)
  # Tensors are popped, so that each is freed once it is written.
  shards = split(sizes, max_shard_bytes)
  for i, shard in enumerate(shards, 1):
    number = f'-{i:05d}-of-{len(shards):05d}' if len(shards) > 1 else ''
    file = f'{stem}{tag}{number}.safetensors'
    part = {name: tensors.pop(name) for name in shard}
    safetensors_file.write(folder / file, part, dtype, watch=watch)
    weight_map |= dict.fromkeys(shard, file)
  # Several shards need an index.
  if len(shards) > 1:
    total = {'total_size': sum(sizes.values())}
    index = {'metadata': total, 'weight_map': weight_map}
    write_json(folder / f'{stem}.safetensors.index{tag}.json', index)


def save_orbax(
  folder: pathlib.Path, net: pretrained.Net, dtype: str | None, watch: Watch
) -> None:
  """Writes the weights of a net as our own tree, of one dtype."""
  # orbax casts all arrays to one dtype.
  dtype = dtype or orbax_params.common_dtype(net.tensors()).name

  # Each byte counts half when it is read, and half when it is written.
  def watch_half(count):
    watch(count / 2)

  _, params = net.load(orbax_params.on_host, watch_half, param_dtype=dtype)
  tensors = tensor_names.tensors(params)
  for name, tensor in tensors.items():
    checked_cast.check_finite(name, tensor.read(), dtype)
  orbax_params.save(folder, params)
  watch_half(sum(safetensors_file.sizes(tensors).values()))


def split(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
  """Splits names, in order, into groups of at most `max_bytes` or one tensor"""
  shards, total = [[]], 0
  for name, size in sizes.items():
    total += size
    if total > max_bytes and shards[-1]:
      shards.append([])
      total = size
    shards[-1].append(name)
  return shards


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes an object, indented as diffusers does."""
  path.write_text(json.dumps(value, indent=2) + '\n')
