"""Warns of weights to start from that are read in another way than is meant."""

from collections.abc import Iterator

from ml_collections import config_dict

from sdxl_jax.checkpoints import run_sources, source_configs
from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.models import from_config
from sdxl_jax.weights import formats, prediction_words, read_options
from sdxl_jax.weights.diffusers import scheduler_config


def of_files(config: config_dict.ConfigDict) -> Iterator[str]:
  """Yields the notes on how pretrained weights to start from are read."""
  sources = config.init_from, run_sources.vae_source(config)
  for source in dict.fromkeys(sources):
    if not source or not formats.is_published(source):
      continue
    options = run_sources.reading(config)
    if source != config.init_from:
      options = formats.for_other(source, options)
    for note in formats.open_model(source, options=options).notes:
      yield f'{source}: {note}'


def of_words(config: config_dict.ConfigDict) -> Iterator[str]:
  """Yields a line if the run to start from learned words, which stay behind."""
  source = config.init_from
  if not source or formats.is_published(source):
    return
  found = from_config.make_words(source_configs.saved_config(source))
  here = {word.token_string for word in from_config.make_words(config)}
  lost = [w.token_string for w in found if w.token_string not in here]
  if lost:
    yield (
      f'{source} learned {", ".join(map(repr, lost))}, which this run does not '
      'know: to go on with such a word, write it by convert --to embedding and '
      'name the file in config.words.NAME.weights'
    )


def of_schedule(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns if config.schedule differs from the schedule of config.init_from.

  To go on from one prediction to another is possible, and takes long; mostly it
  is a mistake.

  Raises:
    ValueError: for weights that cannot be opened.
  """
  source, here = config.init_from, config.schedule
  if config.task != 'diffusion' or not source or 'unet' in config.from_scratch:
    return
  try:
    stored = schedule_of(config)
  except prediction_words.UnknownPrediction as error:
    yield (
      f'{error.problem}. config.schedule.prediction is {here.prediction!r}: '
      'make sure that the UNet predicts that'
    )
    return
  except UnknownSchedule as error:
    yield f'{source} cannot be compared with config.schedule: {error}'
    return
  for name in ('prediction', 'zero_terminal_snr', 'shift', 'shift_size'):
    if stored is not None and here[name] != getattr(stored, name):
      there = getattr(stored, name)
      yield (
        f'config.schedule.{name} is {here[name]!r}, but {source} was trained '
        f'with {there!r}: the UNet has to learn anew. Set '
        f'config.schedule.{name}={there!r}, unless that is intended'
      )


class UnknownSchedule(ValueError):
  """Raised for a scheduler of pretrained weights that is not implemented."""


def schedule_of(
  config: config_dict.ConfigDict,
) -> noise_schedule.Schedule | None:
  """Returns the schedule of config.init_from; None where it has none.

  Raises:
    UnknownPrediction: for a word that is not known.
    UnknownSchedule: for another entry of its scheduler.
    ValueError: for weights that cannot be opened.
  """
  source = config.init_from
  if not formats.is_published(source):
    saved = source_configs.saved_config(source).schedule
    return noise_schedule.Schedule(**saved)
  variant = run_sources.reading(config).variant
  options = read_options.ReadOptions(variant=variant)
  model = formats.open_model(source, options=options)
  if model.index is None:  # a single net
    return None
  try:
    schedule, _ = scheduler_config.read(model.scheduler, 'euler')
  except ValueError as error:
    raise UnknownSchedule(str(error)) from error
  return schedule
