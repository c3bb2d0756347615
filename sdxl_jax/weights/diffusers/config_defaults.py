"""Completes the config.json of a net as diffusers and transformers do.

A field that the file lacks has the default of its class's constructor, which
for a few fields is not SDXL's value.
"""

from typing import Any

from sdxl_jax.weights.diffusers import controlnet_json, tiny_json

Json = dict[str, Any]

UNET = {
  'in_channels': 4,
  'out_channels': 4,
  'down_block_types': [
    'CrossAttnDownBlock2D',
    'CrossAttnDownBlock2D',
    'CrossAttnDownBlock2D',
    'DownBlock2D',
  ],
  'up_block_types': [
    'UpBlock2D',
    'CrossAttnUpBlock2D',
    'CrossAttnUpBlock2D',
    'CrossAttnUpBlock2D',
  ],
  'block_out_channels': [320, 640, 1280, 1280],
  'layers_per_block': 2,
  'norm_num_groups': 32,
  'cross_attention_dim': 1280,
  'transformer_layers_per_block': 1,
  'attention_head_dim': 8,
  'addition_embed_type': None,
  'use_linear_projection': False,
}
VAE = {
  'in_channels': 3,
  'latent_channels': 4,
  'down_block_types': ['DownEncoderBlock2D'],
  'up_block_types': ['UpDecoderBlock2D'],
  'block_out_channels': [64],
  'layers_per_block': 1,
  'norm_num_groups': 32,
  'scaling_factor': 0.18215,
}
CLIP = {
  'vocab_size': 49408,
  'hidden_size': 512,
  'intermediate_size': 2048,
  'projection_dim': 512,
  'num_hidden_layers': 12,
  'num_attention_heads': 8,
  'max_position_embeddings': 77,
  'hidden_act': 'quick_gelu',
  'eos_token_id': 49407,
}
DEFAULTS = {
  'unet': UNET,
  'vae': VAE,
  'text_encoder': CLIP,
  'text_encoder_2': CLIP,
}
# Of a text encoder whose config names none: diffusers takes the class that the
# model's index has for it.
ARCHITECTURES = {
  'text_encoder': ['CLIPTextModel'],
  'text_encoder_2': ['CLIPTextModelWithProjection'],
}
# Without a default, but part of every UNet of SDXL, whose addition_embed_type
# is 'text_time'.
REQUIRED = ('projection_class_embeddings_input_dim', 'addition_time_embed_dim')


def complete(name: str, published: Json, location: str) -> Json:
  """Adds the defaults of a net's class to its config.json.

  Args:
    name: of the component.
    published: its config.json.
    location: of the config, for errors.

  Raises:
    ValueError: if it lacks what no default can give.
  """
  if published.get('_class_name') == tiny_json.CLASS:
    return published  # it has other fields
  has_vector = published.get('addition_embed_type') == 'text_time'
  for field in REQUIRED if has_vector else ():
    if published.get(field) is None:
      raise ValueError(
        f'{location} lacks {field!r}, which has no default: re-download it'
      )
  if name == 'controlnet':
    return controlnet_json.complete(published)
  # The whole of CLIP, of which a text encoder is one part.
  text = published.get('text_config')
  if published.get('model_type') == 'clip' and isinstance(text, dict):
    published = text | {'projection_dim': published.get('projection_dim')}
    published |= {'model_type': 'clip_text_model', 'architectures': None}
  published = DEFAULTS[name] | published
  if name in ARCHITECTURES and not published.get('architectures'):
    published['architectures'] = ARCHITECTURES[name]
  return published


def sample_size(published: Json, location: str) -> tuple[int, int]:
  """Returns (height, width) in latents that a UNet's config.json names.

  Args:
    published: the config.json; null or no value stands for SDXL's 128.
    location: of the config, for errors.

  Raises:
    ValueError: for anything but a whole number or a pair of them.
  """
  stored = published.get('sample_size')
  stored = 128 if stored is None else stored
  pair = stored if isinstance(stored, list) else [stored] * 2
  if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
    raise ValueError(
      f'{location}: sample_size of its config is {stored!r}; it must be a '
      'whole number, a pair of them, or null'
    )
  return pair[0], pair[1]


def component_of(config: Json) -> str | None:
  """Detects the component of a config.json without a class, by its fields."""
  if 'controlnet_conditioning_channel_order' in config:
    return 'controlnet'
  if 'cross_attention_dim' in config and 'addition_time_embed_dim' in config:
    return 'unet'
  if {'latent_channels', 'scaling_factor', 'force_upcast'} & set(config):
    return 'vae'
  return None
