"""Finds settings that can be trained with, but are hardly meant.

Each function returns lines for the user, none if all is well: what is set, what
follows from it, and what to set instead. What cannot work at all is refused by
config_validation.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import config_dict

from sdxl_jax.training import (
  config_validation,
  data_fields,
  loss_fields,
  loss_validation,
  optimizer_warnings,
)

SHOWN = 5  # buckets named in a line

# What follows if a field counts more steps than the run has.
BEYOND_THE_END = {
  'log_every': 'there will be one line of metrics, at the end',
  'checkpoint.every': 'only the last step will be saved',
  'checkpoint.keep_every': 'no checkpoint will be kept beside the last ones',
  'samples.every': 'there will be samples after the last step only',
  'optimizer.ema_snapshots': 'only the last averages will be copied',
}


def of_config(config: config_dict.ConfigDict) -> list[str]:
  """Warnings that follow from the config alone."""
  rules = (
    optimizer_warnings.of_rate,
    optimizer_warnings.of_average,
    of_intervals,
    of_loss,
    of_nets,
    of_augmentation,
    ignored,
  )
  return [line for rule in rules for line in rule(config)]


def of_intervals(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns of what is due only after the end of the run."""
  total = config.total_steps
  for field, consequence in BEYOND_THE_END.items():
    every = config_validation.get(config, field)
    if every > total:
      yield (
        f'config.{field} is {every:,}, but the run has {total:,} steps: '
        f'{consequence}'
      )
  every, share = config.validation.every, config.validation.share
  if share and every > total:
    yield (
      f'config.validation.every is {every:,}, but the run has {total:,} steps: '
      'there will be validation before the first and after the last step only'
    )
  if share and not every:
    yield (
      f'config.validation.share is {share}, but config.validation.every is 0: '
      'the records held out are for sdxl_jax.evaluate --validation alone'
    )
  start = config.autoencoder.adversary_start
  if config.task == 'autoencoder' and start >= total:
    yield (
      f'config.autoencoder.adversary_start is {start:,}, but the run has '
      f'{total:,} steps: the discriminator will not take part'
    )


def of_loss(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns of timesteps that a run leaves out or does not need."""
  loss = config.loss
  if config.task != 'diffusion':
    return
  yield from loss_validation.unseen(config)
  yield from loss_validation.unused(config)
  yield from loss_validation.unused_masks(config)
  if config.refiner and loss.timestep_range[1] == 1000:
    yield (
      f'config.loss.timestep_range is {tuple(loss.timestep_range)}, but '
      'config.refiner is True: a refiner samples the last steps only; SDXL '
      'trains it on (0, 200)'
    )
  if config.refiner and config.samples.every:
    yield (
      f'config.samples.every is {config.samples.every:,}, but config.refiner '
      'is True: a refiner cannot begin with pure noise, so that its samples '
      'say nothing; 0 turns them off'
    )


def of_nets(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns of an autoencoder that is trained to make its latents easy."""
  if config.task == 'diffusion' and 'vae' in config.trained:
    yield (
      "config.trained has 'vae', whose latents lose the image if nothing but "
      "the loss of diffusion trains it; config.task = 'autoencoder' trains it"
    )


def of_augmentation(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns of changes that are made to all images instead of some."""
  if config.task == 'diffusion' and config.caption_dropout == 1:
    yield 'config.caption_dropout is 1: no caption will be trained on'
  if config.data.flip_probability == 1:
    yield (
      'config.data.flip_probability is 1: every image will be mirrored; 0.5 '
      'mirrors half of them'
    )


def ignored(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns of fields that are set, but not used with the others."""
  source = config.data.source
  for kind, name in data_fields.PLACES.items():
    field = f'data.{kind}.{name}'
    value = config_validation.get(config, field)
    if value and kind != source:
      yield (
        f'config.{field} is {value!r}, but config.data.source is {source!r}: '
        'it will not be read'
      )
  if config.data.mixture and source != 'mixture':
    yield (
      f'config.data.mixture has {list(config.data.mixture)}, but '
      f'config.data.source is {source!r}: they will not be read'
    )
  captions = config.data.captions
  if not (captions.shuffle_caption or captions.caption_tag_dropout_rate):
    for name in 'keep_tokens', 'keep_tokens_separator':
      if captions[name]:
        yield (
          f'config.data.captions.{name} is {captions[name]!r}, but neither '
          'shuffle_caption nor caption_tag_dropout_rate is set: captions stay '
          'as they are'
        )
  if 0 < config.data.prefetch < config.data.num_threads:
    yield (
      f'config.data.num_threads is {config.data.num_threads}, but '
      f'config.data.prefetch is {config.data.prefetch}: no more threads than '
      'that will work'
    )
  # The fields of the loss belong to diffusion.
  if config.task == 'autoencoder':
    for name, value in loss_fields.changed(config).items():
      yield (
        f'config.loss.{name} is {value}, which '
        "config.task = 'autoencoder' does not use"
      )


def of_data(
  config: config_dict.ConfigDict,
  table: Sequence[tuple[int, int]],
  counts: np.ndarray,
) -> list[str]:
  """Warnings that follow from how the records fall into buckets.

  Args:
    config: of the run.
    table: (height, width) of each bucket.
    counts: int [buckets], records of each.
  """
  lines, total = [], int(counts.sum())
  batch = config.global_batch_size // config.buckets_per_step
  empty = [size for size, count in zip(table, counts) if not count]
  if empty:
    lines.append(
      f'{len(empty)} of {len(table)} buckets have no images: {listed(empty)}; '
      'nothing is trained at these sizes'
    )
  small = [size for size, n in zip(table, counts) if 0 < n < batch]
  if config.global_batch_size > total:
    lines.append(
      f'config.global_batch_size is {config.global_batch_size:,}, but there '
      f'are {total:,} images: each step takes some of them more than once'
    )
  elif small:
    lines.append(
      f'{len(small)} of {len(table)} buckets have fewer images than a batch of '
      f'{batch:,}, which takes some of them more than once: {listed(small)}'
    )
  return lines


def listed(sizes: Sequence[tuple[int, int]]) -> str:
  """Names the first of some buckets, as '512x2048, 512x1984, ...'."""
  names = [f'{h}x{w}' for h, w in sizes[:SHOWN]]
  return ', '.join([*names, '...'] if len(sizes) > SHOWN else names)
