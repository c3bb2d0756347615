"""SDXL as a folder in the diffusers layout, base or refiner, read and written.

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

from sdxl_jax.weights import names, published, tensor_file, trees

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
MAX_SHARD_BYTES = 10 * 10**9  # as diffusers splits


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
  return published.ModelIndex(
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
  stored = (folder / 'unet' / trees.FOLDER).is_dir()
  found = published.TOKENIZERS.values()
  return published.Model(
    kind='an orbax export' if stored else 'a folder in the diffusers layout',
    path=folder,
    openers={
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
  return published.Model(
    kind=f'a folder of {name}',
    path=folder,
    openers={name: functools.partial(open_net, folder, name)},
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
  config, tree = read_json(path / 'config.json'), path / trees.FOLDER
  if tree.is_dir():
    read = functools.partial(trees.lazy, tree)
    restore = functools.partial(trees.restore, tree)
  else:
    read, restore = lambda: read_tensors(path, STEMS[name], variant), None
  return published.Net(name, config, str(path), read, restore)


def load_config(folder, name, **fields):
  """The config of a component, with some of its fields replaced."""
  return open_net(pathlib.Path(folder) / name, name).config(**fields)


def load_component(folder, name, variant=None, **fields):
  """(config, params) of a component; see open_net and published.Net.load."""
  net = open_net(pathlib.Path(folder) / name, name, variant)
  return net.load(**fields)


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
    tensors = tensor_file.load(path).tensors
    twice = sorted(set(tensors) & set(found))
    if twice:
      raise ValueError(f'{path}: {names.listed(twice)} is in another file too')
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


def save(folder, model, **settings):
  """Writes a model into a new folder, which diffusers loads.

  Args:
    folder: which is not there yet; see whole.target.
    model: published.Model with all its nets and tokenizers.
    **settings: of save_net.
  """
  published.check_whole(model)
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
    save_tree(folder / trees.FOLDER, net, dtype, watch)
    return
  dtype = VARIANTS[variant] if variant else dtype
  tag = f'.{variant}' if variant else ''
  save_tensors(folder, net, dtype, tag, max_shard_bytes, watch)


def model_index_json(model_index, scheduler):
  absent = {'text_encoder', 'tokenizer'} if model_index.refiner else set()
  parts = {n: (None, None) if n in absent else v for n, v in LIBRARIES.items()}
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
  tensors, stem, weight_map = net.tensors(), STEMS[net.name], {}
  sizes = tensor_file.sizes(tensors, dtype)
  shards = split(sizes, max_shard_bytes)
  for i, shard in enumerate(shards, 1):
    number = f'-{i:05d}-of-{len(shards):05d}' if len(shards) > 1 else ''
    file = f'{stem}{tag}{number}.safetensors'
    part = {name: tensors.pop(name) for name in shard}
    tensor_file.write(folder / file, part, dtype, watch=watch)
    weight_map |= dict.fromkeys(shard, file)
  if len(shards) > 1:
    total = {'total_size': sum(sizes.values())}
    index = {'metadata': total, 'weight_map': weight_map}
    write_json(folder / f'{stem}.safetensors.index{tag}.json', index)


def save_tree(folder, net, dtype, watch):
  """Writes the weights of a net as our tree, of one dtype."""
  dtype = dtype or trees.dtype_of(net.tensors()).name
  _, params = net.load(param_dtype=dtype)
  tensors = names.tensors(params)
  for name, tensor in tensors.items():
    tensor_file.check(name, tensor.read(), dtype)
  trees.save(folder, params)
  watch(sum(tensor_file.sizes(tensors).values()))


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
