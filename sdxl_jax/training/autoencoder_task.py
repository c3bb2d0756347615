"""Stage 0: trains the autoencoder with a discriminator (paper, section 2.4).

The SDXL paper names neither losses nor weights. These are the reference's
(latent diffusion, contperceptual.py, after Esser et al. 2021, section 3.1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sdxl_jax.ema import partial_trees
from sdxl_jax.models import autoencoder_gan, latent_scaling
from sdxl_jax.training import batch_specs, train_state

Params = dict[str, Any]
Images = Float[Array, 'b h w c']
Scalar = Float[Array, '']
Metrics = dict[str, jax.Array]

ENCODER = ('encoder', 'quant_conv')  # modules that `decoder_only` freezes


def nll(
  image: Images,
  reconstruction: Images,
  distance: Float[Array, ' b'],
  logvar: Scalar,
) -> Scalar:
  """Computes -log p(image) up to a constant: a Laplacian with LPIPS added.

  Args:
    image, reconstruction: in [-1, 1].
    distance: LPIPS times its weight; added to the error of every value.
    logvar: logarithm of the Laplacian's scale.

  Returns:
    Sum over the values of an image, mean over the images.
  """
  error = jnp.abs(image - reconstruction) + distance[:, None, None, None]
  return (error * jnp.exp(-logvar) + logvar).sum() / len(image)


def kl_divergence(moments: Float[Array, 'b h w moments']) -> Scalar:
  """KL of the posterior from N(0, 1): sum over latents, mean over images."""
  mean, logvar = latent_scaling.split(moments)
  values = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
  return values.sum() / len(moments)


def hinge(real: Float[Array, '...'], fake: Float[Array, '...']) -> Scalar:
  """Computes the discriminator's hinge loss from its logits."""
  return 0.5 * (nn.relu(1.0 - real).mean() + nn.relu(1.0 + fake).mean())


