"""Stages 1 to 3, refiner and LoRA: one task, they differ in config only."""

import jax
import jax.numpy as jnp

from sdxl_jax.diffusion import losses
from sdxl_jax.models import (
  latent_scaling,
  text_encoder,
)
from sdxl_jax.training import train_state


def make_diffusion_task(
  nets,
  optimizer,
  *,
  global_batch_size,
  trained=('unet',),
  zeros_dropout=0.1,  # share of examples whose text is zeroed
  offset_noise=0.0,  # 0.05 in stage 3
  min_snr_gamma=None,
  timestep_range=None,  # (0, 200) for the refiner
  parts=1,  # micro-batches per optimizer step, see state.Task
  precomputed=None,  # dtype of batches that hold moments and encoded text
):
  """The Task of denoising latents given text and sizes."""
  if global_batch_size % parts:
    raise ValueError(
      f'global_batch_size {global_batch_size} is not a multiple of '
      f'{parts} = accumulation_steps x buckets_per_step; change one of them'
    )

  def init(key, given=None):
    params = nets.init(key) | (given or {})
    params = {name: params[name] for name in trained}
    step = jnp.zeros([], jnp.int32)
    return train_state.State(step, params, optimizer.init(params))

  loss = make_loss(
    nets, zeros_dropout, offset_noise, min_snr_gamma, timestep_range
  )

  def gradients(params, frozen, batch, key, part):
    key = jax.random.fold_in(key, part)
    return jax.grad(loss, has_aux=True)(params, frozen, batch, key)

  def batch_spec(bucket):
    rows = global_batch_size // parts
    if precomputed:
      return precomputed_batch_spec(bucket, rows, nets, precomputed)
    return image_batch_spec(bucket, rows, nets.refiner)

  update = train_state.make_update(optimizer, parts)
  return train_state.Task(init, gradients, update, batch_spec, parts)


def make_loss(nets, zeros_dropout, offset_noise, min_snr_gamma, timestep_range):
  """loss(params, frozen, batch, key) -> (loss, metrics), from one batch."""

  def latents_of(params, batch, key):
    moments = batch.get('moments')
    if moments is None:
      moments = nets.encode(params, batch['image'])
    moments = moments.astype(jnp.float32)
    b, h, w, c = moments.shape
    noise = jax.random.normal(key, (b, h, w, c // 2))
    return latent_scaling.sample(nets.vae, moments, noise)

  def loss(params, frozen, batch, key):
    params = nets.ready(frozen | params)
    latents_key, dropout_key, loss_key = jax.random.split(key, 3)
    x = latents_of(params, batch, latents_key)
    if 'context' in batch:
      context, pooled = batch['context'], batch['pooled']
    else:
      context, pooled = nets.text.encode(params, batch['tokens'])
    context, pooled = text_encoder.drop(
      dropout_key, context, pooled, zeros_dropout
    )
    net = nets.denoiser(params, context, nets.vector(pooled, batch))
    return losses.diffusion_loss(
      net,
      x,
      loss_key,
      nets.schedule,
      timestep_range=timestep_range,
      offset_noise=offset_noise,
      min_snr_gamma=min_snr_gamma,
    )

  return loss


def image_batch_spec(bucket, batch_size, refiner):
  """Shapes of a batch of pictures, as data/pipeline.py names them."""
  h, w = bucket
  spec = lambda shape, dtype: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
  batch = {
    'image': spec((h, w, 3), jnp.float32),
    'tokens': spec((2, 77), jnp.int32),
    'original_size': spec((2,), jnp.int32),
    'crop_top_left': spec((2,), jnp.int32),
    'target_size': spec((2,), jnp.int32),
  }
  if refiner:
    batch['aesthetic_score'] = spec((), jnp.float32)
  return batch


def precomputed_batch_spec(bucket, batch_size, nets, dtype):
  """The same with moments and encoded text, computed ahead."""
  batch = image_batch_spec(bucket, batch_size, nets.refiner)
  h, w = (side // nets.vae.downscale for side in bucket)
  tower = nets.text.text_encoder_2
  spec = lambda *shape: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
  del batch['image'], batch['tokens']
  return batch | {
    'moments': spec(h, w, 2 * nets.unet.in_channels),
    'context': spec(tower.max_position_embeddings, nets.unet.context_dim),
    'pooled': spec(tower.projection_dim),
  }
