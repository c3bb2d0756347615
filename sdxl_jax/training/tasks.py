"""From a config to nets, task and compiled steps; the config stops here."""

import importlib.metadata

import optax

from sdxl_jax.distributed import device_mesh
from sdxl_jax.ema import transform
from sdxl_jax.training import (
  autoencoder_task,
  config_validation,
  diffusion_task,
  optimizer,
)


def make_learning_rate(config):
  """step -> learning rate."""
  c = config.optimizer
  return optimizer.learning_rate_schedule(
    c.learning_rate, c.warmup_steps, c.cosine and config.total_steps
  )


def make_optimizer(config):
  c = config.optimizer
  average = (
    transform.power_ema(*c.ema_widths)
    if c.ema_widths
    else transform.ema(c.ema_decay)
  )
  make_chain = lambda: optimizer.make_adamw(
    make_learning_rate(config),
    b1=c.b1,
    b2=c.b2,
    eps=c.eps,
    weight_decay=c.weight_decay,
    clip_norm=c.clip_norm,
  )
  if config.task == 'diffusion':
    return optax.chain(make_chain(), average)
  return autoencoder_task.make_optimizer(
    make_chain,
    average,
    config.autoencoder.learn_logvar,
    config.autoencoder.decoder_only,
  )


def run_fingerprint(config, schedule):
  """{name: text} of what all processes of a run must have alike."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    'config': config.to_json(),
    'order of the data': schedule.fingerprint(),
    'set of versions': str(versions),
  }


def check_mesh(config, mesh):
  """Raises ValueError where batch or heads cannot be shared out."""
  batch, devices = config.global_batch_size, device_mesh.row_devices(mesh)
  parts = micro_batches_of(config)
  if batch % (devices * parts):
    low = batch // (devices * parts) * devices * parts
    raise ValueError(
      f'config.global_batch_size is {batch}; it must be a multiple of '
      f'{devices * parts} = {devices} devices on the mesh axes data and fsdp x '
      f'{parts} parts (accumulation_steps x buckets_per_step): take '
      f'{low or devices * parts} or change the mesh'
    )
  tensor = mesh.shape['tensor']
  for depth, heads in zip(config.unet.transformer_depth, config.unet.num_heads):
    if depth and heads % tensor:
      raise ValueError(
        f'config.mesh.tensor is {tensor}; it must divide the heads of every '
        f'level of the UNet, and one has {heads}'
      )


def micro_batches_of(config):
  """Micro-batches that an optimizer step takes."""
  return config.buckets_per_step * config.accumulation_steps


def make_task(config, nets):
  """The Task that a config describes."""
  if config.task == 'autoencoder':
    return make_autoencoder_task(config, nets)
  zeros = config.uncond == 'zeros'
  return diffusion_task.make_diffusion_task(
    nets,
    make_optimizer(config),
    global_batch_size=config.global_batch_size,
    trained=tuple(config.trained),
    zeros_dropout=config.caption_dropout if zeros else 0.0,
    offset_noise=config.loss.offset_noise,
    min_snr_gamma=config.loss.min_snr_gamma or None,
    timestep_range=tuple(config.loss.timestep_range),
    parts=micro_batches_of(config),
    precomputed=config_validation.is_precomputed(config)
    and config.data.precomputed.dtype,
  )


def make_autoencoder_task(config, nets):
  c = config.autoencoder
  rows = config.global_batch_size // micro_batches_of(config)
  return autoencoder_task.make_autoencoder_task(
    nets,
    make_optimizer(config),
    batch_spec=lambda bucket: diffusion_task.image_batch_spec(
      bucket, rows, refiner=False
    ),
    perceptual_weight=c.perceptual_weight,
    kl_weight=c.kl_weight,
    adversary_weight=c.adversary_weight,
    adversary_start=c.adversary_start,
    parts=micro_batches_of(config),
  )
