"""What the fields of a config may hold, checked before anything is built."""

import re

INF = float('inf')
# Field: (lowest, highest), both allowed.
RANGES = {
  'total_steps': (1, INF),
  'global_batch_size': (1, INF),
  'accumulation_steps': (1, INF),
  'buckets_per_step': (1, INF),
  'log_every': (1, INF),
  'compile_threads': (1, 64),
  'caption_dropout': (0, 1),
  'data.flip_probability': (0, 1),
  'data.num_threads': (0, 256),
  'data.prefetch': (1, INF),
  'data.index_workers': (0, 1024),
  'loss.offset_noise': (0, 1),
  'loss.min_snr_gamma': (0, INF),
  'autoencoder.perceptual_weight': (0, INF),
  'autoencoder.kl_weight': (0, INF),
  'autoencoder.measure_latents': (0, INF),
  'autoencoder.adversary_weight': (0, INF),
  'autoencoder.adversary_start': (0, INF),
  'optimizer.learning_rate': (0, 1),
  'optimizer.warmup_steps': (0, INF),
  'optimizer.b1': (0, 1),
  'optimizer.b2': (0, 1),
  'optimizer.weight_decay': (0, INF),
  'optimizer.clip_norm': (0, INF),
  'optimizer.ema_decay': (0, 1),
  'optimizer.ema_snapshots': (0, INF),
  'checkpoint.every': (1, INF),
  'checkpoint.max_to_keep': (1, INF),
  'samples.every': (0, INF),
  'samples.steps': (1, 1000),
  'mesh.processes': (1, INF),
}
CHOICES = {
  'task': ('diffusion', 'autoencoder'),
  'uncond': ('zeros', 'empty'),
  'data.source': (
    *('folder', 'webdataset', 'parquet', 'tfds', 'scenes', 'mixture'),
    'precomputed',
  ),
  'unet.attention': ('auto', 'xla', 'cudnn', 'splash'),
  'unet.remat': ('none', 'full', 'dots'),
  'vae.kind': ('kl', 'patch'),
}
AUTOENCODER = {'vae', 'discriminator'}  # what stage 0 trains


def check(config):
  """Raises ValueError naming field, value and limit of the first misfit."""
  for field, (low, high) in RANGES.items():
    value = get(config, field)
    if not low <= value <= high:
      limit = f'at least {low}' if high == INF else f'{low} to {high}'
      raise ValueError(f'config.{field} is {value}; it must be {limit}')
  for field, choices in CHOICES.items():
    value = get(config, field)
    if value not in choices:
      raise ValueError(f'config.{field} is {value!r}; choose one of {choices}')
  warmup = config.optimizer.warmup_steps
  if config.optimizer.cosine and warmup >= config.total_steps:
    raise ValueError(
      f'config.optimizer.warmup_steps is {warmup}; a cosine decay needs fewer '
      f'than config.total_steps, {config.total_steps}'
    )
  if config.optimizer.ema_snapshots and not config.optimizer.ema_widths:
    raise ValueError(
      'config.optimizer.ema_snapshots asks for copies of power-function '
      'averages: set config.optimizer.ema_widths, such as (0.05, 0.1)'
    )
  if config.task == 'autoencoder':
    check_autoencoder(config)
  check_lora(config)
  if is_precomputed(config):
    check_precomputed(config)
  buckets = config.data.buckets
  factor = config.vae.get('patch') or 2 ** (
    len(config.vae.block_out_channels) - 1
  )
  for bucket in buckets:
    if any(side < factor or side % factor for side in bucket):
      raise ValueError(
        f'config.data.buckets has {tuple(bucket)}; heights and widths must be '
        f'multiples of {factor}, the px that one latent stands for'
      )


def check_lora(config):
  if bool(config.lora) != ('lora' in config.trained):
    raise ValueError(
      f'config.trained is {tuple(config.trained)} and config.lora has '
      f"{list(config.lora)}: low-rank factors are trained with 'lora' in the "
      'one and a dict(layers=pattern, rank=16, alpha=16.0) in the other'
    )
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


def check_precomputed(config):
  towers = [g for g in config.lora.values() if not g.layers.startswith('unet/')]
  if towers or tuple(config.trained) not in (('unet',), ('lora',)):
    raise ValueError(
      f'config.trained is {tuple(config.trained)}, but from precomputed text '
      "and moments only ('unet',) can learn, or ('lora',) with patterns of "
      'config.lora that begin with unet/'
    )


def check_autoencoder(config):
  if config.vae.kind != 'kl':
    raise ValueError(
      f'config.vae.kind is {config.vae.kind!r}, which has nothing to train; '
      "config.task = 'autoencoder' needs 'kl'"
    )
  if set(config.trained) != AUTOENCODER:
    raise ValueError(
      f'config.trained is {tuple(config.trained)}; config.task = '
      f"'autoencoder' trains {sorted(AUTOENCODER)}"
    )
  known = config.vae.scaling_factor or config.autoencoder.measure_latents
  if 'vae' in config.from_scratch and not known:
    raise ValueError(
      'config.autoencoder.measure_latents is 0, and config.vae.scaling_factor '
      'None: later stages need one of them for the latents of a new encoder'
    )


def is_precomputed(config):
  """Whether batches hold moments and encoded text."""
  return config.data.source == 'precomputed'


def get(config, field):
  for name in field.split('.'):
    config = config[name]
  return config
