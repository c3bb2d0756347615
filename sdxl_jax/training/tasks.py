"""Builds task and optimizer from a config; below them no config is read."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterable

import jax
import numpy as np
import optax
from ml_collections import config_dict

from sdxl_jax.data import buckets, dataset
from sdxl_jax.distributed import device_mesh
from sdxl_jax.ema import transform
from sdxl_jax.models import autoencoder_gan, sdxl
from sdxl_jax.text import chunking, tokenizer
from sdxl_jax.training import (
  autoencoder_task,
  batch_specs,
  config_validation,
  consistency_task,
  diffusion_task,
  distillation_fields,
  gradient_dtype,
  learning_rates,
  loss_fields,
  loss_scaling,
  movement,
  optimizer,
  optimizer_fields,
  rate_schedules,
  schedule_free,
  skipping,
  stochastic_rounding,
  train_state,
  vector_norms,
)

MOST_RATES = 1_000_000  # learning rates that are computed ahead


def make_task(
  config: config_dict.ConfigDict,
  model: sdxl.SDXL | autoencoder_gan.AutoencoderGAN,
) -> train_state.Task:
  """Makes the Task that a config describes."""
  if config.task == 'autoencoder':
    task = make_autoencoder_task(config, model)
  else:
    task = make_diffusion_task(config, model)
  c = config.optimizer
  dtypes = {
    n: getattr(model.configs.get(n), 'dtype', None) for n in config.trained
  }
  gradient_dtype.check(dtypes, c.gradients_dtype)
  task = gradient_dtype.gradients_in(task, c.gradients_dtype)
  task = learning_rates.train_part(task, c.rates)
  # What float16 computes may overflow: such an update is never taken.
  is_scaled = 'float16' in {
    getattr(net, 'dtype', None) for net in model.configs.values()
  }
  if config.skip_non_finite or is_scaled:
    task = skipping.skip_non_finite(task)
  if is_scaled:
    task = loss_scaling.scale_loss(task, c.loss_scale, c.loss_scale_steps)
  return task


def make_diffusion_task(
  config: config_dict.ConfigDict, model: sdxl.SDXL
) -> train_state.Task:
  """Makes the Task of stages 1 to 3, refiner and LoRA."""
  # With 'empty' the data drop captions; with 'zeros' the task drops their text.
  text_dropout = config.caption_dropout if config.uncond == 'zeros' else 0.0
  precomputed_dtype = None
  if config_validation.is_precomputed(config):
    precomputed_dtype = config.data.precomputed.dtype
  make_loss = diffusion_task.DiffusionLoss
  if config.distillation.method == 'lcm':
    make_loss = functools.partial(
      consistency_task.ConsistencyLoss,
      distillation=distillation_fields.make_settings(config),
      empty_tokens=empty_tokens(config) if config.uncond == 'empty' else None,
    )
  return diffusion_task.make_diffusion_task(
    make_loss(
      model,
      text_dropout=text_dropout,
      settings=loss_fields.make_settings(config),
      validation_timesteps=config.validation.timesteps,
    ),
    make_optimizer(config),
    global_batch_size=config.global_batch_size,
    trained=tuple(config.trained),
    micro_batches=micro_batches_of(config),
    precomputed_dtype=precomputed_dtype,
    text_chunks=chunking.count_for(config.max_token_length),
    masked=dataset.has_masks(config),
  )


def empty_tokens(config: config_dict.ConfigDict) -> np.ndarray:
  """Returns the tokens of a caption '', at the length of a config."""
  count = chunking.count_for(config.max_token_length)
  tokens, _ = tokenizer.load().captions([''], count)
  return tokens


def make_autoencoder_task(
  config: config_dict.ConfigDict, model: autoencoder_gan.AutoencoderGAN
) -> train_state.Task:
  """Makes the Task of stage 0."""
  # The config counts optimizer steps, the loss counts micro-steps.
  c, micro_batches = config.autoencoder, micro_batches_of(config)
  return autoencoder_task.make_autoencoder_task(
    autoencoder_task.AutoencoderLoss(
      model,
      perceptual_weight=c.perceptual_weight,
      kl_weight=c.kl_weight,
      adversary_weight=c.adversary_weight,
      start=c.adversary_start * micro_batches,
    ),
    make_optimizer(config),
    global_batch_size=config.global_batch_size,
    micro_batches=micro_batches,
  )


def make_optimizer(
  config: config_dict.ConfigDict,
) -> optax.GradientTransformation:
  """Makes the optimizer that a config describes, with its EMA."""
  made = make_averaging_optimizer(config)
  return learning_rates.of_trained(made, config.optimizer.rates)


def make_averaging_optimizer(
  config: config_dict.ConfigDict,
) -> optax.GradientTransformation:
  """Makes the optimizer of what a config trains, with its EMA."""
  c = config.optimizer
  # Power-function averages replace the exponential one.
  if c.ema_widths:
    average = transform.power_ema(*c.ema_widths)
  else:
    average = transform.ema(c.ema_decay)
  average = stochastic_rounding.stored_as(average, c.ema_dtype)

  def make_chain():
    names = {field.name for field in dataclasses.fields(optimizer.Settings)}
    settings = {name: c[name] for name in names & set(c)}
    settings |= {'rules': c.rates, 'safeguard_warmup': c.warmup_steps > 0}
    made = optimizer.make(
      c.name, make_learning_rate(config), optimizer.Settings(**settings)
    )
    if config.preserve_embedding_norm:
      return optax.chain(made, vector_norms.keep_norms())
    return made

  if config.task == 'diffusion':
    chain = make_chain()
  else:
    chain = autoencoder_task.make_optimizer(
      make_chain,
      config.autoencoder.learn_logvar,
      config.autoencoder.decoder_only,
    )
  if c.name == optimizer.SCHEDULE_FREE:
    return schedule_free.with_average(chain, c.b1, c.ema_dtype)
  # The average is last in the chain, since it follows the updated parameters.
  return optax.chain(chain, average)


def make_learning_rate(config: config_dict.ConfigDict) -> optax.Schedule:
  """Makes the function step -> learning rate that a config describes."""
  c = config.optimizer
  names = 'num_cycles', 'power', 'decay_steps', 'min_lr_ratio'
  shape = rate_schedules.Shape(
    optimizer_fields.schedule_of(c), **{name: c[name] for name in names}
  )
  return rate_schedules.make(
    c.learning_rate, c.warmup_steps, config.total_steps, shape
  )


class LearningRates:
  """The learning rates of a start of a run, computed before its first step.

  A device computes what is asked of it in order: a rate of its own for a line
  of metrics would wait for the step that runs.

  Args:
    config: of the run.
    done: optimizer steps done before this start.
  """

  def __init__(self, config: config_dict.ConfigDict, done: int):
    self._schedule = make_learning_rate(config)
    # As many as are needed, but for runs that never end.
    steps = np.arange(min(config.total_steps, done + MOST_RATES))
    # float [steps], from the first of the run on
    self.values = np.broadcast_to(self._schedule(steps), steps.shape)

  def at(self, step: int) -> float:
    """Returns the rate of a step."""
    if step < len(self.values):
      return float(self.values[step])
    return float(self._schedule(step))


def make_movement(
  config: config_dict.ConfigDict,
  mesh: jax.sharding.Mesh,
  nets: Iterable[str],
  rates: np.ndarray,
  done: int,
  say: Callable[[str], None],
) -> movement.Movement:
  """Makes the check that the first updates of a start move what is trained.

  Args:
    config: of the run.
    mesh: of the run.
    nets: names of the nets that are trained.
    rates: `values` of LearningRates; longer warm-ups are not worth a check.
    done: optimizer steps done before this start.
    say: prints a line for the user.
  """
  waiting = {}
  if config.task == 'autoencoder':
    waiting = {'discriminator': config.autoencoder.adversary_start}
  estimates = config.optimizer.name in optimizer.ESTIMATING
  updates = movement.UPDATES_ESTIMATED if estimates else movement.UPDATES
  checks = movement.make_checks(
    mesh, sorted(nets), waiting, rates, done, updates
  )
  return movement.Movement(checks, rates, say)


def micro_batches_of(config: config_dict.ConfigDict) -> int:
  """Micro-batches in an optimizer step."""
  return config.buckets_per_step * config.accumulation_steps


def micro_batch_size(config: config_dict.ConfigDict) -> int:
  """Examples in a micro-batch, of all hosts."""
  return batch_specs.divide_batch(
    config.global_batch_size, micro_batches_of(config)
  )


def check_mesh(config: config_dict.ConfigDict, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError if devices cannot share batch or heads evenly."""
  # Each device gets the same number of rows of each micro-batch.
  batch, devices = config.global_batch_size, device_mesh.row_devices(mesh)
  micro_batches = micro_batches_of(config)
  divisor = devices * micro_batches
  if batch % divisor:
    raise ValueError(
      f'config.global_batch_size is {batch}; it must be a multiple of '
      f'{divisor} = {devices} devices on the mesh axes data and fsdp x '
      f'{micro_batches} micro-batches (accumulation_steps x '
      f'buckets_per_step): take {batch // divisor * divisor or divisor} or '
      'change the mesh'
    )

  # The axis tensor shards whole heads.
  tensor = mesh.shape['tensor']
  for depth, heads in zip(config.unet.transformer_depth, config.unet.num_heads):
    if depth and heads % tensor:
      raise ValueError(
        f'config.mesh.tensor is {tensor}; it must divide the heads of every '
        f'level of the UNet, and one level has {heads}'
      )


def run_fingerprint(
  config: config_dict.ConfigDict, schedule: buckets.Schedule
) -> dict[str, str]:
  """{name: text} of what all processes of a run must have in common."""
  # Other versions may compile programs that do not match.
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    'config': config.to_json(),
    'order of the data': schedule.fingerprint(),
    'set of versions': str(versions),
  }
