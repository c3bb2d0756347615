"""Names in original single files <> diffusers names, by rule.

The first code of SDXL (generative-models, with open_clip's text tower) numbers
the blocks of the UNet through all levels, and the autoencoder's way up from the
end; a block's layers bear their places in lists. What differs besides:
- the second tower has the rows of q, k and v in one tensor, and multiplies by
  text_projection from the other side;
- the autoencoder's attention is made of convolutions of size one;
- position_ids (0..76) and logit_scale (of CLIP's loss) have no counterpart.
"""

import dataclasses
import re

import numpy as np

from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.diffusers import tensor_names

# The beginning of the names of each net; the refiner has one text tower.
PREFIXES = {
  'unet': 'model.diffusion_model.',
  'vae': 'first_stage_model.',
  'text_encoder': 'conditioner.embedders.0.transformer.',
  'text_encoder_2': 'conditioner.embedders.1.model.',
}
REFINER_TOWER = 'conditioner.embedders.0.model.'
# Layers of a residual block.
RESNET = {
  'norm1': 'in_layers.0',
  'conv1': 'in_layers.2',
  'time_emb_proj': 'emb_layers.1',
  'norm2': 'out_layers.0',
  'conv2': 'out_layers.3',
  'conv_shortcut': 'skip_connection',
}
# What stands outside of the UNet's blocks.
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
# What stands outside of the second tower's blocks, and in one of them.
TOWER = {
  'text_model.embeddings.position_embedding.weight': 'positional_embedding',
  'text_model.embeddings.token_embedding.weight': 'token_embedding.weight',
  'text_model.final_layer_norm.weight': 'ln_final.weight',
  'text_model.final_layer_norm.bias': 'ln_final.bias',
  'text_projection.weight': 'text_projection',
}
TOWER_BLOCK = {
  'layer_norm1': 'ln_1',
  'layer_norm2': 'ln_2',
  'self_attn.out_proj': 'attn.out_proj',
  'mlp.fc1': 'mlp.c_fc',
  'mlp.fc2': 'mlp.c_proj',
}
DOWNSAMPLER = 'input_blocks.{}.0.op.weight'
LEVEL = 'encoder.down.{}.block.0.conv1.weight'


@dataclasses.dataclass(frozen=True)
class BlockLayout:
  """What of a net's architecture its names depend on."""

  layers: int = 0  # residual blocks in a level of the UNet, going down
  attention: tuple[bool, ...] = ()  # of each level of the UNet
  levels: int = 0  # of the autoencoder


def block_layout(config):
  """The Layout of a net's config."""
  depths = getattr(config, 'transformer_depth', ())
  return BlockLayout(
    layers=getattr(config, 'layers_per_block', 0),
    attention=tuple(map(bool, depths)),
    levels=len(getattr(config, 'block_out_channels', ())),
  )


def infer_block_layout(found):
  """The Layout of the nets that have these names, without their prefixes.

  Of the UNet's attention it tells nothing, nor do names going down need it.
  """
  layers = next((i - 1 for i in range(99) if DOWNSAMPLER.format(i) in found), 0)
  levels = sum(LEVEL.format(i) in found for i in range(99))
  return BlockLayout(layers=layers, levels=levels)


def original(component, name, layout):
  """A diffusers name > (the original one without prefix, what to do).

  The name is None where that layout has none.
  What is done to come from the original tensor to that of diffusers: '', 'T',
  'squeeze_hw', or one of 'rows0' to 'rows2', the thirds of the rows.
  """
  rule = {'unet': unet, 'vae': vae, 'text_encoder': keep}.get(component, tower)
  return rule(name, layout)


def keep(name, layout):
  del layout
  return name, ''


def split(name):
  """(module, '.weight' or '.bias')"""
  module, _, leaf = name.rpartition('.')
  return module, f'.{leaf}'


def unet(name, layout):
  module, leaf = split(name)
  if module in UNET:
    return UNET[module] + leaf, ''
  if found := re.match(r'mid_block\.(resnets|attentions)\.(\d)\.(.*)', module):
    kind, i, rest = found.groups()
    place = 1 if kind == 'attentions' else 2 * int(i)
    return f'middle_block.{place}.{RESNET.get(rest, rest)}{leaf}', ''
  pattern = r'(down|up)_blocks\.(\d+)\.([a-z]+)\.(\d+)\.(.*)'
  found = re.match(pattern, module)
  if not found:  # nets told the guidance scale came after that layout
    return None, ''
  side, level, kind, i, rest = found.groups()
  down, level, stride = side == 'down', int(level), layout.layers + 1
  if kind.endswith('samplers'):
    number = level * stride + layout.layers + down
    # Going up, it is one more layer of the level's last block.
    place = 0 if down else 1 + layout.attention[-1 - level]
    rest = 'op' if down else rest
  else:
    number = level * stride + int(i) + down
    place = int(kind == 'attentions')
    rest = RESNET.get(rest, rest)
  block = 'input_blocks' if down else 'output_blocks'
  return f'{block}.{number}.{place}.{rest}{leaf}', ''


