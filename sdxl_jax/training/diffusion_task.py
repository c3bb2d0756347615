"""The task of stages 1 to 3, refiner and LoRA, which differ in config only."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sdxl_jax.diffusion import (
  losses,
  noise_schedule,
  timestep_importance,
  validation_loss,
)
from sdxl_jax.ema import partial_trees
from sdxl_jax.models import latent_scaling, sdxl, text_encoder
from sdxl_jax.training import batch_specs, loss_scaling, train_state

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class DiffusionLoss:
  """The loss of denoising latents given text and sizes, and its gradients."""

  model: sdxl.SDXL
  text_dropout: float = 0.1  # share of examples whose encoded text is zeroed
  settings: losses.LossSettings = losses.LossSettings()
  validation_timesteps: int = 8  # at which `validate` measures the loss

  def gradients(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    key: jax.Array,
    micro_step: jax.Array,
    scale: jax.Array | None = None,
  ) -> tuple[Params, Metrics]:
    """Returns (gradients, metrics), as train_state.Task describes them."""
    key = jax.random.fold_in(key, micro_step)

    def loss(params):
      return self.loss(params, frozen, batch, key)

    return loss_scaling.scaled_gradients(loss, params, scale)

  def loss(
    self, params: Params, frozen: Params, batch: Batch, key: jax.Array
  ) -> tuple[Float[Array, ''], Metrics]:
    """Returns (loss, metrics) of one batch; the key is that of the batch."""
    params = self.model.ready(partial_trees.merge(frozen, params))
    latents_key, dropout_key, loss_key = jax.random.split(key, 3)

    # What is denoised: latents, sampled from moments.
    x = self.sample_latents(params, batch, latents_key)

    # What conditions it: text, dropped from some examples, and sizes.
    context, pooled = self.encode_text(params, batch)
    context, pooled = text_encoder.drop(
      dropout_key, context, pooled, self.text_dropout
    )
    vector = self.model.vector(pooled, batch)

    return losses.diffusion_loss(
      self.model.denoiser(params, context, vector),
      x,
      loss_key,
      self.schedule(x),
      self.settings,
      batch.get('mask'),
      batch.get('loss_history'),
    )

  def validate(
    self, params: Params, frozen: Params, batch: Batch
  ) -> dict[str, Float[Array, ' b']]:
    """Returns the losses of examples, as train_state.Task describes them.

    They are squared errors, whatever loss is trained; see validation_loss.
    """
    params = self.model.ready(partial_trees.merge(frozen, params))
    keys = validation_loss.row_keys(batch['key'])
    moments = self.moments(params, batch)
    _, h, w, c = moments.shape
    noise = validation_loss.posterior_noise(keys, (h, w, c // 2))
    x = latent_scaling.sample(self.model.vae, moments, noise)
    context, pooled = self.encode_text(params, batch)
    schedule = self.schedule(x)
    timesteps = validation_loss.timesteps(
      self.settings.timesteps,
      schedule.num_train_timesteps,
      self.validation_timesteps,
    )
    errors = validation_loss.squared_errors(
      self.model.denoiser(params, context, self.model.vector(pooled, batch)),
      x,
      keys,
      timesteps,
      schedule,
      self.settings,
      batch.get('mask'),
    )
    at = {f'loss_t{t}': error for t, error in zip(timesteps, errors)}
    return {'loss': errors.mean(0)} | at

  def encode_text(
    self, params: Params, batch: Batch
  ) -> tuple[Float[Array, 'b n context'], Float[Array, 'b pooled']]:
    """Returns (context, pooled) of a batch, where it has them not already."""
    if 'context' in batch:
      return batch['context'], batch['pooled']
    return self.model.text.encode(params, batch['tokens'])

  def empty_history(self) -> Float[Array, '2 parts'] | None:
    """Returns the loss history of a run that begins, None if it has none."""
    timesteps = self.settings.timesteps
    if not timesteps.by_importance:
      return None
    low, high = timesteps.limits(self.model.schedule.num_train_timesteps)
    return timestep_importance.empty(high - low)

  def schedule(
    self, latents: Float[Array, 'b h w c']
  ) -> noise_schedule.Schedule:
    """Returns the noise schedule of latents, which may depend on their size."""
    downscale = self.model.vae.downscale
    height, width = (side * downscale for side in latents.shape[1:3])
    return self.model.schedule.at_size(height, width)

  def sample_latents(
    self, params: Params, batch: Batch, key: jax.Array
  ) -> Float[Array, 'b h_latent w_latent c']:
    """Samples scaled latents from the batch's moments, or its images'."""
    moments = self.moments(params, batch)
    b, h, w, c = moments.shape
    noise = jax.random.normal(key, (b, h, w, c // 2))
    return latent_scaling.sample(self.model.vae, moments, noise)

  def moments(
    self, params: Params, batch: Batch
  ) -> Float[Array, 'b h_latent w_latent moments']:
    """Returns the moments of a batch, float32."""
    moments = batch.get('moments')
    if moments is None:
      moments = self.model.encode(params, batch['image'])
    return moments.astype(jnp.float32)


def make_diffusion_task(
  loss: DiffusionLoss,
  optimizer: optax.GradientTransformation,
  *,
  global_batch_size: int,
  trained: tuple[str, ...] = ('unet',),
  micro_batches: int = 1,  # per optimizer step, see train_state.Task
  precomputed_dtype: str | None = None,  # of moments and text; None: no cache
  text_chunks: int = 1,  # of each caption
  masked: bool = False,  # whether batches have masks of the loss
) -> train_state.Task:
  """Makes the Task of denoising latents given text and sizes.

  Raises:
    ValueError: if the batch cannot be divided into the micro-batches.
  """
  model = loss.model
  rows = batch_specs.divide_batch(global_batch_size, micro_batches)

  def init(key, pretrained=None):
    params = model.init(key, pretrained)
    params = {name: params[name] for name in trained}
    step = jnp.zeros([], jnp.int32)
    return train_state.State(
      step, params, optimizer.init(params), loss_history=loss.empty_history()
    )

  def batch_spec(bucket):
    masks = {}
    if masked:
      masks = batch_specs.mask_spec(bucket, rows, model.vae.downscale)
    if precomputed_dtype is None:
      return masks | batch_specs.image_batch_spec(
        bucket, rows, model.refiner, text_chunks
      )
    return masks | batch_specs.precomputed_batch_spec(
      bucket, rows, model, precomputed_dtype, text_chunks
    )

  shared = {}
  if loss.settings.timesteps.by_importance:
    shared['loss_history'] = jax.eval_shape(loss.empty_history)
  # Gradients and update are apart: only gradients are compiled per bucket.
  return train_state.Task(
    init=init,
    gradients=loss.gradients,
    update=train_state.make_update(optimizer, micro_batches),
    batch_spec=batch_spec,
    micro_batches=micro_batches,
    shared=shared,
    validate=loss.validate,
  )
