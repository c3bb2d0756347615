"""SDXL as one model: UNet, autoencoder, text encoders, noise schedule."""

import dataclasses

import jax
import jax.numpy as jnp

from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.models import lora, micro_conditioning, text_encoder, unet, vae


@dataclasses.dataclass(frozen=True)
class SDXL:
  """The nets of one SDXL, base or refiner, without their parameters.

  Parameters are {'unet', 'vae', 'text_encoder', 'text_encoder_2'}, where the
  refiner has no 'text_encoder' and a PatchVAE none at all; with targets there
  are also the low-rank factors of all nets, 'lora'.
  """

  unet: unet.UNetConfig
  vae: vae.VAEConfig | vae.PatchConfig
  text: text_encoder.TextEncoder
  schedule: noise_schedule.Schedule
  refiner: bool = False
  targets: tuple[lora.Target, ...] = ()

  @property
  def configs(self):
    """{net: its config} of the nets that have parameters."""
    configs = {
      'unet': self.unet,
      'vae': self.vae,
      'text_encoder': self.text.text_encoder,
      'text_encoder_2': self.text.text_encoder_2,
    }
    empty = (vae.PatchConfig, type(None))
    return {n: c for n, c in configs.items() if not isinstance(c, empty)}

  def replace(self, **fields):
    """The same nets with fields of all their configs replaced, as dtype."""
    return self.replace_each(lambda name: fields)

  def replace_each(self, fields_of):
    """The same nets with the fields_of(net) replaced in their configs."""
    new = {
      name: dataclasses.replace(config, **fields_of(name))
      for name, config in self.configs.items()
    }
    towers = new.get('text_encoder'), new['text_encoder_2']
    return dataclasses.replace(
      self,
      unet=new['unet'],
      vae=new.get('vae', self.vae),
      text=text_encoder.TextEncoder(*towers),
    )

  def init(self, key):
    """Fresh parameters of every net."""
    side = 2 ** len(self.unet.block_out_channels)
    size = side * self.vae.downscale
    unet_key, vae_key, text_key = jax.random.split(key, 3)
    params = unet.UNet(self.unet).init(
      unet_key,
      jnp.zeros((1, side, side, self.unet.in_channels)),
      jnp.zeros(1),
      jnp.zeros((1, 1, self.unet.context_dim)),
      jnp.zeros((1, self.unet.vector_dim)),
    )
    image = jnp.zeros((1, size, size, self.vae.in_channels))
    autoencoder = vae.make_vae(self.vae).init(vae_key, image)
    params = {
      'unet': params['params'],
      'vae': autoencoder.get('params', {}),
      **self.text.init(text_key),
    }
    if self.targets:
      lora_key = jax.random.fold_in(key, 3)
      params['lora'] = lora.init(lora_key, params, self.targets)
    return params

  def ready(self, params):
    """Parameters as the nets take them: low-rank factors have their scale."""
    if 'lora' not in params:
      return params
    return params | {'lora': lora.scaled(params['lora'], self.targets)}

  def encode(self, params, image):
    """Image [b, h, w, 3] > moments [b, h/8, w/8, 8]."""
    net = vae.make_vae(self.vae)
    return net.apply({'params': params.get('vae', {})}, image, method='encode')

  def decode(self, params, latents):
    """Latents [b, h/8, w/8, 4] > image [b, h, w, 3]."""
    net = vae.make_vae(self.vae)
    return net.apply(
      {'params': params.get('vae', {})}, latents, method='decode'
    )

  def vector(self, pooled, sizes):
    """Pooled text and the batch's sizes > the UNet's second input."""
    width = self.unet.size_embed_dim
    first = sizes['original_size'], sizes['crop_top_left']
    if self.refiner:
      score = sizes['aesthetic_score']
      return micro_conditioning.refiner_vector(pooled, *first, score, width)
    target = sizes['target_size']
    return micro_conditioning.base_vector(pooled, *first, target, width)

  def project(self, params, context):
    """Context [b, n, 2048] > the UNet's keys and values of it.

    They are the same at every step, and so computed once for all of them.
    """
    b, config = len(context), self.unet
    side = 2 ** len(config.block_out_channels)
    inputs = (
      jnp.zeros((b, side, side, config.in_channels)),
      jnp.zeros(b),
      context,
      jnp.zeros((b, config.vector_dim)),
    )
    net = unet.UNet(config)
    _, kept = lora.apply(net, 'unet', params, *inputs, mutable=['context'])
    return kept['context']

  def denoiser(self, params, context, *told):
    """net(x, timestep) -> eps, v or x0, as diffusion/ asks for it.

    Takes context [b, n, 2048], or what `project` makes of it; `told` are vector
    and perhaps guidance_scale, see unet.UNet.
    """
    net, kept = unet.UNet(self.unet), {}
    if isinstance(context, dict):
      kept['context'], context = context, None
    return lambda x, timestep: lora.apply(
      *(net, 'unet', params, x, timestep, context), *told, variables=kept
    )
