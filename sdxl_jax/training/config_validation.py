"""Checks the fields of a config before anything is built.

Ranges of numbers, choices of names, then what fields require of each other.
"""

import re
from typing import Any, NamedTuple

from ml_collections import config_dict

from sdxl_jax.data import cut_captions

INF = float('inf')


class Range(NamedTuple):
  """The interval that a field's value must lie in."""

  low: float
  high: float
  excludes: float | None = None  # one of the two limits, if it is not allowed

  def __contains__(self, value):
    return self.low <= value <= self.high and value != self.excludes

  def __str__(self):
    if self.excludes == self.low:
      return f'above {self.low}'
    if self.excludes == self.high:
      return f'at least {self.low} and below {self.high}'
    if self.high == INF:
      return f'at least {self.low}'
    return f'{self.low} to {self.high}'


RANGES = {
  'total_steps': Range(1, INF),
  'global_batch_size': Range(1, INF),
  'accumulation_steps': Range(1, INF),
  'buckets_per_step': Range(1, INF),
  'log_every': Range(1, INF),
  'compile_threads': Range(1, 64),
  'caption_dropout': Range(0, 1),
  'data.flip_probability': Range(0, 1),
  'data.num_threads': Range(0, 256),
  'data.prefetch': Range(1, INF),
  'data.index_workers': Range(0, 1024),
  'loss.offset_noise': Range(0, 1),
  'loss.min_snr_gamma': Range(0, INF),
  'autoencoder.perceptual_weight': Range(0, INF),
  'autoencoder.kl_weight': Range(0, INF),
  'autoencoder.measure_latents': Range(0, INF),
  'autoencoder.adversary_weight': Range(0, INF),
  'autoencoder.adversary_start': Range(0, INF),
  'autoencoder.adversary_features': Range(1, INF),
  'autoencoder.adversary_layers': Range(0, INF),
  'optimizer.learning_rate': Range(0, 1),
  'optimizer.warmup_steps': Range(0, INF),
  # At 1 the bias correction of Adam divides by zero; at an eps of 0 the update
  # of a parameter without gradient does.
  'optimizer.b1': Range(0, 1, excludes=1),
  'optimizer.b2': Range(0, 1, excludes=1),
  'optimizer.eps': Range(0, INF, excludes=0),
  'optimizer.weight_decay': Range(0, INF),
  'optimizer.clip_norm': Range(0, INF),
  'optimizer.ema_decay': Range(0, 1),
  'optimizer.ema_snapshots': Range(0, INF),
  'checkpoint.every': Range(1, INF),
  'checkpoint.max_to_keep': Range(1, INF),
  'samples.every': Range(0, INF),
  'samples.steps': Range(1, 1000),
  'samples.zoom': Range(1, INF),
  'mesh.processes': Range(1, INF),
}

CHOICES = {
  'task': ('diffusion', 'autoencoder'),
  'uncond': ('zeros', 'empty'),
  'max_token_length': cut_captions.LENGTHS,
  'data.source': (
    'folder',
    'webdataset',
    'parquet',
    'tfds',
    'scenes',
    'mixture',
    'precomputed',
  ),
  'unet.attention': ('auto', 'xla', 'cudnn', 'splash'),
  'unet.remat': ('none', 'full', 'dots'),
  'vae.kind': ('kl', 'patch'),
}

