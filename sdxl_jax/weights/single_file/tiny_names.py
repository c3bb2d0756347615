"""Reads TAESD, a tiny autoencoder, from single files.

The original program stores each half in a file of its own, as
taesdxl_encoder.safetensors and taesdxl_decoder.safetensors, and numbers all
layers; the decoder begins with a layer without parameters that diffusers does
not count. ComfyUI puts a prefix before these names.
"""

import re
from collections.abc import Collection

from sdxl_jax.models import tiny_vae
from sdxl_jax.weights import pretrained, safetensors_file, tensor_files
from sdxl_jax.weights.diffusers import config_json

HALVES = 'encoder', 'decoder'
NAME = re.compile(
  r'(?:vae\.)?(?:(?:taesd_)?(encoder|decoder)\.)?(layers\.)?(\d+)'
  r'\.((?:conv\.\d+\.)?(?:weight|bias))'
)
# Of ComfyUI: how the latents of TAESD relate to those of a model.
COMPANIONS = ('vae_scale', 'vae_shift')
Tensors = dict[str, safetensors_file.LazyTensor]


def is_tiny(names: Collection[str]) -> bool:
  """Whether a file with these tensors is a TAESD, or a half of one."""
  names = [name for name in names if name not in COMPANIONS]
  return bool(names) and all(map(NAME.fullmatch, names))


def open_model(file: safetensors_file.TensorFile) -> pretrained.Model:
  """Opens a TAESD, and for one half also the other if it lies beside.

  Raises:
    ValueError: for an encoder without decoder, or missing layers.
  """
  path = file.path
  tensors, notes = to_diffusers(file.tensors), ()
  # The other half has the same name but for one word.
  halves = {name.partition('.')[0] for name in tensors}
  if len(halves) == 1:
    (half,) = halves
    (other,) = set(HALVES) - halves
    beside = path.with_name(path.name.replace(half, other))
    if beside != path and beside.is_file():
      tensors |= to_diffusers(tensor_files.open_file(beside).tensors)
      notes = (f'{beside.name} is read too, as the {other} of {path.name}',)
  if not any(name.startswith('decoder.') for name in tensors):
    raise ValueError(
      f'{path} holds the encoder of a TAESD alone: put the file of the decoder '
      'beside it, or pass that file'
    )
  published = config_json.write('vae', infer_config(tensors, f'{path}'))
  net = pretrained.Net('vae', published, f'{path}, vae', lambda: tensors)
  return pretrained.Model(
    kind='a file of vae',
    path=path,
    loaders={'vae': lambda: net},
    index=None,
    scheduler={},
    metadata=file.metadata,
    notes=notes,
  )


def to_diffusers(tensors: Tensors) -> Tensors:
  """Renames the tensors of a file to diffusers' names."""
  names = [name for name in tensors if name not in COMPANIONS]
  # Without a prefix, the encoder's first convolution is layer 0, and the
  # decoder's is layer 1.
  default = 'encoder' if '0.weight' in names else 'decoder'
  renamed = {}
  for name in names:
    half, diffusers, number, rest = NAME.fullmatch(name).groups()
    half, number = half or default, int(number)
    if half == 'decoder' and not diffusers:
      number -= 1
    renamed[f'{half}.layers.{number}.{rest}'] = tensors[name]
  return renamed


def infer_config(tensors: Tensors, location: str) -> tiny_vae.TinyConfig:
  """Infers the config of a TAESD from its tensors with diffusers' names.

  Raises:
    ValueError: for layers that are no TAESD.
  """
  blocks = {half: count_blocks(tensors, half) for half in HALVES}
  first = tensors.get('decoder.layers.0.weight')
  last = [n for n in tensors if re.fullmatch(r'decoder\.layers\.\d+\.bias', n)]
  if first is None or len(first.shape) != 4 or len(last) < 2:
    raise ValueError(
      f'{location}: the first and the last layer of a TAESD are missing, or '
      'have odd shapes'
    )
  final = max(last, key=lambda name: int(name.split('.')[2]))
  return tiny_vae.TinyConfig(
    in_channels=tensors[final].shape[0],
    latent_channels=first.shape[1],
    features=first.shape[0],
    encoder_blocks=blocks['encoder'],
    decoder_blocks=blocks['decoder'],
  )


def count_blocks(tensors: Tensors, half: str) -> tuple[int, ...]:
  """Counts the blocks of each level of a half; () without this half.

  A level of the encoder begins with a convolution and one of the decoder ends
  with one; one more stands at the other end.
  """
  pattern = re.compile(rf'{half}\.layers\.(\d+)\.(conv\.)?.*')
  found = [pattern.fullmatch(name) for name in tensors]
  is_block = {int(m[1]): m[2] is not None for m in found if m}
  counts = []
  for number in sorted(is_block):
    if not is_block[number]:
      counts.append(0)
    elif counts:
      counts[-1] += 1
    else:  # no half begins with a block
      return ()
  return tuple(counts[:-1])
