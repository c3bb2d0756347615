"""Maps diffusers names to the original (LDM) names of single files, by rule.

The original code of SDXL (generative-models, with open_clip's text encoder)
numbers the blocks of the UNet through all levels, and the levels of the VAE's
decoder from the end; a layer is named by its place in a list. Also:
- the second text encoder has the rows of q, k and v in one tensor, and
  multiplies by text_projection from the other side;
- the VAE's attention is made of convolutions of size one;
- position_ids (0..76) and logit_scale (of CLIP's loss) have no counterpart.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.models import unet
from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.diffusers import spellings

Tensor = safetensors_file.LazyTensor
# Of the names of each net; the refiner has one text encoder.
PREFIXES = {
  'unet': 'model.diffusion_model.',
  'vae': 'first_stage_model.',
  'text_encoder': 'conditioner.embedders.0.transformer.',
  'text_encoder_2': 'conditioner.embedders.1.model.',
}
REFINER_TEXT_ENCODER = 'conditioner.embedders.0.model.'
# Layers of a residual block.
RESNET = {
  'norm1': 'in_layers.0',
  'conv1': 'in_layers.2',
  'time_emb_proj': 'emb_layers.1',
  'norm2': 'out_layers.0',
  'conv2': 'out_layers.3',
  'conv_shortcut': 'skip_connection',
}
# Layers outside of the UNet's blocks.
UNET = {
  'conv_in': 'input_blocks.0.0',
  'time_embedding.linear_1': 'time_embed.0',
  'time_embedding.linear_2': 'time_embed.2',
  'add_embedding.linear_1': 'label_emb.0.0',
  'add_embedding.linear_2': 'label_emb.0.2',
  'conv_norm_out': 'out.0',
  'conv_out': 'out.2',
}
VAE_ATTENTION = {
  'group_norm': 'norm',
  'to_q': 'q',
  'to_k': 'k',
  'to_v': 'v',
  'to_out.0': 'proj_out',
}
# Tensors outside of the second text encoder's blocks, and layers of a block.
TEXT_ENCODER = {
  'text_model.embeddings.position_embedding.weight': 'positional_embedding',
  'text_model.embeddings.token_embedding.weight': 'token_embedding.weight',
  'text_model.final_layer_norm.weight': 'ln_final.weight',
  'text_model.final_layer_norm.bias': 'ln_final.bias',
  'text_projection.weight': 'text_projection',
}
TEXT_ENCODER_BLOCK = {
  'layer_norm1': 'ln_1',
  'layer_norm2': 'ln_2',
  'self_attn.out_proj': 'attn.out_proj',
  'mlp.fc1': 'mlp.c_fc',
  'mlp.fc2': 'mlp.c_proj',
}
DOWNSAMPLER = 'input_blocks.{}.0.op.weight'
INPUT_BLOCK = 'input_blocks.{}.0.in_layers.2.weight'
LEVEL = 'encoder.down.{}.block.0.conv1.weight'


@dataclasses.dataclass(frozen=True)
class BlockLayout:
  """The facts of an architecture on which the names of its blocks depend."""

  layers: tuple[int, ...] = ()  # of each level of the UNet, going down
  # Of each level of the UNet, whether its last block going up has attention.
  attention: tuple[bool, ...] = ()
  levels: int = 0  # of the VAE


def keep(tensor: Tensor) -> Tensor:
  """Returns a tensor as it is."""
  return tensor


def expand_hw(tensor: Tensor) -> Tensor:
  """Turns a matrix into a convolution of size one."""
  return tensor.reshape((*tensor.shape, 1, 1))


def take_third(tensor: Tensor, part: int) -> Tensor:
  """Takes the rows of q, k or v (part 0, 1 or 2) of a fused tensor."""
  rows = tensor.shape[0] // 3
  return tensor.rows(part * rows, (part + 1) * rows)


class Transform(NamedTuple):
  """Converts a tensor between the original and the diffusers layout."""

  to_diffusers: Callable[[Tensor], Tensor]
  to_original: Callable[[Tensor], Tensor]
  part: int = 0  # its place in the original tensor, where that is fused


KEEP = Transform(keep, keep)
TRANSPOSE = Transform(spellings.transpose, spellings.transpose)
# To diffusers it changes nothing: tensor_names.fit squeezes, since the oldest
# diffusers folders have convolutions too.
SQUEEZE_HW = Transform(keep, expand_hw)
QKV = {
  'q': Transform(functools.partial(take_third, part=0), keep, 0),
  'k': Transform(functools.partial(take_third, part=1), keep, 1),
  'v': Transform(functools.partial(take_third, part=2), keep, 2),
}


def block_layout(config: Any) -> BlockLayout:
  """Returns the block layout of a net's config."""
  levels = len(getattr(config, 'block_out_channels', ()))
  if not isinstance(config, unet.UNetConfig):
    return BlockLayout(levels=levels)
  return BlockLayout(
    layers=tuple(map(config.layers, range(levels))),
    attention=tuple(config.depths(i, True)[-1] > 0 for i in range(levels)),
  )