AUTOENCODER_NETS = {'vae', 'discriminator'}  # the trained nets of stage 0


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError with field, value and limit of the first bad field."""
  # Each field by itself.
  for field, limits in RANGES.items():
    if get(config, field) not in limits:
      raise ValueError(
        f'config.{field} is {get(config, field)}; it must be {limits}'
      )
  for field, choices in CHOICES.items():
    if get(config, field) not in choices:
      raise ValueError(
        f'config.{field} is {get(config, field)!r}; choose one of {choices}'
      )

  # What fields require of each other.
  check_optimizer(config)
  if config.task == 'autoencoder':
    check_autoencoder(config)
  else:
    check_diffusion(config)
  check_lora(config)
  if is_precomputed(config):
    check_precomputed(config)
  check_buckets(config)


def check_optimizer(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for a schedule or snapshots that cannot be."""
  # The decay takes the steps that the warm-up leaves.
  warmup = config.optimizer.warmup_steps
  if config.optimizer.cosine and warmup >= config.total_steps:
    raise ValueError(
      f'config.optimizer.warmup_steps is {warmup}; a cosine decay needs fewer '
      f'than config.total_steps, {config.total_steps}'
    )
  # An EMA of one decay cannot be combined to other widths.
  if config.optimizer.ema_snapshots and not config.optimizer.ema_widths:
    raise ValueError(
      'config.optimizer.ema_snapshots is '
      f'{config.optimizer.ema_snapshots}, but there are no power-function '
      'averages to copy: set config.optimizer.ema_widths, such as (0.05, 0.1)'
    )
  if not config.trained:
    raise ValueError(
      "config.trained is empty: name the nets to train, such as ('unet',)"
    )


def check_diffusion(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for timesteps or samples that cannot be."""
  # The noise schedule has 1000 timesteps.
  low, high = config.loss.timestep_range
  if not 0 <= low < high <= 1000:
    raise ValueError(
      f'config.loss.timestep_range is {(low, high)}; it must be (first, last + '
      '1) with 0 <= first <= last < 1000'
    )
  # Otherwise the run would fail at its first samples, long after the start.
  if config.samples.every and not config.samples.prompts:
    raise ValueError(
      f'config.samples.every is {config.samples.every}, but '
      'config.samples.prompts is empty: add a prompt, or set every to 0'
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


def check_lora(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for groups of low-rank factors that cannot be trained."""
  if bool(config.lora) != ('lora' in config.trained):
    raise ValueError(
      f'config.trained is {tuple(config.trained)} and config.lora has '
      f"{list(config.lora)}: to train low-rank factors, put 'lora' into "
      'trained and a dict(layers=pattern, rank=16, alpha=16.0) into config.lora'
    )
  # Each group; its pattern is compiled here, so that a mistake fails at once.
  for name, group in config.lora.items():
    for field, least in ('rank', 1), ('alpha', 1e-6):
      if not group[field] >= least:
        raise ValueError(
          f'config.lora.{name}.{field} is {group[field]}; it must be at least '
          f'{least}'
        )
    try:
      re.compile(group.layers)
    except re.error as error:
      raise ValueError(
        f'config.lora.{name}.layers is {group.layers!r}, which is no regular '
        f'expression: {error}'
      ) from None


def check_precomputed(config: config_dict.ConfigDict) -> None:
  """Raises ValueError if nets are trained that a cache has already applied."""
  # Text encoders and autoencoder do not run, so they would get no gradients.
  only_unet = all(g.layers.startswith('unet/') for g in config.lora.values())
  if not only_unet or tuple(config.trained) not in (('unet',), ('lora',)):
    raise ValueError(
      f'config.trained is {tuple(config.trained)}, but precomputed text and '
      "moments can train ('unet',) only, or ('lora',) with patterns of "
      'config.lora that begin with unet/'
    )


def check_buckets(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for sizes that are no whole number of latents."""
  # Each level of the autoencoder but the last halves the size.
  if config.vae.kind == 'patch':
    downscale = config.vae.patch
  else:
    downscale = 2 ** (len(config.vae.block_out_channels) - 1)
  for bucket in config.data.buckets:
    if any(side < downscale or side % downscale for side in bucket):
      raise ValueError(
        f'config.data.buckets has {tuple(bucket)}; heights and widths must be '
        f'multiples of {downscale}, the px that one latent stands for'
      )


def is_precomputed(config: config_dict.ConfigDict) -> bool:
  """Whether batches hold moments and encoded text."""
  return config.data.source == 'precomputed'


def get(config: config_dict.ConfigDict, field: str) -> Any:
  """The value of a field by its dotted path, such as 'optimizer.b1'."""
  for name in field.split('.'):
    config = config[name]
  return config
