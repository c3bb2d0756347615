"""The config.json of a diffusers folder <> our frozen config dataclasses.

What our nets leave open is read; what they fix is checked against the FIXED
tables, so that a variant we do not build is refused by name and not computed
wrongly.
"""

import dataclasses

from sdxl_jax.models import clip, unet, vae

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
  'mid_block_type': 'UNetMidBlock2DCrossAttn',
  'norm_eps': 1e-5,
  'num_attention_heads': None,
  'num_class_embeds': None,
  'only_cross_attention': False,
  'resnet_out_scale_factor': 1.0,
  'resnet_skip_time_act': False,
  'resnet_time_scale_shift': 'default',
  'reverse_transformer_layers_per_block': None,
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
# Where config.json is silent and the library does not assume what we build.
SILENT = {'addition_embed_type': None, 'use_linear_projection': False}
# Of no consequence here: a hint for pipelines, and for float16.
IGNORED = {'sample_size', 'force_upcast', 'addition_embed_type_num_heads'}
# How an average over the training was kept, which diffusers saves beside it.
IGNORED |= {'decay', 'min_decay', 'optimization_step', 'update_after_step'}
IGNORED |= {'use_ema_warmup', 'inv_gamma', 'power'}


def check_fixed(published, fixed, where):
  """Refuse values that our nets do not build, naming key, value and ours."""
  for key, ours in fixed.items():
    value = published.get(key, SILENT.get(key, ours))
    # null and false say the same of an option that is off.
    if (value or None) != (ours or None):
      raise ValueError(
        f'{where}: {key} is {value!r}, but only {ours!r} is implemented: '
        'these are not the weights of an SDXL model'
      )


def check_known(published, known, where):
  """Refuse options that we have never heard of, unless they are off."""
  for key in set(published) - set(known) - IGNORED:
    if published[key] not in (None, False) and not key.startswith('_'):
      raise ValueError(
        f'{where}: unknown option {key} = {published[key]!r}; remove it if the '
        'net does not depend on it'
      )


def per_level(value, levels):
  return tuple(value) if isinstance(value, list) else (value,) * levels


def attention_types(depths, kind, cross):
  return [cross if depth else kind for depth in depths]


def read_unet(published, where):
  """UNetConfig of unet/config.json."""
  check_fixed(published, UNET_FIXED, where)
  levels = len(published['block_out_channels'])
  depths = per_level(published['transformer_layers_per_block'], levels)
  crossed = [t == 'CrossAttnDownBlock2D' for t in published['down_block_types']]
  config = unet.UNetConfig(
    in_channels=published['in_channels'],
    out_channels=published['out_channels'],
    block_out_channels=tuple(published['block_out_channels']),
    layers_per_block=published['layers_per_block'],
    transformer_depth=tuple(d * c for d, c in zip(depths, crossed)),
    mid_transformer_depth=depths[-1],
    num_heads=per_level(published['attention_head_dim'], levels),
    context_dim=published['cross_attention_dim'],
    vector_dim=published['projection_class_embeddings_input_dim'],
    size_embed_dim=published['addition_time_embed_dim'],
    guidance_embed_dim=published.get('time_cond_proj_dim'),
    norm_num_groups=published['norm_num_groups'],
  )
  ours = write_unet(config)
  check_known(published, ours, where)
  check_blocks(published, ours, where)
  return config


