"""The fields of config.optimizer, with the kind of value each must have."""

from collections.abc import Mapping
from typing import Any

from sdxl_jax.training import (
  gradient_dtype,
  loss_scaling,
  optimizer,
  rate_schedules,
  stochastic_rounding,
)
from sdxl_jax.training.field_kinds import (
  COUNT,
  FACTOR,
  INF,
  SHARE,
  SWITCHED,
  Choice,
  Each,
  Flag,
  Items,
  Number,
  Optional,
  PowerOfTwo,
  Text,
)

RULE = Each((Text(), Number(0, INF, excludes=INF)))

FIELDS = {
  'name': Choice(optimizer.NAMES),
  'learning_rate': SHARE,
  'rates': Items(RULE, "(('text_encoder/.*', 0.1),)"),
  'warmup_steps': SWITCHED,
  'schedule': Choice(rate_schedules.NAMES),
  'cosine': Optional(Flag()),
  'num_cycles': COUNT,
  'power': FACTOR,
  'decay_steps': SWITCHED,
  'min_lr_ratio': SHARE,
  # At 1 the bias correction of Adam divides by zero; at an eps of 0 the update
  # of a parameter without gradient does.
  'b1': Number(0, 1, excludes=1),
  'b2': Number(0, 1, excludes=1),
  'eps': Number(0, 1, excludes=0),
  'weight_decay': Number(0, INF, excludes=INF),
  'clip_norm': Number(0, INF),  # infinity: off, as 0
  'scale_parameter': Flag(),
  'd0': FACTOR,
  'd_coef': FACTOR,
  'gradients_dtype': Choice(gradient_dtype.DTYPES),
  'moments_dtype': Choice(optimizer.MOMENTS_DTYPES),
  'loss_scale': PowerOfTwo(loss_scaling.SMALLEST, loss_scaling.LARGEST),
  'loss_scale_steps': COUNT,
  'ema_decay': SHARE,
  'ema_dtype': Choice(stochastic_rounding.DTYPES),
  'ema_widths': Items(FACTOR, '(0.05, 0.1)'),
  'ema_snapshots': SWITCHED,
}


def schedule_of(c: Mapping[str, Any]) -> str:
  """Returns the name of the schedule in a config's section `optimizer`.

  `cosine` is what earlier configs have in place of `schedule`.
  """
  if c['cosine'] is None:
    return c['schedule']
  return 'cosine' if c['cosine'] else 'constant'
