"""Infers the config of a net from the shapes of its published tensors.

Shapes determine widths and depths. They do not determine into how many heads or
groups channels are divided: all published SDXL nets, which start at the widths
below, have heads of 64 channels and 32 groups. A smaller net needs a config.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from sdxl_jax.models import clip, controlnet, unet, vae
from sdxl_jax.weights.diffusers import config_json

HEAD = 64  # channels
# Channels.
NARROWEST = {'unet': 320, 'controlnet': 320, 'vae': 128, 'text_encoder': 768}
# (published name) -> the shape of the tensor, or None without such a tensor.
Shape = Callable[[str], tuple[int, ...] | None]


def infer_config_json(
  name: str,
  shape: Shape,
  known_config: dict[str, Any] | None,
  location: str,
) -> dict[str, Any]:
  """Infers the config.json of a net that was published without one.

  Args:
    name: of the component.
    shape: of each published tensor.
    known_config: the config.json of a net of the same kind, or None.
    location: of the net, for errors.

  Raises:
    ValueError: if the shapes are of no net that is implemented, or of another
      net than `known_config`, or if the head count cannot be inferred and no
      config is known.
  """
  probed = []

  def probe(tensor):
    probed.append(tensor)
    return shape(tensor)

  try:
    fields = FIELDS[name](probe)
  except (TypeError, IndexError) as error:
    odd = shape(probed[-1])
    fault = f'has the odd shape {odd}' if odd else 'is missing'
    raise ValueError(
      f'{location}: {probed[-1]} {fault}, so that the size of the {name} is '
      'not known'
    ) from error
  # SDXL reads the pooled output of the second text encoder, and of no other.
  if name == 'text_encoder':
    del fields['projection_dim']
  elif name == 'text_encoder_2' and fields['projection_dim'] is None:
    raise ValueError(
      f'{location}: text_projection is missing, which the second text encoder '
      'of every SDXL model has: use a complete file'
    )
  if known_config is None:
    return config_json.write(name, guess_config(name, fields, location))
  # A known config must agree with the shapes.
  config = config_json.read(name, known_config, location)
  for field, value in fields.items():
    if getattr(config, field) != value:
      raise ValueError(
        f'{location}: {field} of the {name} is {value} by the shapes, but '
        f'{getattr(config, field)} by its metadata or --base, which are of '
        'another net'
      )
  return known_config


def count(shape: Shape, pattern: str) -> int:
  """Counts the tensors of a pattern, numbered from 0."""
  number = 0
  while shape(pattern.format(number)):
    number += 1
  return number


TRANSFORMER = '{}.attentions.{}.transformer_blocks.{{}}'


def transformer_depths(shape: Shape, level: str, layers: int) -> unet.Depth:
  """Counts the transformer blocks of a level of the UNet."""
  pattern = TRANSFORMER + '.norm1.weight'
  return unet.shorten(
    [count(shape, pattern.format(level, i)) for i in range(layers)]
  )


def context_dim(shape: Shape, levels: int) -> int:
  """Infers the width of the text from the first attention that there is."""
  pattern = TRANSFORMER.format('{}', 0).format('{}', 0) + '.attn2.to_k.weight'
  sides = ('down_blocks', 'up_blocks')
  blocks = [f'{side}.{i}' for side in sides for i in range(levels)]
  keys = [shape(pattern.format(block)) for block in ('mid_block', *blocks)]
  return next(filter(None, keys), None)[1]


def down_fields(shape: Shape) -> dict[str, Any]:
  """Infers fields of a UNetConfig that describe the way down and the middle."""
  # Levels are counted by a tensor that each of them has.
  resnet = 'down_blocks.{}.resnets.0.conv1.weight'
  levels = range(count(shape, resnet))
  layers = [
    count(shape, f'down_blocks.{i}.resnets.{{}}.conv1.weight') for i in levels
  ]
  down = [
    transformer_depths(shape, f'down_blocks.{i}', layers[i]) for i in levels
  ]
  mid = count(shape, TRANSFORMER.format('mid_block', 0) + '.norm1.weight')
  has_mid = shape('mid_block.resnets.0.conv1.weight') is not None
  return {
    'in_channels': shape('conv_in.weight')[1],
    'block_out_channels': tuple(shape(resnet.format(i))[0] for i in levels),
    'layers_per_block': unet.shorten(layers),
    'transformer_depth': tuple(down),
    'mid_transformer_depth': mid if has_mid else None,
    'context_dim': context_dim(shape, len(layers)),
    'vector_dim': shape('add_embedding.linear_1.weight')[1],
  }


def unet_fields(shape: Shape) -> dict[str, Any]:
  """Infers fields of a UNetConfig."""
  fields = down_fields(shape)
  levels = len(fields['block_out_channels'])
  layers = unet.per_block(fields['layers_per_block'], levels)
  up = [
    transformer_depths(shape, f'up_blocks.{levels - 1 - i}', layers[i] + 1)
    for i in range(levels)
  ]
  guidance = shape('time_embedding.cond_proj.weight')
  return fields | {
    'out_channels': shape('conv_out.weight')[0],
    'up_transformer_depth': unet.shorten_up(fields['transformer_depth'], up),
    'guidance_embed_dim': guidance[1] if guidance else None,
  }


def controlnet_fields(shape: Shape) -> dict[str, Any]:
  """Infers fields of a ControlNetConfig."""
  block = 'controlnet_cond_embedding.blocks.{}.weight'
  first = shape('controlnet_cond_embedding.conv_in.weight')
  # The second of each two convolutions has the next width.
  widths = [shape(block.format(i))[0] for i in range(1, count(shape, block), 2)]
  types = shape('task_embedding')
  return down_fields(shape) | {
    'conditioning_channels': first[1],
    'conditioning_features': (first[0], *widths),
    'control_types': types[0] if types else 0,
    'fusion_layers': count(shape, 'transformer_layes.{}.ln_1.weight')
    if types
    else controlnet.BASE.fusion_layers,
  }


def vae_fields(shape: Shape) -> dict[str, Any]:
  """Infers fields of a VAEConfig."""
  level = 'encoder.down_blocks.{}.resnets.0.conv1.weight'
  block = 'encoder.down_blocks.0.resnets.{}.conv1.weight'
  levels = range(count(shape, level))
  return {
    'in_channels': shape('encoder.conv_in.weight')[1],
    'latent_channels': shape('decoder.conv_in.weight')[1],
    'block_out_channels': tuple(shape(level.format(i))[0] for i in levels),
    'layers_per_block': count(shape, block),
  }


def text_encoder_fields(shape: Shape) -> dict[str, Any]:
  """Infers fields of a CLIPTextConfig."""
  embeddings = 'text_model.embeddings.{}_embedding.weight'
  vocabulary, width = shape(embeddings.format('token'))
  layer = 'text_model.encoder.layers.{}.mlp.fc1.weight'
  projection = shape('text_projection.weight')
  return {
    'vocab_size': vocabulary,
    'max_position_embeddings': shape(embeddings.format('position'))[0],
    'hidden_size': width,
    'intermediate_size': shape(layer.format(0))[0],
    'num_hidden_layers': count(shape, layer),
    'projection_dim': projection[0] if projection else None,
  }


FIELDS = {
  'unet': unet_fields,
  'vae': vae_fields,
  'text_encoder': text_encoder_fields,
  'text_encoder_2': text_encoder_fields,
  'controlnet': controlnet_fields,
}


def guess_config(
  name: str, fields: dict[str, Any], location: str
) -> unet.UNetConfig | vae.VAEConfig | clip.CLIPTextConfig:
  """Completes the fields with those that published nets have in common."""
  # Channels of the UNet's or VAE's levels, or of the text encoder.
  widths = fields.get('block_out_channels') or (fields['hidden_size'],)
  narrowest = NARROWEST.get(name, NARROWEST['text_encoder'])
  if min(widths) < narrowest or any(width % HEAD for width in widths):
    raise ValueError(
      f'{location}: the {name} is {" ".join(map(str, widths))} channels wide, '
      'and its numbers of heads and groups can be inferred only for multiples '
      f'of {HEAD} from {narrowest} on: pass a --base with its config.json, or '
      'a file that sdxl_jax.convert wrote'
    )
  heads = tuple(width // HEAD for width in widths)
  if name == 'unet':
    return dataclasses.replace(unet.BASE, **fields, num_heads=heads)
  if name == 'controlnet':
    return dataclasses.replace(controlnet.BASE, **fields, num_heads=heads)
  if name == 'vae':
    return vae.VAEConfig(**fields)
  published = clip.VIT_L if name == 'text_encoder' else clip.VIT_BIGG
  return dataclasses.replace(published, **fields, num_attention_heads=heads[0])
