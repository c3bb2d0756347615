"""Builds the model that a config describes."""

import dataclasses
from typing import Any

import jax
import ml_collections

from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.distributed import device_mesh
from sdxl_jax.models import (
  autoencoder_gan,
  clip,
  compute_dtype,
  discriminator,
  learned_vectors,
  lora,
  lpips,
  net_types,
  sdxl,
  text_encoder,
  unet,
  vae,
)

# The implementation that `attention = 'auto'` stands for on a platform.
ATTENTION = {'tpu': 'splash', 'gpu': 'cudnn', 'cpu': 'xla'}


def make_model(
  config: ml_collections.ConfigDict, platform: str | None = None
) -> sdxl.SDXL | autoencoder_gan.AutoencoderGAN:
  """Builds the nets that config.task trains.

  Args:
    config: see configs/default.py.
    platform: 'tpu', 'gpu' or 'cpu', which decides what attention = 'auto'
      stands for, and types of 'auto' that net_types.resolve has not replaced;
      by default the platform of this process.
  """
  kind = compute_dtype.Kind(platform) if platform else jax.local_devices()[0]
  config = net_types.resolve(config, kind)
  fields = with_tuples(config.to_dict())
  # The platform decides which kernel 'auto' is.
  for net in ('unet', 'vae', 'text_encoder', 'text_encoder_2'):
    if fields[net] and fields[net].get('attention') == 'auto':
      fields[net]['attention'] = default_attention(platform)
  # Both tasks have an autoencoder; only diffusion has the other nets.
  autoencoder = make_vae_config(fields['vae'])
  if config.task == 'autoencoder':
    return make_autoencoder_gan(config.autoencoder, autoencoder)
  return sdxl.SDXL(
    unet=unet.UNetConfig(**fields['unet']),
    vae=autoencoder,
    text=text_encoder.TextEncoder(
      text_encoder=make_clip_config(fields['text_encoder']),
      text_encoder_2=make_clip_config(fields['text_encoder_2']),
    ),
    schedule=noise_schedule.Schedule(**fields['schedule']),
    refiner=config.refiner,
    targets=tuple(lora.Target(name, **t) for name, t in fields['lora'].items()),
    words=make_words(config),
  )


def make_words(
  config: ml_collections.ConfigDict,
) -> tuple[learned_vectors.Word, ...]:
  """Makes the words that a config describes, in the order of their names."""
  # Configs of older runs have no such field.
  words = config.get('words', {}).items()
  return tuple(
    learned_vectors.Word(name, **word) for name, word in sorted(words)
  )


def make_clip_config(fields: dict[str, Any] | None) -> Any:
  """Builds a CLIPTextConfig; None where the config has no such net."""
  return clip.CLIPTextConfig(**fields) if fields else None


def comparable(config: Any) -> Any:
  """Returns a net's config, which is equal for nets that compute the same."""
  if not isinstance(config, clip.CLIPTextConfig):
    return config
  return dataclasses.replace(config, eos_token_id=clip.pooling(config))


def make_vae_config(fields: dict[str, Any]) -> vae.VAEConfig | vae.PatchConfig:
  """Builds the autoencoder's config; unset fields default to SDXL's.

  Latent scaling stays unset until source_configs.with_latent_scaling sets it.
  """
  fields = {name: value for name, value in fields.items() if value is not None}
  kinds = {'kl': vae.VAEConfig, 'patch': vae.PatchConfig}
  return kinds[fields.pop('kind')](**fields)


def default_attention(platform: str | None = None) -> str:
  """Returns what `attention = 'auto'` stands for, by default on this host."""
  platform = platform or jax.default_backend()
  if platform == 'gpu' and not device_mesh.is_ampere(jax.local_devices()[0]):
    return 'xla'
  return ATTENTION[platform]


def make_autoencoder_gan(
  config: ml_collections.ConfigDict, autoencoder: vae.VAEConfig
) -> autoencoder_gan.AutoencoderGAN:
  """Builds the nets that config.autoencoder describes."""
  return autoencoder_gan.AutoencoderGAN(
    vae=autoencoder,
    discriminator=discriminator.DiscriminatorConfig(
      config.adversary_features, config.adversary_layers, autoencoder.dtype
    ),
    lpips=lpips.LPIPSConfig() if config.perceptual_weight else None,
  )


def with_tuples(value: Any) -> Any:
  """Converts the lists of JSON to tuples, which hash."""
  if isinstance(value, dict):
    return {k: with_tuples(v) for k, v in value.items()}
  return tuple(map(with_tuples, value)) if isinstance(value, list) else value