def adaptive_weight(
  grad_nll: Float[Array, '...'], grad_generator: Float[Array, '...']
) -> Scalar:
  """|grad nll| / |grad generator loss| at the decoder's last layer, <= 1e4.

  With this weight the generator's adversarial loss pulls as hard at the last
  layer as the reconstruction loss (Esser et al. 2021, equation 7).
  """

  def norm(x):
    return jnp.sqrt(jnp.square(x).sum())

  return jnp.clip(norm(grad_nll) / (norm(grad_generator) + 1e-4), 0.0, 1e4)


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
  """The losses of autoencoder and discriminator, and their gradients."""

  model: autoencoder_gan.AutoencoderGAN
  perceptual_weight: float = 1.0  # of LPIPS; 0: LPIPS is not computed
  kl_weight: float = 1e-6
  adversary_weight: float = 0.5  # 0: only the discriminator is trained by it
  start: int = 50_001  # micro-step from which the discriminator takes part

  def gradients(
    self,
    params: Params,
    frozen: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    micro_step: jax.Array,
  ) -> tuple[Params, Metrics]:
    """Returns (gradients, metrics), as train_state.Task describes them.

    Generator and discriminator are trained on the same reconstruction, in one
    step. The reference updates the generator first and samples another
    reconstruction for the discriminator, which costs a second pass through the
    autoencoder.
    """
    image, active = batch['image'], micro_step >= self.start
    # Frozen parts of a net lie beside those that are trained.
    trained, params = params, partial_trees.merge(frozen, params)
    noise_key = jax.random.fold_in(key, micro_step)

    # Forward through the autoencoder, once.
    def reconstruct(autoencoder):
      return self.reconstruct(autoencoder, image, noise_key)

    (x, moments), vae_vjp = jax.vjp(reconstruct, params['vae'])

    # The losses, with their gradients by x, moments and the discriminator.
    (loss, metrics), (grad_x, grad_logvar) = jax.value_and_grad(
      self.reconstruction_loss, argnums=(0, 1), has_aux=True
    )(x, params['logvar'], image, frozen)
    kl, grad_moments = jax.value_and_grad(kl_divergence)(moments)
    g_loss, g_grad_x = jax.value_and_grad(self.generator_loss)(x, params)
    (d_loss, logits), grad_discriminator = jax.value_and_grad(
      self.discriminator_loss, has_aux=True
    )(params['discriminator'], image, x, active)

    # The generator's weight, from both gradients at the decoder's last kernel.
    def reconstruct_by_kernel(kernel):
      return reconstruct(with_last_kernel(params['vae'], kernel))[0]

    _, kernel_vjp = jax.vjp(reconstruct_by_kernel, last_kernel(params['vae']))
    (kernel_grad,), (g_kernel_grad,) = kernel_vjp(grad_x), kernel_vjp(g_grad_x)
    ratio = adaptive_weight(kernel_grad, g_kernel_grad)
    weight = active * self.adversary_weight * ratio

    # One backward pass through the autoencoder for all losses.
    (grad_vae,) = vae_vjp(
      (grad_x + weight * g_grad_x, self.kl_weight * grad_moments)
    )
    gradients = {
      'vae': grad_vae,
      'discriminator': grad_discriminator,
      'logvar': grad_logvar,
    }
    gradients = partial_trees.like(gradients, trained)
    return gradients, metrics | logits | {
      'loss': loss + self.kl_weight * kl + weight * g_loss,
      'kl': kl,
      'logvar': params['logvar'],
      'adversary_weight': weight,
      'discriminator_loss': d_loss,
    }

  def validate(
    self, params: Params, frozen: Params, batch: dict[str, jax.Array]
  ) -> dict[str, Float[Array, ' b']]:
    """Returns l1 and LPIPS of examples through the mean of their posterior.

    The loss is l1 with the weighted LPIPS added, without a discriminator; see
    train_state.Task.
    """
    params, image = partial_trees.merge(frozen, params), batch['image']
    mean, _ = latent_scaling.split(self.model.encode(params, image))
    latents = latent_scaling.scale(self.model.vae, mean)
    difference = self.model.decode(params, latents) - image
    losses = {'l1': jnp.abs(difference).mean((1, 2, 3))}
    if not self.perceptual_weight:
      return {'loss': losses['l1']} | losses
    losses['lpips'] = self.model.distance(params, image, image + difference)
    loss = losses['l1'] + self.perceptual_weight * losses['lpips']
    return {'loss': loss} | losses

  def reconstruct(
    self, autoencoder: Params, image: Images, key: jax.Array
  ) -> tuple[Images, Float[Array, 'b h_latent w_latent moments']]:
    """Returns the image through a sample of its posterior, and its moments."""
    moments = self.model.encode({'vae': autoencoder}, image)
    b, h, w, c = moments.shape
    noise = jax.random.normal(key, (b, h, w, c // 2))
    latents = latent_scaling.sample(self.model.vae, moments, noise)
    return self.model.decode({'vae': autoencoder}, latents), moments

  def reconstruction_loss(
    self, x: Images, logvar: Scalar, image: Images, frozen: Params
  ) -> tuple[Scalar, Metrics]:
    """Returns the nll of an image given its reconstruction x, and metrics."""
    # Without a weight, LPIPS is not even compiled.
    distance = jnp.zeros(len(image))
    if self.perceptual_weight:
      distance = self.model.distance(frozen, image, x)
    metrics = {'l1': jnp.abs(image - x).mean(), 'lpips': distance.mean()}
    return nll(image, x, self.perceptual_weight * distance, logvar), metrics

  def generator_loss(self, x: Images, params: Params) -> Scalar:
    """Returns the adversarial loss of a reconstruction x."""
    return -self.model.discriminate(params, x).mean()

  def discriminator_loss(
    self, discriminator: Params, image: Images, x: Images, active: jax.Array
  ) -> tuple[Scalar, Metrics]:
    """Returns the discriminator's loss, 0 unless active, and metrics."""
    params = {'discriminator': discriminator}
    real = self.model.discriminate(params, image)
    fake = self.model.discriminate(params, x)
    metrics = {'logits_real': real.mean(), 'logits_fake': fake.mean()}
    # Before its start the gradients are zero, in the same compiled program.
    return active * hinge(real, fake), metrics


def last_kernel(autoencoder: Params) -> Float[Array, 'kh kw c_in c_out']:
  """The kernel of the decoder's last layer."""
  return autoencoder['decoder']['conv_out']['kernel']


def with_last_kernel(
  autoencoder: Params, kernel: Float[Array, 'kh kw c_in c_out']
) -> Params:
  """The same parameters with another kernel in the decoder's last layer."""
  decoder = autoencoder['decoder']
  conv_out = decoder['conv_out'] | {'kernel': kernel}
  return autoencoder | {'decoder': decoder | {'conv_out': conv_out}}


def make_autoencoder_task(
  loss: AutoencoderLoss,
  optimizer: optax.GradientTransformation,
  *,
  global_batch_size: int,
  micro_batches: int = 1,  # per optimizer step, see train_state.Task
) -> train_state.Task:
  """Makes the Task of reconstructing images.

  Raises:
    ValueError: if the batch cannot be divided into the micro-batches.
  """
  rows = batch_specs.divide_batch(global_batch_size, micro_batches)

  def init(key, pretrained=None):
    params = loss.model.init(key) | (pretrained or {})
    # LPIPS is part of the loss, not of what is trained.
    params.pop('lpips', None)
    params['logvar'] = jnp.zeros([])
    step = jnp.zeros([], jnp.int32)
    return train_state.State(step, params, optimizer.init(params))

  def batch_spec(bucket):
    return batch_specs.image_batch_spec(bucket, rows, refiner=False)

  return train_state.Task(
    init=init,
    gradients=loss.gradients,
    update=train_state.make_update(optimizer, micro_batches),
    batch_spec=batch_spec,
    micro_batches=micro_batches,
    validate=loss.validate,
  )


def make_optimizer(
  make_chain: Callable[[], optax.GradientTransformation],
  learn_logvar: bool,
  decoder_only: bool,
) -> optax.GradientTransformation:
  """Makes one optimizer for the generator, one for the discriminator.

  Args:
    make_chain: makes a transformation without an average.
    learn_logvar: whether the log-variance is trained, or stays 0.
    decoder_only: whether the encoder is frozen.
  """

  def label(path, leaf):
    del leaf
    net, *modules = (key.key for key in path)
    # The log-variance belongs to the autoencoder, but may be frozen alone.
    if net == 'logvar':
      return 'generator' if learn_logvar else 'frozen'
    if net == 'vae' and decoder_only and modules[0] in ENCODER:
      return 'frozen'
    return 'generator' if net == 'vae' else 'discriminator'

  def labels(params):
    return jax.tree_util.tree_map_with_path(label, params)

  # Frozen parameters have no moments, and an average keeps their bits.
  chains = {
    'generator': make_chain(),
    'discriminator': make_chain(),
    'frozen': optax.set_to_zero(),
  }
  return optax.partition(chains, labels)
