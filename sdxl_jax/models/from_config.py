"""Builds the model that a config describes."""

import jax

from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.distributed import device_mesh
from sdxl_jax.models import (
  autoencoder_gan,
  clip,
  discriminator,
  lora,
  lpips,
  sdxl,
  text_encoder,
  unet,
  vae,
)

# What `attention = 'auto'` means where.
ATTENTION = {'tpu': 'splash', 'gpu': 'cudnn', 'cpu': 'xla'}


def make_model(config, platform=None):
  """The Nets, of diffusion_task or autoencoder_task, that a config describes.

  `platform` ('tpu', 'gpu' or 'cpu') decides what 'auto' stands for; without it
  that of this process.
  """
  fields = with_tuples(config.to_dict())
  for net in ('unet', 'vae', 'text_encoder', 'text_encoder_2'):
    if fields[net] and fields[net].get('attention') == 'auto':
      fields[net]['attention'] = default_attention(platform)
  towers = [
    fields[name] and clip.CLIPTextConfig(**fields[name])
    for name in ('text_encoder', 'text_encoder_2')
  ]
  # What is left open is SDXL's; origins.with_latents fills it in.
  autoencoder = {k: v for k, v in fields['vae'].items() if v is not None}
  kinds = {'kl': vae.VAEConfig, 'patch': vae.PatchConfig}
  autoencoder = kinds[autoencoder.pop('kind')](**autoencoder)
  if config.task == 'autoencoder':
    return make_autoencoder_gan(config.autoencoder, autoencoder)
  return sdxl.SDXL(
    unet=unet.UNetConfig(**fields['unet']),
    vae=autoencoder,
    text=text_encoder.TextEncoder(*towers),
    schedule=noise_schedule.Schedule(**fields['schedule']),
    refiner=config.refiner,
    targets=tuple(lora.Target(name, **t) for name, t in fields['lora'].items()),
  )


def default_attention(platform=None):
  """What `attention = 'auto'` stands for on a platform, or here."""
  platform = platform or jax.default_backend()
  if platform == 'gpu' and not device_mesh.is_ampere(jax.local_devices()[0]):
    return 'xla'
  return ATTENTION[platform]


def make_autoencoder_gan(c, autoencoder):
  return autoencoder_gan.AutoencoderGAN(
    vae=autoencoder,
    discriminator=discriminator.DiscriminatorConfig(
      c.adversary_features, c.adversary_layers, autoencoder.dtype
    ),
    lpips=lpips.LPIPSConfig() if c.perceptual_weight else None,
  )


def with_tuples(value):
  """Lists, as JSON has them, become tuples, which hash."""
  if isinstance(value, dict):
    return {k: with_tuples(v) for k, v in value.items()}
  return tuple(map(with_tuples, value)) if isinstance(value, list) else value
