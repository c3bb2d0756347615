"""SDXL as one model: UNet, autoencoder, text encoders, noise schedule."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PRNGKeyArray

from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.models import (
  controlnet,
  learned_vectors,
  lora,
  micro_conditioning,
  text_encoder,
  unet,
  vae,
)

Params = dict[str, Any]  # {net: its parameters}
CONTROLNET = 'controlnet_'  # begins the names of ControlNets


def is_controlnet(name: str) -> bool:
  """Returns whether a net of SDXL is a ControlNet, by its name."""
  return name.startswith(CONTROLNET)


@dataclasses.dataclass(frozen=True)
class SDXL:
  """The nets of one SDXL, base or refiner, without their parameters.

  Parameters are {'unet', 'vae', 'text_encoder', 'text_encoder_2'}; the refiner
  has no 'text_encoder', and a PatchVAE no parameters. With targets there are
  also the low-rank factors of all nets, 'lora', and with words their vectors,
  'words'. ControlNets are 'controlnet_1', 'controlnet_2', ..., see CONTROLNET.
  """

  unet: unet.UNetConfig
  vae: vae.AnyConfig
  text: text_encoder.TextEncoder
  schedule: noise_schedule.Schedule
  refiner: bool = False
  targets: tuple[lora.Target, ...] = ()
  words: tuple[learned_vectors.Word, ...] = ()
  controlnets: tuple[controlnet.ControlNetConfig, ...] = ()

  @property
  def configs(self) -> dict[str, Any]:
    """{net: its config} of the nets that have parameters."""
    configs = {
      'unet': self.unet,
      'vae': self.vae,
      'text_encoder': self.text.text_encoder,
      'text_encoder_2': self.text.text_encoder_2,
    }
    for i, config in enumerate(self.controlnets, 1):
      configs[f'{CONTROLNET}{i}'] = config
    # Neither of these has parameters.
    empty = (vae.PatchConfig, type(None))
    return {n: c for n, c in configs.items() if not isinstance(c, empty)}

  def replace(self, **fields: Any) -> 'SDXL':
    """Returns the same model with fields of all configs replaced, as dtype."""
    return self.replace_each({name: fields for name in self.configs})

  def replace_each(self, fields: Mapping[str, dict[str, Any]]) -> 'SDXL':
    """Returns the same model with fields[net] of each net's config replaced."""
    configs = {
      name: dataclasses.replace(config, **fields[name])
      for name, config in self.configs.items()
    }
    return dataclasses.replace(
      self,
      unet=configs['unet'],
      vae=configs.get('vae', self.vae),
      text=text_encoder.TextEncoder(
        configs.get('text_encoder'), configs['text_encoder_2']
      ),
      controlnets=tuple(
        config for name, config in configs.items() if is_controlnet(name)
      ),
    )

  def init(self, key: PRNGKeyArray, pretrained: Params | None = None) -> Params:
    """Returns fresh parameters of every net but those that are pretrained.

    Args:
      key: jax key.
      pretrained: {net: parameters}, which stay as they are.
    """
    unet_key, vae_key, text_key = jax.random.split(key, 3)

    # The smallest input that every level can halve.
    side = 2 ** len(self.unet.block_out_channels)
    unet_params = unet.UNet(self.unet).init(
      unet_key,
      jnp.zeros((1, side, side, self.unet.in_channels)),
      jnp.zeros(1),
      jnp.zeros((1, 1, self.unet.context_dim)),
      jnp.zeros((1, self.unet.vector_dim)),
    )
    size = side * self.vae.downscale
    image = jnp.zeros((1, size, size, self.vae.in_channels))
    vae_params = vae.make_vae(self.vae).init(vae_key, image)
    params = {
      'unet': unet_params['params'],
      'vae': vae_params.get('params', {}),
      **self.text.init(text_key),
    }
    params |= pretrained or {}
    if self.targets:
      # A fourth key, which leaves the keys of the nets as they are.
      lora_key = jax.random.fold_in(key, 3)
      params['lora'] = lora.init(lora_key, params, self.targets)
    if self.words:
      words_key = jax.random.fold_in(key, 4)
      params['words'] = learned_vectors.init(
        words_key, self.words, self.configs
      )
    return params

  def ready(self, params: Params) -> Params:
    """Returns parameters to apply, with the scale folded into 'lora'."""
    if 'lora' not in params:
      return params
    return params | {'lora': lora.fold_scale(params['lora'], self.targets)}

  def encode(
    self, params: Params, image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w moments']:
    """Encodes an image to mean and logvar of its posterior, side by side."""
    net = vae.make_vae(self.vae)
    return net.apply({'params': params.get('vae', {})}, image, method='encode')

  def decode(
    self, params: Params, latents: Float[ArrayLike, 'b h w latents']
  ) -> Float[ArrayLike, 'b height width c']:
    """Decodes latents to an image."""
    net = vae.make_vae(self.vae)
    return net.apply(
      {'params': params.get('vae', {})}, latents, method='decode'
    )

  def vector(
    self,
    pooled: Float[ArrayLike, 'b p'],
    sizes: Mapping[str, Num[ArrayLike, 'b ...']],
  ) -> Float[Array, 'b vector']:
    """Returns the UNet's second input from pooled text and a batch's sizes.

    Args:
      pooled: of text encoder 2.
      sizes: 'original_size' and 'crop_top_left', with 'target_size' for the
        base and 'aesthetic_score' for the refiner; may have further entries.
    """
    # The refiner has a score in place of the target size.
    width = self.unet.size_embed_dim
    if self.refiner:
      return micro_conditioning.refiner_vector(
        pooled,
        sizes['original_size'],
        sizes['crop_top_left'],
        sizes['aesthetic_score'],
        width,
      )
    return micro_conditioning.base_vector(
      pooled,
      sizes['original_size'],
      sizes['crop_top_left'],
      sizes['target_size'],
      width,
    )

  def precompute_cross_attention_kv(
    self, params: Params, context: Float[ArrayLike, 'b n context']
  ) -> Params:
    """Returns the UNet's keys and values of the context, as a tree.

    They are the same at every step, and so computed once for all of them.
    """
    # One call on zeros stores them; the compiler drops all other layers.
    b, config = len(context), self.unet
    side = 2 ** len(config.block_out_channels)
    _, variables = lora.apply(
      unet.UNet(config),
      'unet',
      params,
      jnp.zeros((b, side, side, config.in_channels)),
      jnp.zeros(b),
      context,
      jnp.zeros((b, config.vector_dim)),
      mutable=['context'],
    )
    return variables['context']

  def denoiser(
    self,
    params: Params,
    context: Float[ArrayLike, 'b n context'] | Params,
    vector: Float[ArrayLike, 'b vector'],
    guidance_scale: Float[ArrayLike, ''] = 1.0,
    control: Callable | None = None,
  ) -> Callable:
    """Makes net(x, timestep) -> eps, v or x0, for denoiser.make_denoiser.

    Args:
      params: at least of the UNet, and 'lora'.
      context: or the result of `precompute_cross_attention_kv`.
      vector: second input of the UNet.
      guidance_scale: input of nets that were distilled with guidance.
      control: (x, timestep) -> residuals of ControlNets, see unet.UNet.
    """
    # Precomputed keys and values take the place of the context.
    net, variables = unet.UNet(self.unet), {}
    if isinstance(context, dict):
      variables['context'], context = context, None

    def predict(x, timestep):
      return lora.apply(
        net,
        'unet',
        params,
        x,
        timestep,
        context,
        vector,
        guidance_scale,
        residuals=control(x, timestep) if control else None,
        variables=variables,
      )

    return predict
