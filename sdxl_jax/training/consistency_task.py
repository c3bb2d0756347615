"""The loss of latent consistency distillation, by factors (LCM-LoRA).

Luo et al. 2023 (arXiv 2311.05556): the teacher is the frozen net, and the
student is the same net with low-rank factors, which are trained. Factors take
few bytes, and turn other fine-tunings of the base into students as well.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdxl_jax.diffusion import consistency, guidance
from sdxl_jax.ema import partial_trees
from sdxl_jax.models import text_encoder
from sdxl_jax.training.diffusion_task import (
  Batch,
  DiffusionLoss,
  Metrics,
  Params,
)


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss(DiffusionLoss):
  """The loss of a student of the frozen UNet; see consistency.

  Of `settings` it takes the distance alone.
  """

  distillation: consistency.Settings = consistency.Settings()
  # Tokens of the empty caption, [1, 2, 77] or [1, chunks, 2, 77], for the
  # teacher's unconditional rows; None: zeros replace its encoding.
  empty_tokens: np.ndarray | None = None

  def loss(
    self, params: Params, frozen: Params, batch: Batch, key: jax.Array
  ) -> tuple[Float[Array, ''], Metrics]:
    """Returns (loss, metrics) of one batch; the key is that of the batch."""
    student = self.model.ready(partial_trees.merge(frozen, params))
    latents_key, dropout_key, loss_key = jax.random.split(key, 3)
    x = self.sample_latents(frozen, batch, latents_key)

    # Text with and without a prompt, and sizes.
    text = self.encode_text(frozen, batch)
    context, pooled = text_encoder.drop(dropout_key, *text, self.text_dropout)
    vector = self.model.vector(pooled, batch)
    uncond_context, uncond_pooled = self.encode_empty(frozen, context, pooled)
    # The teacher takes both in one call, side by side.
    rows = guidance.interleave_rows
    guided = self.model.denoiser(
      {'unet': frozen['unet']},
      rows([uncond_context, context]),
      rows([self.model.vector(uncond_pooled, batch), vector]),
    )

    def teacher(x, timestep):
      predictions = guided(rows([x, x]), rows([timestep, timestep]))
      return guidance.split_rows(predictions, 2)

    return consistency.distillation_loss(
      self.model.denoiser(student, context, vector),
      teacher,
      x,
      loss_key,
      self.schedule(x),
      self.distillation,
      self.settings.distance,
      batch.get('mask'),
    )

  def encode_empty(
    self,
    params: Params,
    context: Float[Array, 'b n context'],
    pooled: Float[Array, 'b pooled'],
  ) -> tuple[Float[Array, 'b n context'], Float[Array, 'b pooled']]:
    """Returns (context, pooled) without a prompt, for as many examples."""
    if self.empty_tokens is None:
      return jnp.zeros_like(context), jnp.zeros_like(pooled)
    encoded = self.model.text.encode(params, self.empty_tokens)
    return tuple(
      jnp.broadcast_to(empty, like.shape).astype(like.dtype)
      for empty, like in zip(encoded, (context, pooled))
    )