def write_unet(config):
  """The config.json of a UNetConfig."""
  depths = config.transformer_depth
  if depths[-1] not in (0, config.mid_transformer_depth):
    raise ValueError(
      f'mid_transformer_depth {config.mid_transformer_depth} differs from the '
      f'last level, {depths[-1]}: the diffusers layout has no word for it'
    )
  layers = [depth or 1 for depth in depths[:-1]]
  return {
    '_class_name': 'UNet2DConditionModel',
    **UNET_FIXED,
    'in_channels': config.in_channels,
    'out_channels': config.out_channels,
    'block_out_channels': list(config.block_out_channels),
    'layers_per_block': config.layers_per_block,
    'down_block_types': attention_types(
      depths, 'DownBlock2D', 'CrossAttnDownBlock2D'
    ),
    'up_block_types': attention_types(
      depths[::-1], 'UpBlock2D', 'CrossAttnUpBlock2D'
    ),
    'transformer_layers_per_block': [*layers, config.mid_transformer_depth],
    'attention_head_dim': list(config.num_heads),  # the number of heads
    'cross_attention_dim': config.context_dim,
    'projection_class_embeddings_input_dim': config.vector_dim,
    'addition_time_embed_dim': config.size_embed_dim,
    'time_cond_proj_dim': config.guidance_embed_dim,
    'norm_num_groups': config.norm_num_groups,
  }


def read_vae(published, where):
  """VAEConfig of vae/config.json."""
  check_fixed(published, VAE_FIXED, where)
  names = {f.name for f in dataclasses.fields(vae.VAEConfig)}
  fields = {k: v for k, v in published.items() if k in names}
  for name in ('block_out_channels', 'latents_mean', 'latents_std'):
    fields[name] = published.get(name) and tuple(published[name])
  config = vae.VAEConfig(**fields)
  ours = write_vae(config)
  check_known(published, ours, where)
  check_blocks(published, ours, where)
  return config


def write_vae(config):
  """The config.json of a VAEConfig."""
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
    'latents_mean': config.latents_mean and list(config.latents_mean),
    'latents_std': config.latents_std and list(config.latents_std),
    'force_upcast': True,
  }


def check_blocks(published, ours, where):
  for key in ('down_block_types', 'up_block_types'):
    if published[key] != ours[key]:
      raise ValueError(
        f'{where}: {key} {published[key]} is not implemented; with these '
        f'depths it would be {ours[key]}'
      )


def read_clip(published, where):
  """CLIPTextConfig of text_encoder/config.json."""
  check_fixed(published, CLIP_FIXED, where)
  if published['hidden_act'] not in clip.ACTIVATIONS:
    raise ValueError(
      f'{where}: hidden_act {published["hidden_act"]!r} is not one of '
      f'{sorted(clip.ACTIVATIONS)}'
    )
  names = {f.name for f in dataclasses.fields(clip.CLIPTextConfig)}
  fields = {k: v for k, v in published.items() if k in names - {'dtype'}}
  # Every config has a projection_dim; only this class has the projection.
  if published['architectures'] != ['CLIPTextModelWithProjection']:
    fields['projection_dim'] = None
  return clip.CLIPTextConfig(**fields)


def write_clip(config):
  """The config.json of a CLIPTextConfig."""
  projected = config.projection_dim is not None
  return {
    'architectures': ['CLIPTextModel' + 'WithProjection' * projected],
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
    'eos_token_id': 2,  # transformers then takes the largest id, as we do
    'pad_token_id': 1,
  }


READ = {
  'unet': read_unet,
  'vae': read_vae,
  'text_encoder': read_clip,
  'text_encoder_2': read_clip,
}
WRITE = {
  'unet': write_unet,
  'vae': write_vae,
  'text_encoder': write_clip,
  'text_encoder_2': write_clip,
}


def read(name, published, where):
  """The config of a component; `where` names the file in errors."""
  try:
    return READ[name](published, where)
  except KeyError as error:
    raise ValueError(f'{where} lacks {error}: copy it again') from error
  except (TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f'{where} has a value of the wrong kind ({error}): copy it again'
    ) from error


def write(name, config):
  """The config.json of a component, as a dict that diffusers reads."""
  if isinstance(config, vae.PatchConfig):
    raise ValueError(
      'the identity autoencoder (PatchConfig) has no counterpart in the '
      'diffusers layout: keep this model as a checkpoint'
    )
  return WRITE[name](config)
