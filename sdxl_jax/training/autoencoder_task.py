"""Stage 0: the autoencoder against a discriminator (SDXL paper, section 2.4).

The paper names neither losses nor weights; these are the reference's (latent
diffusion, contperceptual.py, after Esser et al. 2021, section 3.1).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sdxl_jax.models import latent_scaling
from sdxl_jax.training import train_state

ENCODER = ('encoder', 'quant_conv')  # what learning the decoder alone leaves


def nll(image, reconstruction, distance, logvar):
  """-log p(image), but for a constant: a Laplacian with LPIPS added.

  Args:
    image, reconstruction: [b, h, w, 3].
    distance: [b], LPIPS times its weight; it counts for every value.
    logvar: float, of the Laplacian's scale.

  Returns:
    Sum over the values of an image, mean over the images.
  """
  error = jnp.abs(image - reconstruction) + distance[:, None, None, None]
  return (error * jnp.exp(-logvar) + logvar).sum() / len(image)


def kl_divergence(moments):
  """Of the posterior from N(0, 1), summed over latents, mean over images."""
  mean, logvar = latent_scaling.split(moments)
  each = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
  return each.sum() / len(moments)


def hinge(real, fake):
  """The discriminator's loss, of logits."""
  return 0.5 * (nn.relu(1.0 - real).mean() + nn.relu(1.0 + fake).mean())


def adaptive_weight(by_nll, by_adversary):
  """|grad nll| / |grad adversary| at the decoder's last layer, at most 1e4.

  So that what the adversary asks for weighs as much as what the picture does
  (Esser et al. 2021, equation 7).
  """
  norm = lambda x: jnp.sqrt(jnp.square(x).sum())
  return jnp.clip(norm(by_nll) / (norm(by_adversary) + 1e-4), 0.0, 1e4)


def make_autoencoder_task(
  nets,
  optimizer,
  *,
  batch_spec,
  perceptual_weight=1.0,
  kl_weight=1e-6,
  adversary_weight=0.5,
  adversary_start=50_001,  # step from which the discriminator takes part
  parts=1,  # micro-batches per optimizer step, see state.Task
):
  """The Task of reconstructing images."""

  def init(key, given=None):
    params = nets.init(key) | (given or {})
    params.pop('lpips', None)
    params['logvar'] = jnp.zeros([])
    step = jnp.zeros([], jnp.int32)
    return train_state.State(step, params, optimizer.init(params))

  gradients = make_gradients(
    *(nets, perceptual_weight, kl_weight, adversary_weight),
    start=adversary_start * parts,
  )
  update = train_state.make_update(optimizer, parts)
  return train_state.Task(init, gradients, update, batch_spec, parts)


def make_gradients(nets, perceptual_weight, kl_weight, adversary_weight, start):
  """gradients(params, frozen, batch, key, part), as state.Task has it.

  Generator and discriminator learn from the same reconstruction, in one step.
  The reference updates the generator first and draws another reconstruction for
  the discriminator, which costs a second pass through the autoencoder. From
  part `start` on the discriminator takes part.
  """

  def gradients(params, frozen, batch, key, part):
    image, active = batch['image'], part >= start
    noise_key = jax.random.fold_in(key, part)

    def reconstruct(autoencoder):
      moments = nets.encode({'vae': autoencoder}, image)
      b, h, w, c = moments.shape
      noise = jax.random.normal(noise_key, (b, h, w, c // 2))
      x = latent_scaling.sample(nets.vae, moments, noise)
      return nets.decode({'vae': autoencoder}, x), moments

    def likeness(x, logvar):
      distance = jnp.zeros(len(image))
      if perceptual_weight:
        distance = nets.distance(frozen, image, x)
      aside = {'l1': jnp.abs(image - x).mean(), 'lpips': distance.mean()}
      return nll(image, x, perceptual_weight * distance, logvar), aside

    def suspicion(critic):
      judge = lambda image: nets.discriminate({'discriminator': critic}, image)
      real, fake = judge(image), judge(x)
      aside = {'logits_real': real.mean(), 'logits_fake': fake.mean()}
      return active * hinge(real, fake), aside

    grad = lambda f, *at, argnums=0, has_aux=True: jax.value_and_grad(
      f, argnums, has_aux
    )(*at)
    (x, moments), pull = jax.vjp(reconstruct, params['vae'])
    (loss, metrics), (by_x, by_logvar) = grad(
      *(likeness, x, params['logvar']), argnums=(0, 1)
    )
    kl, by_moments = grad(kl_divergence, moments, has_aux=False)
    opposed, opposed_by_x = grad(
      lambda x: -nets.discriminate(params, x).mean(), x, has_aux=False
    )
    (judged, logits), by_critic = grad(suspicion, params['discriminator'])

    # The same reconstruction as a function of the last layer alone.
    last, put = last_layer(params['vae'])
    _, pull_last = jax.vjp(lambda kernel: reconstruct(put(kernel))[0], last)
    weight = (
      active
      * adversary_weight
      * adaptive_weight(*pull_last(by_x), *pull_last(opposed_by_x))
    )
    # One way back for all: through the autoencoder gradients add up.
    (by_vae,) = pull((by_x + weight * opposed_by_x, kl_weight * by_moments))
    gradients = {'vae': by_vae, 'discriminator': by_critic, 'logvar': by_logvar}
    return gradients, metrics | logits | {
      'loss': loss + kl_weight * kl + weight * opposed,
      'kl': kl,
      'logvar': params['logvar'],
      'adversary_weight': weight,
      'discriminator_loss': judged,
    }

  return gradients


def last_layer(autoencoder):
  """The decoder's last kernel, and a function that puts in another one."""

  def put(kernel):
    decoder = autoencoder['decoder']
    conv_out = decoder['conv_out'] | {'kernel': kernel}
    return autoencoder | {'decoder': decoder | {'conv_out': conv_out}}

  return autoencoder['decoder']['conv_out']['kernel'], put


def make_optimizer(make_chain, average, learn_logvar, decoder_only):
  """Generator and discriminator each have their own; one average over both.

  Args:
    make_chain: () -> optax transformation, without an average.
    average: optax transformation, as optimizer.ema.
    learn_logvar: whether the log-variance learns, or stays 0.
    decoder_only: whether the encoder stays as it is.
  """

  def label(path, _):
    net, *module = (key.key for key in path)
    if net == 'logvar':
      return 'generator' if learn_logvar else 'frozen'
    if net == 'vae' and decoder_only and module[0] in ENCODER:
      return 'frozen'
    return 'generator' if net == 'vae' else 'discriminator'

  chains = {
    'generator': make_chain(),
    'discriminator': make_chain(),
    'frozen': optax.set_to_zero(),
  }
  labels = lambda params: jax.tree_util.tree_map_with_path(label, params)
  return optax.chain(optax.partition(chains, labels), average)
