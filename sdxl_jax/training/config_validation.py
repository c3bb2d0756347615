"""Checks the fields of a config before anything is built.

Each field by the table of config_fields, then what fields require of each
other. What could be meant, but hardly is, stands in config_warnings.
"""

import difflib
from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from sdxl_jax.diffusion import flow, noise_schedule
from sdxl_jax.training import (
  config_fields,
  data_validation,
  distillation_fields,
  loss_validation,
  net_validation,
  optimizer_validation,
  word_validation,
)

AUTOENCODER_NETS = {'vae', 'discriminator'}  # the trained nets of stage 0


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError with field, value and limit of the first bad field."""
  # Each field by itself.
  for field, value in leaves(config):
    check_field(field, value)

  # What fields require of each other.
  optimizer_validation.check(config)
  distillation_fields.check(config)
  net_validation.check(config)
  if config.task == 'autoencoder':
    check_autoencoder(config)
  else:
    check_diffusion(config)
  data_validation.check(config)
  if is_precomputed(config):
    check_precomputed(config)


def leaves(
  config: config_dict.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields (dotted path, value) of all fields, but for sections of own names.

  A text encoder that a refiner lacks is None and has no fields.
  """
  for name, value in config.items():
    field = f'{prefix}{name}'
    if field in config_fields.OPEN:
      continue
    if isinstance(value, config_dict.ConfigDict):
      if field in config_fields.FIELDS:  # no section should be here
        yield field, value.to_dict()
      yield from leaves(value, f'{field}.')
    elif value is not None or field != 'text_encoder':
      yield field, value


def check_field(field: str, value: Any) -> None:
  """Raises ValueError for an unknown field, or a value not of its kind."""
  if field not in config_fields.FIELDS:
    raise ValueError(f'config.{field} is no field{nearest(field)}')
  remedy = config_fields.FIELDS[field].remedy(value)
  if remedy:
    raise ValueError(f'config.{field} is {value!r}; {remedy}')


def nearest(field: str) -> str:
  """The end of an error: the field that was meant, if one is similar."""
  section, _, name = field.rpartition('.')
  prefix = f'{section}.' if section else ''
  here = {n: prefix + n for n in config_fields.SECTIONS.get(section, {})}
  anywhere = {f.rpartition('.')[2]: f for f in config_fields.FIELDS}
  # The same name in another section, then a similar name, nearby first.
  for names, likeness in (anywhere, 1.0), (here, 0.6), (anywhere, 0.8):
    found = difflib.get_close_matches(name, names, 1, likeness)
    if found:
      return f'; was config.{names[found[0]]} meant?'
  return ': remove it; configs/default.py lists them all'


def check_diffusion(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for a loss, or samples, that cannot be."""
  loss_validation.check(config)
  check_validation(config)
  # The input of the last timestep is the noise itself: to predict it is to copy
  # it, so that a net learns nothing of the image that sampling begins with.
  c, high = config.schedule, config.loss.timestep_range[1]
  try:
    noise_schedule.Schedule(**c.to_dict())
  except ValueError as error:
    raise ValueError(f'config.schedule: {error}') from error
  if c.zero_terminal_snr and c.prediction == 'eps' and high == 1000:
    raise ValueError(
      "config.schedule.prediction is 'eps', but with "
      'config.schedule.zero_terminal_snr the last timestep is pure noise, from '
      "which eps gives no image: set prediction to 'v' (or 'x0'), or "
      'zero_terminal_snr to False'
    )
  # Otherwise the run would fail at its first samples, long after the start.
  s = config.samples
  if s.every and not (s.prompts or s.prompts_file):
    raise ValueError(
      f'config.samples.every is {s.every}, but config.samples.prompts is empty:'
      ' add a prompt or a prompts_file, or set every to 0'
    )
  if s.every and c.prediction == 'flow':
    try:
      flow.check(
        s.sampler, s.get('spacing') or 'linspace', s.get('sigmas') or 'trained'
      )
    except ValueError as error:
      raise ValueError(f'config.samples: {error}') from error


def check_validation(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for more timesteps of validation than are trained."""
  low, high = config.loss.timestep_range
  count = config.validation.timesteps
  if count > high - low:
    raise ValueError(
      f'config.validation.timesteps is {count}, but config.loss.timestep_range '
      f'has {high - low}: it must be at most that; 8 is usual'
    )


def check_autoencoder(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for an autoencoder that cannot be trained."""
  # 'patch' is a reshape without parameters.
  if config.vae.kind != 'kl':
    raise ValueError(
      f'config.vae.kind is {config.vae.kind!r}, which has nothing to train; '
      "config.task = 'autoencoder' needs 'kl'"
    )
  if set(config.trained) != AUTOENCODER_NETS:
    raise ValueError(
      f'config.trained is {tuple(config.trained)}; config.task = '
      f"'autoencoder' trains {sorted(AUTOENCODER_NETS)}"
    )
  if config.max_token_length != 75:
    raise ValueError(
      f'config.max_token_length is {config.max_token_length}; config.task = '
      "'autoencoder' reads no captions: leave it at 75"
    )
  # A UNet is trained on latents of about unit variance.
  known = config.vae.scaling_factor or config.autoencoder.measure_latents
  if 'vae' in config.from_scratch and not known:
    raise ValueError(
      'config.autoencoder.measure_latents is 0, and config.vae.scaling_factor '
      'None: later stages need one of them for the latents of a new encoder'
    )


def check_precomputed(config: config_dict.ConfigDict) -> None:
  """Raises ValueError if nets are trained that a cache has already applied."""
  word_validation.check_not_precomputed(config)
  # Text encoders and autoencoder do not run, so they would get no gradients.
  only_unet = all(g.layers.startswith('unet/') for g in config.lora.values())
  if not only_unet or tuple(config.trained) not in (('unet',), ('lora',)):
    raise ValueError(
      f'config.trained is {tuple(config.trained)}, but precomputed text and '
      "moments can train ('unet',) only, or ('lora',) with patterns of "
      'config.lora that begin with unet/'
    )


def is_precomputed(config: config_dict.ConfigDict) -> bool:
  """Whether batches hold moments and encoded text."""
  return config.data.source == 'precomputed'


def get(config: config_dict.ConfigDict, field: str) -> Any:
  """The value of a field by its dotted path, such as 'optimizer.b1'."""
  for name in field.split('.'):
    config = config[name]
  return config
