"""The config of a checkpoint, with the measured statistics of its latents."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import config_dict

from sdxl_jax.data import pipeline
from sdxl_jax.distributed import sharding
from sdxl_jax.models import autoencoder_gan, latent_scaling, sdxl
from sdxl_jax.training import train_state


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Makes the config that is saved with each checkpoint.

  If stage 0 trains an encoder and config.autoencoder.measure_latents is set,
  the saved config has the scaling_factor, and with measure_mean the
  latents_mean, of the first images of the schedule: later stages read them.
  Otherwise it is the run's config.
  """

  config: config_dict.ConfigDict
  model: sdxl.SDXL | autoencoder_gan.AutoencoderGAN
  task: train_state.Task
  mesh: jax.sharding.Mesh
  make_batches: Callable[[], pipeline.Batches]  # with this process's rows
  say: Callable[[str], None]  # prints a line for the user

  def make(self, ema_params: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a checkpoint, given {net: EMA parameters}."""
    c, saved = self.config.autoencoder, self.config.to_dict()
    is_measured = (
      self.config.task == 'autoencoder'
      and not c.decoder_only
      and c.measure_latents
    )
    if not is_measured:
      return saved
    factor, mean = self.measure(ema_params)
    saved['vae']['scaling_factor'] = factor
    if c.measure_mean:
      saved['vae']['latents_mean'] = mean
      saved['vae']['latents_std'] = (1.0,) * len(mean)
    self.say(f'latents have unit variance with scaling_factor {factor:.4g}')
    return saved

  def measure(
    self, ema_params: dict[str, Any]
  ) -> tuple[float, tuple[float, ...]]:
    """Returns (scaling_factor, latents_mean) of at least measure_latents."""
    # Whole micro-batches, at least as many images as the config has.
    rows = self.config.global_batch_size // self.task.micro_batches
    count = -(-self.config.autoencoder.measure_latents // rows)
    # A fused kernel needs the mesh as a context, which only training sets.
    model = self.model.replace(attention='xla')
    replicated = sharding.replicated(self.mesh)
    statistics = []
    with contextlib.closing(self.make_batches()) as batches:
      for bucket, batch in itertools.islice(batches, count):
        batch = sharding.put_batch(
          batch, self.mesh, self.task.batch_spec(bucket)
        )
        statistics.append(
          batch_statistics(model, replicated, ema_params, batch['image'])
        )
    mean, square = np.mean(jax.device_get(statistics), axis=0)
    return latent_scaling.standard(mean, square)


@functools.partial(jax.jit, static_argnums=(0, 1))
def batch_statistics(
  model: autoencoder_gan.AutoencoderGAN,
  output_sharding: jax.sharding.Sharding,
  params: dict[str, Any],
  image: Float[Array, 'b h w c'],
) -> list[Float[Array, ' channels']]:
  """Mean and mean square of each channel of the latents."""
  statistics = latent_scaling.statistics(model.encode(params, image))
  means = [x.mean(0) for x in statistics]
  return jax.lax.with_sharding_constraint(means, output_sharding)
