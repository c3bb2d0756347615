"""The autoencoder with its discriminator and LPIPS, as stage 0 trains it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from sdxl_jax.models import discriminator, lpips, vae


@dataclasses.dataclass(frozen=True)
class AutoencoderGAN:
  """Autoencoder, discriminator and perceptual distance.

  Parameters are {'vae', 'discriminator', 'lpips'}, the last one only where
  there is an LPIPSConfig.
  """

  vae: vae.VAEConfig
  discriminator: discriminator.DiscriminatorConfig
  lpips: lpips.LPIPSConfig | None

  @property
  def configs(self) -> dict[str, Any]:
    """{net: its config} of the nets that have parameters."""
    fields = ('vae', 'discriminator', 'lpips')
    configs = {name: getattr(self, name) for name in fields}
    return {name: c for name, c in configs.items() if c is not None}

  def replace(self, **fields: Any) -> 'AutoencoderGAN':
    """Returns the same nets with fields of the VAE's config replaced."""
    new_vae = dataclasses.replace(self.vae, **fields)
    return dataclasses.replace(self, vae=new_vae)

  def init(self, key: PRNGKeyArray) -> dict[str, Any]:
    """Returns fresh parameters of every net."""
    keys = jax.random.split(key, 3)
    side = 8 * self.vae.downscale
    image = jnp.zeros((1, side, side, self.vae.in_channels))
    net = discriminator.Discriminator(self.discriminator)
    params = {
      'vae': vae.make_vae(self.vae).init(keys[0], image)['params'],
      'discriminator': net.init(keys[1], image)['params'],
    }
    if self.lpips:
      net = lpips.LPIPS(self.lpips)
      params['lpips'] = net.init(keys[2], image, image)['params']
    return params

  def encode(
    self, params: dict[str, Any], image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w moments']:
    """Encodes an image to mean and logvar of its posterior, side by side."""
    net = vae.make_vae(self.vae)
    return net.apply({'params': params['vae']}, image, method='encode')

  def decode(
    self, params: dict[str, Any], latents: Float[ArrayLike, 'b h w latents']
  ) -> Float[Array, 'b height width c']:
    """Decodes latents to an image."""
    net = vae.make_vae(self.vae)
    return net.apply({'params': params['vae']}, latents, method='decode')

  def discriminate(
    self, params: dict[str, Any], image: Float[ArrayLike, 'b height width c']
  ) -> Float[Array, 'b h w 1']:
    """Returns logits of patches, high where they are classified as real."""
    net = discriminator.Discriminator(self.discriminator)
    return net.apply({'params': params['discriminator']}, image)

  def distance(
    self,
    params: dict[str, Any],
    x: Float[ArrayLike, 'b height width c'],
    y: Float[ArrayLike, 'b height width c'],
  ) -> Float[Array, ' b']:
    """Returns the LPIPS distance of two images."""
    return lpips.LPIPS(self.lpips).apply({'params': params['lpips']}, x, y)
