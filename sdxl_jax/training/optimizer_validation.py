"""Checks the fields of config.optimizer for each other."""

import re

from ml_collections import config_dict

from sdxl_jax.training import learning_rates, optimizer, optimizer_fields

# Have estimates, or a second copy of the parameters, that must be exact.
EXACT = (*optimizer.ESTIMATING, optimizer.SCHEDULE_FREE)
SECTION = 'config.optimizer'


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for an optimizer, schedule or EMA that cannot be."""
  check_schedule(config)
  check_rules(config)
  check_name(config)
  # An EMA of one decay cannot be combined to other widths.
  if config.optimizer.ema_snapshots and not config.optimizer.ema_widths:
    raise ValueError(
      'config.optimizer.ema_snapshots is '
      f'{config.optimizer.ema_snapshots}, but there are no power-function '
      'averages to copy: set config.optimizer.ema_widths, such as (0.05, 0.1)'
    )


def check_schedule(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for a schedule that does not fit the run."""
  c, total = config.optimizer, config.total_steps
  if c.cosine is not None and c.schedule not in ('constant', 'cosine'):
    raise ValueError(
      f'{SECTION}.cosine is {c.cosine}, an older word for schedule, which is '
      f'{c.schedule!r}: set one of them, and cosine to None'
    )
  name = optimizer_fields.schedule_of(c)
  # The decay takes the steps that the warm-up leaves.
  if name != 'constant' and c.warmup_steps >= total:
    decay = 'a cosine decay' if name == 'cosine' else f'schedule {name!r}'
    raise ValueError(
      f'config.optimizer.warmup_steps is {c.warmup_steps}; {decay} needs '
      f'fewer than config.total_steps, {total}'
    )
  if name == 'warmup_stable_decay':
    left = total - c.warmup_steps
    if not 0 < c.decay_steps <= left:
      raise ValueError(
        f'{SECTION}.decay_steps is {c.decay_steps}; warmup_stable_decay needs '
        f'1 to {left}, the steps after the warm-up: a tenth of the run, '
        f'{max(1, total // 10)}, is usual'
      )


def check_rules(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for a pattern of rates that is none.

  What the patterns match is known once there are parameters, see
  learning_rates.check.
  """
  for pattern, _ in config.optimizer.rates:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f'{learning_rates.FIELD} has {pattern!r}, which is no regular '
        f'expression: {error}'
      ) from None


def check_name(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for what an optimizer cannot be combined with."""
  c = config.optimizer
  if c.name == 'adafactor' and c.moments_dtype != 'float32':
    raise ValueError(
      f"{SECTION}.moments_dtype is {c.moments_dtype!r}, but 'adafactor' has no "
      "moments of the parameters' size: set it to 'float32'"
    )
  if c.moments_dtype == 'int8' and c.name not in optimizer.ELEMENTWISE:
    raise ValueError(
      f"{SECTION}.moments_dtype is 'int8', but {c.name!r} computes with whole "
      "arrays, which 8 bits are not made for: set it to 'bfloat16', or name to "
      f'one of {optimizer.ELEMENTWISE}'
    )
  for name in config.trained:
    net = config.get(name)
    dtype = net.get('param_dtype') if net else None
    if c.name in EXACT and dtype == 'bfloat16':
      raise ValueError(
        f"config.{name}.param_dtype is 'bfloat16', in which the state of "
        f"{c.name!r} cannot grow in small steps: set it to 'float32'"
      )
  if c.name != optimizer.SCHEDULE_FREE:
    return
  if c.b1 == 0:
    raise ValueError(
      f'{SECTION}.b1 is 0, but {c.name!r} averages by it: 0.9 is usual'
    )
  if c.ema_widths:
    raise ValueError(
      f'{SECTION}.ema_widths is {tuple(c.ema_widths)}, but {c.name!r} keeps '
      'an average of its own in place of an EMA: set it to ()'
    )
