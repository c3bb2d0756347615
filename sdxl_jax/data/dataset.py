"""From a config to a source and its batches; the config stops here."""

from sdxl_jax.data import buckets, pipeline
from sdxl_jax.data.sources import kinds, record_filters


def make_source(config, say):
  """The source that a config describes, its filters applied.

  Args:
    config: as configs/default.py describes it.
    say: takes a line for the user.
  """
  c = config.data
  rules = record_filters.Filters(**c.filters.to_dict())
  settings = c[c.source].to_dict()
  return kinds.make_source(c.source, settings, rules, c.index_workers, say)


def make_batches(config, source, tokenize, rows):
  """The pipeline.Batches that training takes from a source.

  Args:
    config: as configs/default.py describes it.
    source: of `make_source`.
    tokenize: list of strings -> int32 [b, 2, 77].
    rows: which of each batch are wanted.
  """
  schedule = buckets.Schedule(
    source.sizes,
    config.data.buckets,
    config.seed,
    config.global_batch_size // config.buckets_per_step,
  )
  # Where guidance compares with zeros, the task zeroes encoded text instead.
  dropout = config.caption_dropout if config.uncond == 'empty' else 0.0
  return pipeline.make_batches(
    *(source, tokenize, schedule, rows),
    divisor=config.accumulation_steps,
    flip_probability=config.data.flip_probability,
    caption_dropout=dropout,
    aesthetic_score=config.refiner,
    background=config.data.background,
    max_upscale=config.data.max_upscale,
    num_threads=config.data.num_threads,
    prefetch=config.data.prefetch,
  )
