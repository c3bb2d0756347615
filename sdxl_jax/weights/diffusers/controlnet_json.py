"""Translates between the config.json of a ControlNet and a ControlNetConfig.

Its classes are ControlNetModel, and ControlNetUnionModel of a union net.
"""

from typing import Any

from sdxl_jax.models import controlnet
from sdxl_jax.weights.diffusers import unet_blocks

Json = dict[str, Any]
CLASS, UNION = CLASSES = 'ControlNetModel', 'ControlNetUnionModel'
# Of the constructors, for what a config lacks.
DEFAULTS = {
  'in_channels': 4,
  'conditioning_channels': 3,
  'down_block_types': [
    'CrossAttnDownBlock2D',
    'CrossAttnDownBlock2D',
    'CrossAttnDownBlock2D',
    'DownBlock2D',
  ],
  'block_out_channels': [320, 640, 1280, 1280],
  'layers_per_block': 2,
  'norm_num_groups': 32,
  'cross_attention_dim': 1280,
  'transformer_layers_per_block': 1,
  'attention_head_dim': 8,
  'addition_embed_type': None,
  'use_linear_projection': False,
  'controlnet_conditioning_channel_order': 'rgb',
  'conditioning_embedding_out_channels': [16, 32, 96, 256],
}
UNION_DEFAULTS = {
  'conditioning_embedding_out_channels': [48, 96, 192, 384],
  'num_control_type': 6,
  'num_trans_channel': 320,
  'num_trans_head': 8,
  'num_trans_layer': 1,
  'num_proj_channel': 320,
}
# Options that our net fixes; see config_json.py.
FIXED = {
  'act_fn': 'silu',
  'addition_embed_type': 'text_time',
  'class_embed_type': None,
  'downsample_padding': 1,
  'encoder_hid_dim': None,
  'encoder_hid_dim_type': None,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'global_pool_conditions': False,
  'mid_block_scale_factor': 1,
  'norm_eps': 1e-5,
  'num_attention_heads': None,
  'num_class_embeds': None,
  'only_cross_attention': False,
  'resnet_time_scale_shift': 'default',
  'use_linear_projection': True,
}


def is_union(published: Json) -> bool:
  """Whether a config.json is that of a union net."""
  if '_class_name' in published:
    return published['_class_name'] == UNION
  return 'num_control_type' in published


def complete(published: Json) -> Json:
  """Adds the defaults of its class to a config.json."""
  more = UNION_DEFAULTS if is_union(published) else {}
  return DEFAULTS | more | published


def check_is_sdxl(published: Json, location: str) -> None:
  """Raises ValueError for a ControlNet of another model than SDXL.

  Its attention to text would have other widths, and there are no sizes.
  """
  width = published['cross_attention_dim']
  if published['addition_embed_type'] is not None:
    return
  models = {768: 'Stable Diffusion 1', 1024: 'Stable Diffusion 2'}
  raise ValueError(
    f'{location} is a ControlNet of {models.get(width, "another model")}, with '
    f'a cross_attention_dim of {width} and without the sizes of images '
    '(addition_embed_type): use one that was trained for SDXL, whose '
    f'cross_attention_dim is {controlnet.BASE.context_dim}'
  )


def read(published: Json, location: str) -> controlnet.ControlNetConfig:
  """Reads a config.json, whose fixed options were checked.

  Raises:
    ValueError: for blocks or widths that are not implemented.
  """
  levels = len(published['block_out_channels'])
  order = published['controlnet_conditioning_channel_order']
  if order not in ('rgb', 'bgr'):
    raise ValueError(
      f'{location}: controlnet_conditioning_channel_order is {order!r}, but '
      "only 'rgb' and 'bgr' are implemented"
    )
  # The way up, which a ControlNet has not, would mirror the way down.
  attends = [
    kind == unet_blocks.DOWN[True] for kind in published['down_block_types']
  ]
  up = [unet_blocks.UP[x] for x in reversed(attends)]
  blocks = unet_blocks.read(published | {'up_block_types': up}, location)
  if blocks['mid_transformer_depth'] is None:
    raise ValueError(
      f'{location}: mid_block_type is null, and a ControlNet '
      'has a mid block: re-download the file'
    )
  return controlnet.ControlNetConfig(
    in_channels=published['in_channels'],
    block_out_channels=tuple(published['block_out_channels']),
    **blocks,
    num_heads=unet_blocks.per_level(published['attention_head_dim'], levels),
    context_dim=published['cross_attention_dim'],
    vector_dim=published['projection_class_embeddings_input_dim'],
    size_embed_dim=published['addition_time_embed_dim'],
    norm_num_groups=published['norm_num_groups'],
    conditioning_channels=published['conditioning_channels'],
    conditioning_features=tuple(
      published['conditioning_embedding_out_channels']
    ),
    channel_order=order,
    **(read_union(published, location) if is_union(published) else {}),
  )


def read_union(published: Json, location: str) -> Json:
  """Reads the fields of a union net.

  Raises:
    ValueError: for tokens of another width than the first level's.
  """
  width = published['block_out_channels'][0]
  for name in ('num_trans_channel', 'num_proj_channel'):
    if published[name] != width:
      raise ValueError(
        f'{location}: {name} is {published[name]}, but only {width} fits the '
        'first of block_out_channels: re-download the file'
      )
  return {
    'control_types': published['num_control_type'],
    'fusion_heads': published['num_trans_head'],
    'fusion_layers': published['num_trans_layer'],
  }


def write(config: controlnet.ControlNetConfig) -> Json:
  """Returns the config.json of a ControlNet."""
  blocks = unet_blocks.write(config)
  del blocks['up_block_types'], blocks['reverse_transformer_layers_per_block']
  entries = {
    **FIXED,
    'in_channels': config.in_channels,
    'conditioning_channels': config.conditioning_channels,
    'block_out_channels': list(config.block_out_channels),
    **blocks,
    'attention_head_dim': list(config.num_heads),  # the number of heads
    'cross_attention_dim': config.context_dim,
    'projection_class_embeddings_input_dim': config.vector_dim,
    'addition_time_embed_dim': config.size_embed_dim,
    'norm_num_groups': config.norm_num_groups,
    'controlnet_conditioning_channel_order': config.channel_order,
    'conditioning_embedding_out_channels': list(config.conditioning_features),
  }
  if not config.control_types:
    return {'_class_name': CLASS} | entries
  del entries['mid_block_type']  # which the class has not
  width = config.block_out_channels[0]
  return (
    {'_class_name': UNION}
    | entries
    | {
      'num_control_type': config.control_types,
      'num_trans_channel': width,
      'num_trans_head': config.fusion_heads,
      'num_trans_layer': config.fusion_layers,
      'num_proj_channel': width,
    }
  )
