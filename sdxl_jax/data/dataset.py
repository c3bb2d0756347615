"""Builds a source and its batches from a config; the config stops here."""

import functools
from collections.abc import Callable
from typing import Any

import ml_collections

from sdxl_jax.data import (
  batch_rows,
  buckets,
  caption_templates,
  captioning,
  pipeline,
  record_check,
)
from sdxl_jax.data.sources import (
  held_out,
  indexed,
  kinds,
  mixture,
  record_filters,
)
from sdxl_jax.text import chunking, tokenizer


def make_source(
  config: ml_collections.ConfigDict, say: Callable[[str], Any]
) -> mixture.Part | mixture.Mixture:
  """Makes the source that a config describes, its filters applied.

  Prints how many records it has, uses and leaves out, and why.

  Args:
    config: as configs/default.py describes it.
    say: takes a line for the user.
  """
  c = config.data
  filters = record_filters.Filters(
    **c.filters.to_dict(), buckets=c.buckets, scored=config.refiner
  )
  # An unknown kind has no section, and is refused below.
  settings = c[c.source].to_dict() if c.source in c else {}
  if c.source == 'precomputed':
    settings['max_token_length'] = config.max_token_length
    settings['masks'] = has_masks(config)
  elif not has_masks(config):
    # Nothing is read that the loss does not need.
    parts = settings.values() if c.source == 'mixture' else (settings,)
    for part in parts:
      part.pop('mask', None)
  several = c.captions.several == 'random'
  if c.source == 'mixture':
    settings = {name: without_captions(part) for name, part in settings.items()}
  return kinds.make_source(
    c.source, settings, filters, c.index_workers, say, several
  )


def make_split(
  config: ml_collections.ConfigDict, say: Callable[[str], Any]
) -> held_out.Split:
  """Makes the source that a config trains on, and what it holds out of it.

  Prints how many records it has, uses and leaves out, and why. Arguments are
  those of `make_source`.

  Raises:
    ValueError: if nothing would be left to train on.
  """
  source = make_source(config, ignore)
  share = config.validation.share
  if share is None:
    is_used = config.validation.every > 0
    share = held_out.choose_share(source) if is_used else 0.0
  split = held_out.split(source, share)
  say(str(split.trained.account()))
  return split


def ignore(line: str) -> None:
  """Takes a line that nobody needs."""


def has_masks(config: ml_collections.ConfigDict) -> bool:
  """Whether the loss of a config is masked."""
  return config.task == 'diffusion' and config.loss.masked_loss


def downscale_of(config: ml_collections.ConfigDict) -> int:
  """Returns the px that one latent stands for in each direction."""
  # Each level of the autoencoder but the last halves the size.
  if config.vae.kind == 'patch':
    return config.vae.patch
  return 2 ** (len(config.vae.block_out_channels) - 1)


def make_batches(
  config: ml_collections.ConfigDict,
  source: indexed.Source,
  tokenize: tokenizer.Tokenizer,
  rows: range,
) -> pipeline.Batches:
  """Makes the batches that a config trains on.

  Args:
    config: as configs/default.py describes it.
    source: of `make_source`.
    tokenize: of the model.
    rows: the rows of each batch to make, which are those of this host.
  """
  # A step with several buckets takes several batches of the schedule.
  schedule = buckets.Schedule(
    source.sizes,
    config.data.buckets,
    config.seed,
    config.global_batch_size // config.buckets_per_step,
  )
  return pipeline.make_batches(
    source, make_tokenize(config, tokenize), schedule, rows, options_of(config)
  )


def check_records(
  config: ml_collections.ConfigDict,
  source: indexed.Source,
  tokenize: tokenizer.Tokenizer,
) -> record_check.Report:
  """Reads and decodes every record that a config trains on, see record_check.

  Args:
    config: as configs/default.py describes it.
    source: of `make_source`.
    tokenize: of the model.
  """
  return record_check.check(
    source,
    config.data.buckets,
    make_tokenize(config, tokenize),
    options_of(config),
  )


def make_tokenize(
  config: ml_collections.ConfigDict, tokenize: tokenizer.Tokenizer
) -> pipeline.Tokenize:
  """Makes the function that tokenizes captions at the length of a config."""
  count = chunking.count_for(config.max_token_length)
  return functools.partial(tokenize.captions, count=count)


def without_captions(part: dict[str, Any]) -> dict[str, Any]:
  """Returns the settings of a part of a mixture, but for those of captions."""
  settings = {n: v for n, v in part.items() if n not in captioning.FIELDS}
  if 'several' in part and part['source'] in kinds.INDEXED:
    settings['several'] = part['several'] == 'random'
  return settings


def make_captioning(
  config: ml_collections.ConfigDict,
) -> captioning.Captioning:
  """Returns how a config's captions are chosen and changed."""
  fields, parts = config.data.captions.to_dict(), []
  mixture_parts = config.data.mixture if config.data.source == 'mixture' else {}
  for name, part in mixture_parts.items():
    own = {n: part[n] for n in captioning.FIELDS if n in part}
    if own:
      parts.append((name, captioning.Captioning(**fields | own)))
  return captioning.Captioning(**fields, parts=tuple(parts))


def options_of(config: ml_collections.ConfigDict) -> batch_rows.BatchOptions:
  """Returns the options of a config's batches."""
  return batch_rows.BatchOptions(
    accumulation_steps=config.accumulation_steps,
    flip_probability=config.data.flip_probability,
    # Where the unconditional context is zeros, the task zeroes encoded text.
    caption_dropout=config.caption_dropout if config.uncond == 'empty' else 0.0,
    captions=make_captioning(config),
    aesthetic_score=config.refiner,
    background=config.data.background,
    original_size=config.data.fixed_original_size,
    crop_top_left=config.data.fixed_crop_top_left,
    mask_downscale=downscale_of(config) if has_masks(config) else 0,
    templates=caption_templates.of_config(config),
    max_upscale=config.data.max_upscale,
    max_token_length=config.max_token_length,
    num_threads=config.data.num_threads,
    prefetch=config.data.prefetch,
  )
