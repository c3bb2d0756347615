"""Differences between two configs, and which of them a resumed run refuses."""

# What a resumed run may not change unless told: fields and sections that decide
# the order of the data, and those that decide what the parameters are.
ORDER = ('seed', 'global_batch_size', 'buckets_per_step', 'data')


TREE = (
  *(
    'task',
    'autoencoder',
    'optimizer.ema_widths',
    'trained',
    'lora',
    'refiner',
    'init_from',
    'from_scratch',
    'unet',
    'vae',
  ),
  *('text_encoder', 'text_encoder_2', 'schedule'),
)


# These live in the sections above, but decide how fast and not what.
SPEED = (
  *('data.num_threads', 'data.prefetch', 'data.index_workers'),
  *('data.max_upscale', 'unet.attention', 'unet.remat'),
  *('vae.attention', 'vae.remat', 'text_encoder.attention'),
  *('text_encoder.remat', 'text_encoder_2.attention', 'text_encoder_2.remat'),
)


def check_changes(old, new, workdir, accepted, say):
  """Says which fields of a run's config changed, and refuses grave changes.

  Raises:
    ValueError: where the order of the data or the parameters would be others
      than those that the run has had, unless that is accepted.
  """
  rows = differences(old, new)
  within = lambda field, names: any(
    field == name or field.startswith(f'{name}.') for name in names
  )
  grave = [
    field
    for field in rows
    if within(field, ORDER + TREE) and not within(field, SPEED)
  ]
  listed = lambda fields: ''.join(f'\n  {f}: {rows[f]}' for f in fields)
  if grave and not accepted:
    raise ValueError(
      f'{workdir} holds a run with another config. Changed (old > new):'
      f'{listed(grave)}\nThe order of its data or its parameters would no '
      'longer be those it has had. Take the old values to resume it, another '
      'workdir to start anew, or --accept_changes to go on nevertheless'
    )
  if rows:
    say(f'The config changed since the last start (old > new):{listed(rows)}')


def differences(old, new, prefix=''):
  """{field: 'old > new'} of two configs as dicts."""
  rows = {}
  for name in sorted(set(old) | set(new)):
    field, a, b = f'{prefix}{name}', old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      rows |= differences(a, b, f'{field}.')
    elif a != b:
      rows[field] = f'{a} > {b}'
  return rows
