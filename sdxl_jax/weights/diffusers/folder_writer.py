"""A model written as a folder in the diffusers layout; see `files`."""

import json

from sdxl_jax.weights import orbax_params, pretrained, safetensors_file
from sdxl_jax.weights.diffusers import folder_reader, tensor_names

MAX_SHARD_BYTES = 10 * 10**9  # as diffusers splits


def save(folder, model, **settings):
  """Writes a model into a new folder, which diffusers loads.

  Args:
    folder: which is not there yet; see whole.target.
    model: published.Model with all its nets and tokenizers.
    **settings: of save_net.
  """
  pretrained.check_complete(model)
  folder.mkdir(parents=True)
  for name in model.index.components:
    save_net(folder / name, model.net(name), **settings)
  for name, write in model.tokenizers.items():
    write(folder / name)
  (folder / 'scheduler').mkdir()
  path = folder / 'scheduler' / 'scheduler_config.json'
  write_json(path, model.scheduler)
  index = model_index_json(model.index, model.scheduler['_class_name'])
  write_json(folder / 'model_index.json', index)


def save_net(
  folder,
  net,
  *,
  form='safetensors',
  dtype=None,
  variant=None,
  max_shard_bytes=MAX_SHARD_BYTES,
  watch=lambda count: None,
):
  """Writes config.json and the weights of a net into a new folder.

  Args:
    folder: which is not there yet.
    net: published.Net.
    form: of the weights, 'safetensors' or 'orbax'.
    dtype: what weights are cast to; None: as they are.
    variant: 'fp16' or 'bf16' casts them to that, and marks the files.
    max_shard_bytes: of a safetensors file, unless of a single tensor.
    watch: called with the bytes of what has been written.
  """
  folder.mkdir()
  write_json(folder / 'config.json', net.published)
  if form == 'orbax':
    save_tree(folder / orbax_params.FOLDER, net, dtype, watch)
    return
  dtype = folder_reader.VARIANTS[variant] if variant else dtype
  tag = f'.{variant}' if variant else ''
  save_tensors(folder, net, dtype, tag, max_shard_bytes, watch)


def model_index_json(model_index, scheduler):
  absent = {'text_encoder', 'tokenizer'} if model_index.refiner else set()
  parts = folder_reader.LIBRARIES | dict.fromkeys(absent, (None, None))
  kind = 'Img2Img' * model_index.refiner
  kind = 'Inpaint' if model_index.inpainting else kind
  index = {
    '_class_name': f'StableDiffusionXL{kind}Pipeline',
    'force_zeros_for_empty_prompt': model_index.force_zeros,
    'add_watermarker': None,
    'scheduler': ('diffusers', scheduler),
    **parts,
  }
  if model_index.refiner:
    index['requires_aesthetics_score'] = True
  return index


def save_tensors(folder, net, dtype, tag, max_shard_bytes, watch):
  """Writes the weights of a net as safetensors, their names with a tag."""
  tensors, stem, weight_map = net.tensors(), folder_reader.STEMS[net.name], {}
  sizes = safetensors_file.sizes(tensors, dtype)
  shards = split(sizes, max_shard_bytes)
  for i, shard in enumerate(shards, 1):
    number = f'-{i:05d}-of-{len(shards):05d}' if len(shards) > 1 else ''
    file = f'{stem}{tag}{number}.safetensors'
    part = {name: tensors.pop(name) for name in shard}
    safetensors_file.write(folder / file, part, dtype, watch=watch)
    weight_map |= dict.fromkeys(shard, file)
  if len(shards) > 1:
    total = {'total_size': sum(sizes.values())}
    index = {'metadata': total, 'weight_map': weight_map}
    write_json(folder / f'{stem}.safetensors.index{tag}.json', index)


def save_tree(folder, net, dtype, watch):
  """Writes the weights of a net as our tree, of one dtype."""
  dtype = dtype or orbax_params.dtype_of(net.tensors()).name
  _, params = net.load(orbax_params.on_host, param_dtype=dtype)
  tensors = tensor_names.tensors(params)
  for name, tensor in tensors.items():
    safetensors_file.check(name, tensor.read(), dtype)
  orbax_params.save(folder, params)
  watch(sum(safetensors_file.sizes(tensors).values()))


def split(sizes, max_bytes):
  """Names in order, in groups of at most `max_bytes` (or of one tensor)."""
  shards, total = [[]], 0
  for name, size in sizes.items():
    total += size
    if total > max_bytes and shards[-1]:
      shards.append([])
      total = size
    shards[-1].append(name)
  return shards


def write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + '\n')