def infer_block_layout(names: Collection[str]) -> BlockLayout:
  """Infers the block layout of a net from original names without prefix.

  The UNet's attention is left out; names in its encoder do not depend on it.
  """
  # conv_in is input block 0; each level but the last ends in a downsampler.
  ends = [i for i in range(99) if DOWNSAMPLER.format(i) in names]
  count = sum(INPUT_BLOCK.format(i) in names for i in range(99)) + len(ends)
  borders = [0, *ends, count + 1]
  layers = [end - start - 1 for start, end in itertools.pairwise(borders)]
  levels = sum(LEVEL.format(i) in names for i in range(99))
  return BlockLayout(layers=tuple(layers), levels=levels)


def original(
  component: str, name: str, layout: BlockLayout
) -> tuple[str | None, Transform]:
  """Translates a diffusers name to the original one, without prefix.

  The name is None if the original layout has no such tensor.
  """
  if component == 'unet':
    return original_unet(name, layout), KEEP
  if component == 'vae':
    return original_vae(name, layout)
  if component == 'text_encoder':  # as transformers names it
    return name, KEEP
  return original_text_encoder_2(name)


def split(name: str) -> tuple[str, str]:
  """Splits a name into (module, '.weight' or '.bias')."""
  module, _, leaf = name.rpartition('.')
  return module, f'.{leaf}'


def original_unet(name: str, layout: BlockLayout) -> str | None:
  """Translates the name of a tensor of the UNet."""
  module, leaf = split(name)
  if module in UNET:
    return UNET[module] + leaf
  if match := re.match(r'mid_block\.(resnets|attentions)\.(\d)\.(.*)', module):
    kind, i, layer = match.groups()
    place = 1 if kind == 'attentions' else 2 * int(i)
    return f'middle_block.{place}.{RESNET.get(layer, layer)}{leaf}'
  pattern = r'(down|up)_blocks\.(\d+)\.([a-z]+)\.(\d+)\.(.*)'
  match = re.match(pattern, module)
  if not match:  # guidance embedding: such nets came after that layout
    return None
  side, level, kind, i, layer = match.groups()
  # Blocks are numbered through all levels; conv_in is input block 0.
  is_down, level = side == 'down', int(level)
  layers = layout.layers if is_down else layout.layers[::-1]
  start = sum(layers[:level]) + level + is_down
  if kind.endswith('samplers'):
    number = start + layers[level]
    # An upsampler is one more layer of the level's last block.
    place = 0 if is_down else 1 + layout.attention[-1 - level]
    layer = 'op' if is_down else layer
  else:
    number = start + int(i)
    place = 1 if kind == 'attentions' else 0
    layer = RESNET.get(layer, layer)
  block = 'input_blocks' if is_down else 'output_blocks'
  return f'{block}.{number}.{place}.{layer}{leaf}'


