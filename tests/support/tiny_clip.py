"""A tiny pair of CLIP's encoders, and transformers' model of its shape."""

from sdxl_jax.models import clip_image
from tests.support import torchvision_package

IMAGE = clip_image.CLIPImageConfig(
  image_size=56,
  patch_size=14,
  hidden_size=64,
  intermediate_size=256,
  num_hidden_layers=3,
  num_attention_heads=4,
  projection_dim=32,
)
PAIR = clip_image.make_pair(IMAGE, 48, 2, 3)


def transformers_model(pair=PAIR, seed=0):
  """transformers' CLIPModel with random weights, biases and norms included."""
  import torch
  import transformers

  torchvision_package.prepare()
  torch.manual_seed(seed)
  names = ('hidden_size', 'intermediate_size', 'num_hidden_layers')
  names += ('num_attention_heads', 'hidden_act')
  vision = {n: getattr(pair.image, n) for n in names}
  vision |= {n: getattr(pair.image, n) for n in ('image_size', 'patch_size')}
  text = {n: getattr(pair.text, n) for n in (*names, 'vocab_size')}
  config = transformers.CLIPConfig(
    text_config=text | {'eos_token_id': 2},
    vision_config=vision,
    projection_dim=pair.image.projection_dim,
  )
  return jitter(transformers.CLIPModel(config))


def jitter(net):
  """Adds noise to all parameters: biases begin as zeros, scales as ones."""
  import torch

  with torch.no_grad():
    for parameter in net.parameters():
      if parameter.ndim:
        parameter.add_(0.05 * torch.randn_like(parameter))
  return net.eval()
