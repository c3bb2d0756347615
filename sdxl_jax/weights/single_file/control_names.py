"""Reads a ControlNet from a single file, in diffusers' or the original names.

The original program calls the convolutions of the control image
`input_hint_block`, and those that start at zero `zero_convs`; all else has the
names of its UNet, see ldm_names.
"""

import functools
import pathlib
import re

from sdxl_jax.weights import (
  infer_config,
  net_shapes,
  pretrained,
  safetensors_file,
  tensor_files,
)
from sdxl_jax.weights.diffusers import spellings, tensor_names
from sdxl_jax.weights.single_file import ldm_names

Tensors = dict[str, safetensors_file.LazyTensor]
# The first layer of the control image, behind the prefix of all names.
FIRST = 'controlnet_cond_embedding.conv_in.weight'
ORIGINAL_FIRST = 'input_hint_block.0.weight'
# Names of what is no ControlNet of this kind, and what it is.
OTHERS = (
  (r'(?:^|\.)lora_controlnet$', 'a Control-LoRA'),
  (r'^lllite_', 'a ControlNet-LLLite'),
  (r'^(?:double_blocks|transformer_blocks)\.\d', 'a net of another model'),
  (r'(?:^|\.)adapter\.|^body\.\d', 'a T2I-Adapter'),
)


def open_net(
  path: str | pathlib.Path, skip_unsupported: bool = False
) -> pretrained.Net:
  """Opens the ControlNet in a file and reads no tensor data.

  Args:
    path: of a safetensors file, or of a state dict of PyTorch.
    skip_unsupported: see companions.check.

  Raises:
    ValueError: if the file is broken, holds no ControlNet, or one of another
      model than SDXL.
  """
  tensors = spellings.unify(tensor_files.open_file(path).tensors)
  location = f'{path}, controlnet'
  prefix, is_original = find_prefix(tensors, path)
  tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
  original = functools.cache(
    functools.partial(
      original_name, layout=ldm_names.infer_block_layout(tensors)
    )
  )

  def stored(name):
    return tensors.get(original(name) if is_original else name)

  def shape(name):
    found = stored(name)
    return None if found is None else found.shape

  if shape('add_embedding.linear_1.weight') is None:
    raise ValueError(
      f'{path} is a ControlNet of Stable Diffusion 1 or 2, without the sizes '
      'of images (add_embedding): use one that was trained for SDXL'
    )
  published = infer_config.infer_config_json(
    'controlnet', shape, None, location
  )
  net = pretrained.Net('controlnet', published, location, None)
  target = net_shapes.shapes_of(net.config(), location)
  expected = tensor_names.locations(tensor_names.flat(target))
  found = {name: stored(name) for name in expected}
  found = {name: tensor for name, tensor in found.items() if tensor is not None}
  taken = {original(name) if is_original else name for name in found}
  rest = {name: t for name, t in tensors.items() if name not in taken}
  return pretrained.Net(
    'controlnet',
    published,
    location,
    lambda: found | rest,
    skip_unsupported=skip_unsupported,
  )


def find_prefix(names: Tensors, path: str | pathlib.Path) -> tuple[str, bool]:
  """Finds the prefix of a ControlNet's names, and whether they are original.

  Raises:
    ValueError: for a file without a ControlNet.
  """
  for first, is_original in ((FIRST, False), (ORIGINAL_FIRST, True)):
    for name in names:
      if name.endswith(first):
        return name.removesuffix(first), is_original
  for pattern, what in OTHERS:
    if name := next((n for n in names if re.search(pattern, n)), None):
      raise ValueError(
        f'{path} is {what} ({name}), which is not implemented: use a '
        'ControlNet that was trained for SDXL'
      )
  raise ValueError(
    f'{path} is no ControlNet: it has neither {FIRST} nor {ORIGINAL_FIRST}; '
    'pass the folder or the file of one as --controlnet'
  )


def original_name(name: str, layout: ldm_names.BlockLayout) -> str | None:
  """Translates the name of a tensor in diffusers to the original one."""
  module, leaf = ldm_names.split(name)
  part, _, layer = module.partition('.')
  if part == 'controlnet_cond_embedding':
    numbers = {'conv_in': 0, 'conv_out': 14}
    number = numbers.get(layer)
    if number is None:  # activations are counted too
      number = 2 * (int(layer.removeprefix('blocks.')) + 1)
    return f'input_hint_block.{number}{leaf}'
  if part == 'controlnet_down_blocks':
    return f'zero_convs.{layer}.0{leaf}'
  if part == 'controlnet_mid_block':
    return f'middle_block_out.0{leaf}'
  if part in ('task_embedding', 'transformer_layes', 'spatial_ch_projs'):
    return name
  return ldm_names.original_unet(name, layout)