def original_vae(name: str, layout: BlockLayout) -> tuple[str, Transform]:
  """Translates the name of a tensor of the VAE."""
  module, leaf = split(name)
  module = module.replace('conv_norm_out', 'norm_out')
  module = module.replace('conv_shortcut', 'nin_shortcut')
  # The middle block.
  if match := re.match(r'(.*)\.mid_block\.attentions\.0\.(.*)', module):
    half, layer = match.groups()
    is_kernel = leaf == '.weight' and layer.startswith('to_')
    original_name = f'{half}.mid.attn_1.{VAE_ATTENTION[layer]}{leaf}'
    return original_name, SQUEEZE_HW if is_kernel else KEEP
  if match := re.match(r'(.*)\.mid_block\.resnets\.(\d)\.(.*)', module):
    half, i, layer = match.groups()
    return f'{half}.mid.block_{int(i) + 1}.{layer}{leaf}', KEEP
  # Levels of the decoder count from the end.
  if match := re.match(r'(.*)\.(down|up)_blocks\.(\d+)\.(.*)', module):
    half, side, level, rest = match.groups()
    level = int(level) if side == 'down' else layout.levels - 1 - int(level)
    rest = rest.replace('resnets.', 'block.')
    rest = re.sub(r'(down|up)samplers\.0', r'\1sample', rest)
    module = f'{half}.{side}.{level}.{rest}'
  return module + leaf, KEEP


def original_text_encoder_2(name: str) -> tuple[str, Transform]:
  """Translates the name of a tensor of the second text encoder."""
  if name in TEXT_ENCODER:
    is_projection = name == 'text_projection.weight'
    return TEXT_ENCODER[name], TRANSPOSE if is_projection else KEEP
  pattern = r'text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)'
  i, module, leaf = re.match(pattern, name).groups()
  block = f'transformer.resblocks.{i}'
  if match := re.match(r'self_attn\.([qkv])_proj', module):
    return f'{block}.attn.in_proj_{leaf}', QKV[match[1]]
  return f'{block}.{TEXT_ENCODER_BLOCK[module]}.{leaf}', KEEP


def table(
  component: str, names: Iterable[str], layout: BlockLayout
) -> dict[str, list[tuple[str, Transform]]]:
  """Returns {original name without prefix: [(diffusers name, transform)]}.

  Raises:
    ValueError: if the original layout has no name for a tensor.
  """
  parts = {}
  for name in names:
    key, transform = original(component, name, layout)
    if key is None:
      raise ValueError(
        f'single files have no name for {name}: write a diffusers folder'
      )
    parts.setdefault(key, []).append((name, transform))
  return {key: sorted(p, key=lambda x: x[1].part) for key, p in parts.items()}


def to_original(parts: list[tuple[Tensor, Transform]]) -> Tensor:
  """Makes an original tensor from the diffusers tensors that it consists of."""
  (tensor, transform), *others = parts
  if not others:
    return transform.to_original(tensor)
  tensors = [tensor for tensor, _ in parts]
  return dataclasses.replace(
    tensor,
    shape=(sum(t.shape[0] for t in tensors), *tensor.shape[1:]),
    read=lambda: np.concatenate([t.read() for t in tensors]),
  )


def constants(
  prefix: str, component: str, positions: int | None
) -> dict[str, Tensor]:
  """Returns {name: tensor} of the constants that the original nets have.

  The strict loader of sgm requires them, and no SDXL net reads them. open_clip
  ends training with logit_scale at its limit, ln 100.
  """
  if component == 'text_encoder':
    ids = np.arange(positions)[None]
    key = 'text_model.embeddings.position_ids'
    return {prefix + key: safetensors_file.from_array(ids)}
  if component == 'text_encoder_2':
    scale = np.array(np.log(100), np.float32)
    return {f'{prefix}logit_scale': safetensors_file.from_array(scale)}
  return {}
