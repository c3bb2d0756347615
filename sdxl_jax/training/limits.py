"""What the fields of a config may hold, checked before anything is built."""

INF = float('inf')
# Field: (lowest, highest), both allowed.
RANGES = {
  'total_steps': (1, INF),
  'global_batch_size': (1, INF),
  'accumulation_steps': (1, INF),
  'log_every': (1, INF),
  'compile_threads': (1, 64),
  'caption_dropout': (0, 1),
  'data.flip_probability': (0, 1),
  'data.num_threads': (0, 256),
  'data.prefetch': (1, INF),
  'loss.offset_noise': (0, 1),
  'loss.min_snr_gamma': (0, INF),
  'optimizer.learning_rate': (0, 1),
  'optimizer.warmup_steps': (0, INF),
  'optimizer.b1': (0, 1),
  'optimizer.b2': (0, 1),
  'optimizer.weight_decay': (0, INF),
  'optimizer.clip_norm': (0, INF),
  'optimizer.ema_decay': (0, 1),
  'checkpoint.every': (1, INF),
  'checkpoint.max_to_keep': (1, INF),
  'samples.every': (0, INF),
  'samples.steps': (1, 1000),
}
CHOICES = {
  'uncond': ('zeros', 'empty'),
  'data.source': ('folder', 'scenes'),
  'unet.remat': ('none', 'full', 'dots'),
  'vae.kind': ('kl', 'patch'),
}
# Fields that may change between two runs in one workdir: they move neither
# the parameters nor the order of the data.
FREE = {'total_steps', 'log_every', 'compile_threads', 'checkpoint', 'samples'}


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


def get(config, field):
  for name in field.split('.'):
    config = config[name]
  return config


def changed(old, new):
  """['field: old > new'] of two configs as dicts, without the free fields."""
  # A cosine ends at total_steps: all of its learning rates depend on it.
  held = {'total_steps'} if new['optimizer']['cosine'] else set()
  return differences(old, new, FREE - held)


def differences(old, new, free, prefix=''):
  rows = []
  for name in sorted(set(old) | set(new)):
    field = f'{prefix}{name}'
    a, b = old.get(name), new.get(name)
    if field in free or a == b:
      continue
    if isinstance(a, dict) and isinstance(b, dict):
      rows += differences(a, b, free, f'{field}.')
    else:
      rows.append(f'{field}: {a} > {b}')
  return rows
