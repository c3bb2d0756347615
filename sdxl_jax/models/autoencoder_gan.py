"""The autoencoder with its discriminator and LPIPS, as stage 0 trains it."""

import dataclasses

import jax
import jax.numpy as jnp

from sdxl_jax.models import discriminator, lpips, vae


@dataclasses.dataclass(frozen=True)
class AutoencoderGAN:
  """Autoencoder, its adversary, and what it is compared by."""

  vae: vae.VAEConfig
  discriminator: discriminator.DiscriminatorConfig
  lpips: lpips.LPIPSConfig | None

  @property
  def configs(self):
    """{net: its config}; without LPIPS where nothing asks for it."""
    fields = ('vae', 'discriminator', 'lpips')
    configs = {name: getattr(self, name) for name in fields}
    return {name: c for name, c in configs.items() if c is not None}

  def replace(self, **fields):
    """The same nets with fields of the autoencoder replaced, as attention."""
    changed = dataclasses.replace(self.vae, **fields)
    return dataclasses.replace(self, vae=changed)

  def init(self, key):
    """Fresh parameters of every net."""
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

  def encode(self, params, image):
    """Image [b, h, w, 3] > moments [b, h/8, w/8, 8]."""
    net = vae.make_vae(self.vae)
    return net.apply({'params': params['vae']}, image, method='encode')

  def decode(self, params, latents):
    """Latents [b, h/8, w/8, 4] > image [b, h, w, 3]."""
    net = vae.make_vae(self.vae)
    return net.apply({'params': params['vae']}, latents, method='decode')

  def discriminate(self, params, image):
    """Returns logits of patches, high where they are classified as real."""
    net = discriminator.Discriminator(self.discriminator)
    return net.apply({'params': params['discriminator']}, image)

  def distance(self, params, x, y):
    """LPIPS of two images, [b]."""
    return lpips.LPIPS(self.lpips).apply({'params': params['lpips']}, x, y)
