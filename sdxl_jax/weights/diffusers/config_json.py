"""Translates between diffusers' config.json and our frozen config dataclasses.

Options that our nets have are read; options that they fix are checked against
the FIXED tables, so that an unimplemented variant is refused by name instead of
computed wrongly.
"""

import dataclasses
from typing import Any

from sdxl_jax.models import clip, controlnet, tiny_vae, unet, vae
from sdxl_jax.weights.diffusers import (
  config_defaults,
  controlnet_json,
  tiny_json,
  unet_blocks,
)

Json = dict[str, Any]  # the object in a config.json
NetConfig = unet.UNetConfig | vae.AnyConfig | clip.CLIPTextConfig

UNET_FIXED = {
  'act_fn': 'silu',
  'addition_embed_type': 'text_time',
  'attention_type': 'default',
  'center_input_sample': False,
  'class_embed_type': None,
  'class_embeddings_concat': False,
  'conv_in_kernel': 3,
  'conv_out_kernel': 3,
  'cross_attention_norm': None,
  'downsample_padding': 1,
  'dropout': 0.0,
  'dual_cross_attention': False,
  'encoder_hid_dim': None,
  'encoder_hid_dim_type': None,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'mid_block_only_cross_attention': None,
  'mid_block_scale_factor': 1,
  'norm_eps': 1e-5,
  'num_attention_heads': None,
  'num_class_embeds': None,
  'only_cross_attention': False,
  'resnet_out_scale_factor': 1.0,
  'resnet_skip_time_act': False,
  'resnet_time_scale_shift': 'default',
  'time_embedding_act_fn': None,
  'time_embedding_dim': None,
  'time_embedding_type': 'positional',
  'timestep_post_act': None,
  'upcast_attention': None,
  'use_linear_projection': True,
}
VAE_FIXED = {
  'act_fn': 'silu',
  'mid_block_add_attention': True,
  'shift_factor': None,
  'use_post_quant_conv': True,
  'use_quant_conv': True,
}
CLIP_FIXED = {
  'attention_dropout': 0.0,
  'layer_norm_eps': 1e-5,
  'model_type': 'clip_text_model',
}
ALIASES = {'swish': 'silu'}  # other names of the same
# Without effect on the net: a hint for pipelines, and one for float16.
IGNORED = {'sample_size', 'force_upcast', 'addition_embed_type_num_heads'}
# Settings of training, and of the precision of attention in float16.
IGNORED |= {'dropout', 'attention_dropout', 'upcast_attention'}
# Settings of an EMA in training, which diffusers saves with the averaged net.
IGNORED |= {'decay', 'min_decay', 'optimization_step', 'update_after_step'}
IGNORED |= {'use_ema_warmup', 'inv_gamma', 'power'}


def check_fixed(published: Json, fixed: Json, location: str) -> None:
  """Raises ValueError for a value that is not implemented."""
  for key, implemented in fixed.items():
    if key in IGNORED:
      continue
    value = published.get(key, implemented)
    value = ALIASES.get(value, value) if isinstance(value, str) else value
    # null and false both mean that an option is off.
    if (value or None) != (implemented or None):
      raise ValueError(
        f'{location}: {key} is {value!r}, but only {implemented!r} is '
        'implemented, which all published SDXL models have: the net is another '
        'one, or the file was edited'
      )


def check_known(published: Json, known: Json, location: str) -> None:
  """Raises ValueError for an unknown option, unless it is off."""
  for key in set(published) - set(known) - IGNORED:
    if published[key] not in (None, False) and not key.startswith('_'):
      raise ValueError(
        f'{location}: unknown option {key} = {published[key]!r}; remove it if '
        'the net does not depend on it'
      )


def read_unet(published: Json, location: str) -> unet.UNetConfig:
  """Reads unet/config.json."""
  check_fixed(published, UNET_FIXED, location)
  levels = len(published['block_out_channels'])
  config = unet.UNetConfig(
    in_channels=published['in_channels'],
    out_channels=published['out_channels'],
    block_out_channels=tuple(published['block_out_channels']),
    **unet_blocks.read(published, location),
    num_heads=unet_blocks.per_level(published['attention_head_dim'], levels),
    context_dim=published['cross_attention_dim'],
    vector_dim=published['projection_class_embeddings_input_dim'],
    size_embed_dim=published['addition_time_embed_dim'],
    guidance_embed_dim=published.get('time_cond_proj_dim'),
    norm_num_groups=published['norm_num_groups'],
  )
  check_same_blocks(published, write_unet(config), location)
  return config


def write_unet(config: unet.UNetConfig) -> Json:
  """Returns the config.json of a UNetConfig."""
  return {
    '_class_name': 'UNet2DConditionModel',
    **UNET_FIXED,
    'in_channels': config.in_channels,
    'out_channels': config.out_channels,
    'block_out_channels': list(config.block_out_channels),
    **unet_blocks.write(config),
    'attention_head_dim': list(config.num_heads),  # the number of heads
    'cross_attention_dim': config.context_dim,
    'projection_class_embeddings_input_dim': config.vector_dim,
    'addition_time_embed_dim': config.size_embed_dim,
    'time_cond_proj_dim': config.guidance_embed_dim,
    'norm_num_groups': config.norm_num_groups,
  }


def read_controlnet(
  published: Json, location: str
) -> controlnet.ControlNetConfig:
  """Reads the config.json of a ControlNet."""
  controlnet_json.check_is_sdxl(published, location)
  check_fixed(published, controlnet_json.FIXED, location)
  config = controlnet_json.read(published, location)
  check_same_blocks(published, controlnet_json.write(config), location)
  return config