def vae(name, layout):
  module, leaf = split(name)
  module = module.replace('conv_norm_out', 'norm_out')
  module = module.replace('conv_shortcut', 'nin_shortcut')
  pattern = r'(.*)\.mid_block\.attentions\.0\.(.*)'
  if found := re.match(pattern, module):
    half, layer = found.groups()
    to_do = 'squeeze_hw' if leaf == '.weight' and layer[:3] == 'to_' else ''
    return f'{half}.mid.attn_1.{VAE_ATTENTION[layer]}{leaf}', to_do
  if found := re.match(r'(.*)\.mid_block\.resnets\.(\d)\.(.*)', module):
    half, i, layer = found.groups()
    return f'{half}.mid.block_{int(i) + 1}.{layer}{leaf}', ''
  if found := re.match(r'(.*)\.(down|up)_blocks\.(\d+)\.(.*)', module):
    half, side, level, rest = found.groups()
    level = int(level) if side == 'down' else layout.levels - 1 - int(level)
    rest = rest.replace('resnets.', 'block.')
    rest = re.sub(r'(down|up)samplers\.0', r'\1sample', rest)
    module = f'{half}.{side}.{level}.{rest}'
  return module + leaf, ''


def tower(name, layout):
  del layout
  if name in TOWER:
    return TOWER[name], 'T' if name == 'text_projection.weight' else ''
  pattern = r'text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)'
  i, module, leaf = re.match(pattern, name).groups()
  block = f'transformer.resblocks.{i}'
  if found := re.match(r'self_attn\.([qkv])_proj', module):
    return f'{block}.attn.in_proj_{leaf}', f'rows{"qkv".index(found[1])}'
  return f'{block}.{TOWER_BLOCK[module]}.{leaf}', ''


def table(component, wanted, layout):
  """{original name without prefix: [(diffusers name, what to do)]}."""
  found = {}
  for name in wanted:
    key, to_do = original(component, name, layout)
    if key is None:
      raise ValueError(
        f'single files have no name for {name}: write a diffusers folder'
      )
    found.setdefault(key, []).append((name, to_do))
  return {
    key: sorted(parts, key=lambda p: p[1]) for key, parts in found.items()
  }


def to_diffusers(tensor, to_do):
  """An original Tensor > that of diffusers, or one of those in it."""
  if to_do == 'T':
    read = lambda: tensor.read().T
    return dataclasses.replace(tensor, shape=tensor.shape[::-1], read=read)
  if to_do.startswith('rows'):
    rows = tensor.shape[0] // 3
    first = int(to_do[-1]) * rows
    read = lambda: tensor.read()[first : first + rows]
    return safetensors_file.LazyTensor(
      (rows, *tensor.shape[1:]), tensor.dtype, read
    )
  return tensor  # names.fit squeezes, as older folders have it too


def to_original(parts):
  """[(diffusers Tensor, what to do)] of one original tensor > that tensor."""
  (tensor, to_do), *others = parts
  if others:
    every = [t for t, _ in parts]
    shape = sum(t.shape[0] for t in every), *tensor.shape[1:]
    read = lambda: np.concatenate([t.read() for t in every])
    return safetensors_file.LazyTensor(shape, tensor.dtype, read)
  if to_do == 'squeeze_hw':
    return tensor_names.reshaped(tensor, (*tensor.shape, 1, 1))
  return to_diffusers(tensor, to_do)


def extras(prefix, component, positions):
  """{name: Tensor} of what the original nets have besides, all constant.

  sgm makes them and its strict loader asks for them; nothing in SDXL reads
  them. open_clip ends training with logit_scale at its limit, ln 100.
  """
  if component == 'text_encoder':
    ids = np.arange(positions)[None]
    key = 'text_model.embeddings.position_ids'
    return {prefix + key: safetensors_file.from_array(ids)}
  if component == 'text_encoder_2':
    scale = np.array(np.log(100), np.float32)
    return {f'{prefix}logit_scale': safetensors_file.from_array(scale)}
  return {}
