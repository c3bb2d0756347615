"""SDXL's nets in diffusers, with random weights, on the GPU."""

import diffusers
import torch

UNET = dict(
  sample_size=128,
  down_block_types=(
    'DownBlock2D',
    'CrossAttnDownBlock2D',
    'CrossAttnDownBlock2D',
  ),
  up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
  block_out_channels=(320, 640, 1280),
  transformer_layers_per_block=(1, 2, 10),
  attention_head_dim=(5, 10, 20),
  cross_attention_dim=2048,
  use_linear_projection=True,
  addition_embed_type='text_time',
  addition_time_embed_dim=256,
  projection_class_embeddings_input_dim=2816,
)
VAE = dict(
  down_block_types=('DownEncoderBlock2D',) * 4,
  up_block_types=('UpDecoderBlock2D',) * 4,
  block_out_channels=(128, 256, 512, 512),
  layers_per_block=2,
  latent_channels=4,
  sample_size=1024,
  scaling_factor=0.13025,
  force_upcast=False,
)
TINY_UNET = dict(
  block_out_channels=(32, 64, 64),
  attention_head_dim=(1, 2, 2),
  transformer_layers_per_block=(1, 1, 1),
)
TINY_VAE = dict(block_out_channels=(32,) * 4, layers_per_block=1)
TOKENS, CONTEXT, POOLED = 77, 2048, 1280  # of the text


def device_of(setting):
  """Returns the name of the device."""
  return 'cpu' if setting.tiny else 'cuda'


def dtype_of(setting, name):
  """Returns a type; on a CPU float32, which alone is fast there."""
  return torch.float32 if setting.tiny else getattr(torch, name)


def make_unet(setting):
  """Makes the base's UNet, float32."""
  fields = UNET | (TINY_UNET if setting.tiny else {})
  with torch.device(device_of(setting)):
    return diffusers.UNet2DConditionModel(**fields)


def make_vae(setting):
  """Makes the autoencoder, float32."""
  fields = VAE | (TINY_VAE if setting.tiny else {})
  with torch.device(device_of(setting)):
    return diffusers.AutoencoderKL(**fields)


def wait(setting):
  """Waits until the device is done."""
  if not setting.tiny:
    torch.cuda.synchronize()


def memory(setting):
  """Returns the GB that PyTorch took at most since the last call, or None."""
  if setting.tiny:
    return None
  most = torch.cuda.max_memory_allocated()
  torch.cuda.reset_peak_memory_stats()
  return round(most / 1e9, 2)