def read_vae(
  published: Json, location: str
) -> vae.VAEConfig | tiny_vae.TinyConfig:
  """Reads vae/config.json, of an AutoencoderKL or an AutoencoderTiny."""
  if published.get('_class_name') == tiny_json.CLASS:
    check_fixed(published, tiny_json.FIXED, location)
    config = tiny_json.read(published, location)
    check_known(published, tiny_json.write(config), location)
    return config
  check_fixed(published, VAE_FIXED, location)
  names = {f.name for f in dataclasses.fields(vae.VAEConfig)}
  fields = {k: v for k, v in published.items() if k in names}
  for name in ('block_out_channels', 'latents_mean', 'latents_std'):
    fields[name] = tuple(published[name]) if published.get(name) else None
  config = vae.VAEConfig(**fields)
  check_same_blocks(published, write_vae(config), location)
  return config


def write_vae(config: vae.VAEConfig | tiny_vae.TinyConfig) -> Json:
  """Returns the config.json of an autoencoder."""
  if isinstance(config, tiny_vae.TinyConfig):
    return tiny_json.write(config)
  mean, std = config.latents_mean, config.latents_std
  levels = len(config.block_out_channels)
  return {
    '_class_name': 'AutoencoderKL',
    **VAE_FIXED,
    'in_channels': config.in_channels,
    'out_channels': config.in_channels,
    'latent_channels': config.latent_channels,
    'block_out_channels': list(config.block_out_channels),
    'layers_per_block': config.layers_per_block,
    'down_block_types': ['DownEncoderBlock2D'] * levels,
    'up_block_types': ['UpDecoderBlock2D'] * levels,
    'norm_num_groups': config.norm_num_groups,
    'scaling_factor': config.scaling_factor,
    'latents_mean': list(mean) if mean else None,
    'latents_std': list(std) if std else None,
    'force_upcast': True,
  }


def check_same_blocks(published: Json, written: Json, location: str) -> None:
  """Checks a config.json against the one that its net would be written with."""
  check_known(published, written, location)
  for key in ('down_block_types', 'up_block_types'):
    if key in written and published[key] != written[key]:
      raise ValueError(
        f'{location}: {key} {published[key]} is not implemented; with these '
        f'depths it would be {written[key]}'
      )


def read_clip(published: Json, location: str) -> clip.CLIPTextConfig:
  """Reads text_encoder/config.json."""
  check_fixed(published, CLIP_FIXED, location)
  if published['hidden_act'] not in clip.ACTIVATIONS:
    raise ValueError(
      f'{location}: hidden_act {published["hidden_act"]!r} is not one of '
      f'{sorted(clip.ACTIVATIONS)}'
    )
  names = {f.name for f in dataclasses.fields(clip.CLIPTextConfig)}
  fields = {k: v for k, v in published.items() if k in names - {'dtype'}}
  # Every config has a projection_dim; only this class has the projection.
  if published['architectures'] != ['CLIPTextModelWithProjection']:
    fields['projection_dim'] = None
  return clip.CLIPTextConfig(**fields)


def write_clip(config: clip.CLIPTextConfig) -> Json:
  """Returns the config.json of a CLIPTextConfig."""
  architecture = 'CLIPTextModel'
  if config.projection_dim is not None:
    architecture = 'CLIPTextModelWithProjection'
  return {
    'architectures': [architecture],
    **CLIP_FIXED,
    'vocab_size': config.vocab_size,
    'max_position_embeddings': config.max_position_embeddings,
    'hidden_size': config.hidden_size,
    'intermediate_size': config.intermediate_size,
    'num_hidden_layers': config.num_hidden_layers,
    'num_attention_heads': config.num_attention_heads,
    'hidden_act': config.hidden_act,
    'projection_dim': config.projection_dim or config.hidden_size,
    'bos_token_id': 0,
    'eos_token_id': config.eos_token_id,
    'pad_token_id': 1,
  }


READ = {
  'unet': read_unet,
  'vae': read_vae,
  'text_encoder': read_clip,
  'text_encoder_2': read_clip,
  'controlnet': read_controlnet,
}
WRITE = {
  'unet': write_unet,
  'vae': write_vae,
  'text_encoder': write_clip,
  'text_encoder_2': write_clip,
  'controlnet': controlnet_json.write,
}


def read(name: str, published: Json, location: str) -> NetConfig:
  """Reads the config.json of a component; `location` names it in errors."""
  published = config_defaults.complete(name, published, location)
  try:
    config = READ[name](published, location)
  except KeyError as error:
    raise ValueError(f'{location} lacks {error}: re-download it') from error
  except (TypeError, AttributeError, IndexError) as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(
      f'{location} has an invalid value ({reason}): re-download the file'
    ) from error
  check_types(config, location)
  return config


def check_types(config: NetConfig, location: str) -> None:
  """Raises ValueError for a value of another type than its field's."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    # JSON's 1 stands for 1.0, too.
    kinds = (float, int) if field.type is float else (field.type,)
    if field.type in (int, str, bool, float) and type(value) not in kinds:
      raise ValueError(
        f'{location} has an invalid value ({field.name} is {value!r}, not of '
        f'type {field.type.__name__}): re-download the file'
      )


def write(name: str, config: NetConfig) -> Json:
  """Returns the config.json of a component, as diffusers reads it."""
  if isinstance(config, vae.PatchConfig):
    raise ValueError(
      'the identity autoencoder (PatchConfig) has no counterpart in the '
      'diffusers layout: keep this model as a checkpoint'
    )
  return WRITE[name](config)
