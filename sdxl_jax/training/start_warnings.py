"""Warns where weights to start from were trained on another noise schedule."""

from collections.abc import Iterator

from ml_collections import config_dict

from sdxl_jax.checkpoints import loading, run_sources
from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.weights import formats, read_options
from sdxl_jax.weights.diffusers import scheduler_config


def of_schedule(config: config_dict.ConfigDict) -> Iterator[str]:
  """Warns if config.schedule differs from the schedule of config.init_from.

  To go on from one prediction to another is possible, and takes long; mostly it
  is a mistake.
  """
  source = config.init_from
  if config.task != 'diffusion' or not source or 'unet' in config.from_scratch:
    return
  try:
    stored = schedule_of(config)
  except ValueError as error:  # of a word that is not known
    yield (
      f'{error}; config.schedule.prediction is {config.schedule.prediction!r}'
    )
    return
  for name in ('prediction', 'zero_terminal_snr'):
    here = config.schedule[name]
    if stored is not None and here != getattr(stored, name):
      yield (
        f'config.schedule.{name} is {here!r}, but by what {source} says it was '
        f'trained with {getattr(stored, name)!r}: the UNet has to learn '
        'anew, unless its header is wrong'
      )


def schedule_of(
  config: config_dict.ConfigDict,
) -> noise_schedule.Schedule | None:
  """Returns the schedule of config.init_from; None where it has none.

  Raises:
    ValueError: for a prediction that is not known.
  """
  source = config.init_from
  if not formats.is_published(source):
    saved = loading.saved_config(source).schedule
    return noise_schedule.Schedule(**saved)
  variant = run_sources.reading(config).variant
  options = read_options.ReadOptions(variant=variant)
  model = formats.open_model(source, options=options)
  if model.index is None:  # a single net
    return None
  schedule, _ = scheduler_config.read(model.scheduler, 'euler')
  return schedule
