"""Translates between the config.json of an AutoencoderTiny and a TinyConfig."""

from typing import Any

from sdxl_jax.models import tiny_vae

Json = dict[str, Any]
CLASS = 'AutoencoderTiny'
FIXED = {
  'act_fn': 'relu',
  'upsample_fn': 'nearest',
  'upsampling_scaling_factor': 2,
}
# Of AutoencoderTiny, for what a config lacks.
DEFAULTS = {
  'in_channels': 3,
  'out_channels': 3,
  'latent_channels': 4,
  'encoder_block_out_channels': [64, 64, 64, 64],
  'decoder_block_out_channels': [64, 64, 64, 64],
  'num_encoder_blocks': [1, 3, 3, 3],
  'num_decoder_blocks': [3, 3, 3, 1],
  'scaling_factor': 1.0,
}


def read(published: Json, location: str) -> tiny_vae.TinyConfig:
  """Reads the config.json of an AutoencoderTiny.

  Raises:
    ValueError: for widths or channels that differ between the layers.
  """
  published = DEFAULTS | published
  sides = ('encoder', 'decoder')
  widths = {w for s in sides for w in published[f'{s}_block_out_channels']}
  channels = {published['in_channels'], published['out_channels']}
  if len(widths) != 1 or len(channels) != 1:
    raise ValueError(
      f'{location}: an AutoencoderTiny of the widths {sorted(widths)} with '
      f'{sorted(channels)} channels of an image is not implemented, only one '
      'with one width and one number of channels'
    )
  encoder, decoder = (tuple(published[f'num_{s}_blocks']) for s in sides)
  return tiny_vae.TinyConfig(
    in_channels=published['in_channels'],
    latent_channels=published['latent_channels'],
    features=widths.pop(),
    encoder_blocks=encoder,
    decoder_blocks=decoder,
    scaling_factor=float(published['scaling_factor']),
  )


def write(config: tiny_vae.TinyConfig) -> Json:
  """Returns the config.json of a TinyConfig."""
  encoder, decoder = config.encoder_blocks, config.decoder_blocks
  return {
    '_class_name': CLASS,
    **FIXED,
    'in_channels': config.in_channels,
    'out_channels': config.in_channels,
    'latent_channels': config.latent_channels,
    'encoder_block_out_channels': [config.features] * len(encoder),
    'decoder_block_out_channels': [config.features] * len(decoder),
    'block_out_channels': [config.features] * len(decoder),
    'num_encoder_blocks': list(encoder),
    'num_decoder_blocks': list(decoder),
    'scaling_factor': config.scaling_factor,
    # Of the values as bytes, which neither encodes nor decodes.
    'latent_magnitude': 3,
    'latent_shift': 0.5,
    'shift_factor': 0.0,
    'force_upcast': False,
  }
