"""The architecture of a net, read off the shapes of its published tensors.

Shapes tell widths and depths. They do not tell into how many heads or groups
channels are divided: all published SDXL nets, which start at the widths below,
have heads of 64 channels and 32 groups. A smaller one must be told by a config.
"""

import dataclasses

from sdxl_jax.models import clip, unet, vae
from sdxl_jax.weights.diffusers import config_json

HEAD = 64
NARROWEST = {'unet': 320, 'vae': 128, 'text_encoder': 768}


def published(name, shape, told, where):
  """The config.json, as a dict, of a net that came without one.

  Args:
    name: of the component.
    shape: {published name: shape}.get
    told: the config.json of a net like it, or None.
    where: it lies, for errors.

  Raises:
    ValueError: where the shapes are of no net of ours, or of another one than
      told, or nobody tells what they do not.
  """
  try:
    found = FIELDS[name](shape)
  except (TypeError, IndexError) as error:
    raise ValueError(
      f'{where}: tensors of the {name} are missing, or of odd shapes'
    ) from error
  if told is None:
    return config_json.write(name, guess(name, found, where))
  config = config_json.read(name, told, where)
  for field, value in found.items():
    if getattr(config, field) != value:
      raise ValueError(
        f'{where}: {field} of the {name} is {value} by the shapes, but '
        f'{getattr(config, field)} by its metadata or --base, which are of '
        'another net'
      )
  return told


def count(shape, pattern):
  """How many tensors there are, numbered from 0."""
  found = 0
  while shape(pattern.format(found)):
    found += 1
  return found


def unet_fields(shape):
  levels = count(shape, 'down_blocks.{}.resnets.0.conv1.weight')
  down = 'down_blocks.{}.attentions.0.transformer_blocks.{{}}.norm1.weight'
  depths = [count(shape, down.format(i)) for i in range(levels)]
  mid = 'mid_block.attentions.0.transformer_blocks.{}'
  context = shape(f'{mid.format(0)}.attn2.to_k.weight')[1]
  width = lambda i: shape(f'down_blocks.{i}.resnets.0.conv1.weight')[0]
  guidance = shape('time_embedding.cond_proj.weight')
  return {
    'in_channels': shape('conv_in.weight')[1],
    'out_channels': shape('conv_out.weight')[0],
    'block_out_channels': tuple(width(i) for i in range(levels)),
    'layers_per_block': count(shape, 'down_blocks.0.resnets.{}.conv1.weight'),
    'transformer_depth': tuple(depths),
    'mid_transformer_depth': count(shape, f'{mid}.norm1.weight'),
    'context_dim': context,
    'vector_dim': shape('add_embedding.linear_1.weight')[1],
    'guidance_embed_dim': guidance[1] if guidance else None,
  }


def vae_fields(shape):
  level = 'encoder.down_blocks.{}.resnets.0.conv1.weight'
  block = 'encoder.down_blocks.0.resnets.{}.conv1.weight'
  levels = range(count(shape, level))
  return {
    'in_channels': shape('encoder.conv_in.weight')[1],
    'latent_channels': shape('decoder.conv_in.weight')[1],
    'block_out_channels': tuple(shape(level.format(i))[0] for i in levels),
    'layers_per_block': count(shape, block),
  }


def tower_fields(shape):
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
  'text_encoder': tower_fields,
  'text_encoder_2': tower_fields,
}


def guess(name, fields, where):
  """The config of a published net with these fields."""
  widths = fields.get('block_out_channels') or (fields['hidden_size'],)
  narrowest = NARROWEST.get(name, NARROWEST['text_encoder'])
  if min(widths) < narrowest or any(width % HEAD for width in widths):
    raise ValueError(
      f'{where}: the {name} is {" ".join(map(str, widths))} channels wide, and '
      'its shapes do not tell its heads and groups, which are known of '
      f'multiples of {HEAD} from {narrowest} on: give a --base with its '
      'config.json, or a file that sdxl_jax.convert wrote'
    )
  if name == 'unet':
    heads = tuple(width // HEAD for width in widths)
    return dataclasses.replace(unet.BASE, **fields, num_heads=heads)
  if name == 'vae':
    return vae.VAEConfig(**fields)
  like = clip.VIT_L if name == 'text_encoder' else clip.VIT_BIGG
  heads = widths[0] // HEAD
  return dataclasses.replace(like, **fields, num_attention_heads=heads)
