"""Differences between two configs, and those that a resumed run refuses."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from sdxl_jax.data import captioning
from sdxl_jax.training import (
  data_fields,
  distillation_fields,
  loss_fields,
  optimizer_fields,
)

# Fields and sections that decide the order of the data.
DATA_ORDER = (
  'seed',
  'global_batch_size',
  'buckets_per_step',
  'data',
  'validation.share',
)

# Fields and sections that decide what the parameters are.
PARAMETERS = (
  'task',
  'autoencoder',
  'optimizer.name',
  'optimizer.rates',
  'optimizer.ema_widths',
  'trained',
  'lora',
  'words',
  'preserve_embedding_norm',
  'refiner',
  'init_from',
  'init_variant',
  'init_vae',
  'from_scratch',
  'unet',
  'vae',
  'text_encoder',
  'text_encoder_2',
  'schedule',
  'distillation',
)

# Fields of the sections above that decide speed and not results.
RUNTIME = (
  'data.num_threads',
  'data.prefetch',
  'data.index_workers',
  'data.max_upscale',
  'unet.attention',
  'unet.remat',
  'unet.scan_unroll',
  'vae.attention',
  'vae.remat',
  'text_encoder.attention',
  'text_encoder.remat',
  'text_encoder_2.attention',
  'text_encoder_2.remat',
)

# Fields that older configs lack, with the value that these runs had.
ADDED = {
  'init_variant': '',
  'init_vae': '',
  'words': {},
  'log_with': ['tensorboard'],
  'log_tracker_name': '',
  'preserve_embedding_norm': False,
  'data.templates': [],
  'data.fixed_original_size': None,
  'data.fixed_crop_top_left': None,
  'samples.prompts_file': '',
  'optimizer.loss_scale': 2.0**15,
  'optimizer.loss_scale_steps': 2000,
  'optimizer.name': 'adamw',
  'optimizer.schedule': 'constant',
  'optimizer.num_cycles': 1,
  'optimizer.power': 1.0,
  'optimizer.decay_steps': 0,
  'optimizer.min_lr_ratio': 0.0,
  'optimizer.scale_parameter': False,
  'optimizer.d0': 1e-6,
  'optimizer.d_coef': 1.0,
  'optimizer.rates': [],
  'optimizer.gradients_dtype': 'float32',
  'optimizer.moments_dtype': 'float32',
  'optimizer.ema_dtype': 'float32',
  'unet.scan_unroll': 1,
  'data.folder.caption': 'text',
  'data.folder.encoding': '',
  'data.folder.caption_extension': '',
  'data.folder.num_repeats_in_names': False,
  'data.webdataset.encoding': '',
  # A section that came later: what it holds by itself are its fields' defaults.
  'data.captions': {
    name: getattr(captioning.DEFAULT, name) for name in captioning.FIELDS
  },
  'validation': {
    'share': 0.0,
    'every': 5000,
    'records': 128,
    'buckets': 3,
    'timesteps': 8,
    'by_bucket': False,
  },
  'distillation': distillation_fields.DEFAULTS,
  'schedule.shift': 1.0,
  'schedule.shift_size': 0,
  'data.folder.mask': '',
  'data.webdataset.mask': '',
  'data.parquet.mask': '',
  'data.tfds.mask': '',
  'text_encoder.eos_token_id': 2,
  'text_encoder_2.eos_token_id': 2,
}
# As JSON has them.
ADDED |= {
  f'loss.{name}': list(value) if isinstance(value, tuple) else value
  for name, value in loss_fields.DEFAULTS.items()
}


# The same of a group of config.lora, whatever its name.
ADDED_TO_LORA = {'algo': 'lora', 'dora_wd': False, 'factor': -1}


def check_changes(
  old: dict[str, Any],
  new: dict[str, Any],
  workdir: str | pathlib.Path,
  accepted: bool,
  say: Callable[[str], None],
  has_fingerprint: Callable[[], bool] = lambda: False,
) -> None:
  """Prints which fields of a run's config changed; refuses grave changes.

  Args:
    old, new: configs as dicts, of the run so far and of this start.
    workdir: of the run, for the error.
    accepted: whether grave changes are allowed.
    say: prints a line for the user.
    has_fingerprint: returns whether the data themselves are compared as well.

  Raises:
    ValueError: if the order of the data or the parameters would be others than
      those of the run so far, unless that is accepted.
  """
  # Refuse grave changes before anything is written to the workdir.
  changes = differences(in_present_words(old), in_present_words(new))
  has_fingerprint = functools.cache(has_fingerprint)  # reads a checkpoint
  grave = {
    field: row
    for field, row in changes.items()
    if is_grave(field, has_fingerprint)
  }
  if grave and not accepted:
    raise ValueError(
      f'{workdir} holds a run with another config. Changed (old > new):'
      f'{as_lines(grave)}\nThe order of its data or its parameters would no '
      'longer be the same. Restore the old values to resume the run, use '
      'another workdir to start a new one, or pass --accept_changes to go on '
      'nevertheless'
    )
  # Print the others, so that an unintended change is noticed.
  if changes:
    say(
      f'The config changed since the last start (old > new):{as_lines(changes)}'
    )


def is_grave(field: str, has_fingerprint: Callable[[], bool]) -> bool:
  """Whether a field decides the order of the data or the parameters."""

  def is_within(names):
    return any(field == n or field.startswith(f'{n}.') for n in names)

  # The same data may lie elsewhere, where their fingerprint is compared.
  name = field.rpartition('.')[2]
  is_place = is_within(('data',)) and name in data_fields.LOCATIONS
  if is_place and has_fingerprint():
    return False
  return is_within(DATA_ORDER + PARAMETERS) and not is_within(RUNTIME)


def as_lines(changes: dict[str, str]) -> str:
  """Formats changes as indented lines, each begun by a newline."""
  return ''.join(f'\n  {field}: {row}' for field, row in changes.items())


def in_present_words(config: dict[str, Any]) -> dict[str, Any]:
  """Returns a config as a dict, with fields by their present names."""
  c = config.get('optimizer')
  if not c:
    return config
  schedule = optimizer_fields.schedule_of(
    {'cosine': None, 'schedule': ADDED['optimizer.schedule']} | c
  )
  return config | {'optimizer': c | {'schedule': schedule, 'cosine': None}}


def differences(
  old: dict[str, Any], new: dict[str, Any], prefix: str = ''
) -> dict[str, str]:
  """Returns {field: 'old > new'} of two configs as dicts."""
  changes = {}
  for name in sorted(set(old) | set(new)):
    # Sections are compared field by field.
    field = f'{prefix}{name}'
    a, b = old.get(name, added(field)), new.get(name, added(field))
    if isinstance(a, dict) and isinstance(b, dict):
      changes |= differences(a, b, f'{field}.')
    elif a != b:
      changes[field] = f'{a} > {b}'
  return changes


def added(field: str) -> Any:
  """Returns the value that a config without a field had."""
  section, _, name = field.rpartition('.')
  if section.startswith('lora.'):
    return ADDED_TO_LORA.get(name)
  return ADDED.get(field)
