"""Optimizers by name: what clips gradients and makes updates of them."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, Float

from sdxl_jax.training import (
  came,
  eight_bit,
  estimated_rates,
  learning_rates,
  muon,
  schedule_free,
  stochastic_rounding,
)
from sdxl_jax.training.decay_mask import make_decay_mask

MOMENTS_DTYPES = (*stochastic_rounding.DTYPES, 'int8')
Rate = Float[ArrayLike, '']


@dataclasses.dataclass(frozen=True)
class Settings:
  """What optimizers share, and what some of them have besides."""

  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  clip_norm: float = 1.0  # of the gradient over all parameters; 0: no clipping
  moments_dtype: str = 'float32'  # one of MOMENTS_DTYPES
  rules: Sequence[learning_rates.Rule] = ()
  d0: float = 1e-6  # of Prodigy and D-Adaptation, see estimated_rates
  d_coef: float = 1.0
  safeguard_warmup: bool = False
  scale_parameter: bool = False  # Adafactor: rates relative to parameters

  @property
  def adam(self) -> dict[str, float]:
    """The arguments that all variants of Adam have."""
    names = 'b1', 'b2', 'eps', 'weight_decay'
    return {name: getattr(self, name) for name in names}


def make(
  name: str, schedule: optax.Schedule, c: Settings
) -> optax.GradientTransformation:
  """Makes an optimizer with clipping and its moments' type.

  Args:
    name: one of NAMES.
    schedule: step -> learning rate.
    c: of the config.
  """
  # Both have an empty state, so that a checkpoint fits whatever the clip_norm.
  clip = (
    optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
  )
  if name == 'adamw':
    inner = learning_rates.scaled(make_adamw(schedule, c), c.rules)
  else:
    inner = at_rate(lambda rate: MAKERS[name](rate, c), schedule)
  optimizer = optax.chain(clip, inner)
  if c.moments_dtype == 'int8':
    return eight_bit.stored_in_8_bits(optimizer)
  return stochastic_rounding.stored_as(
    optimizer, c.moments_dtype, eight_bit.MOMENTS
  )


def at_rate(
  make: Callable[[Rate], optax.GradientTransformation],
  schedule: optax.Schedule,
) -> optax.GradientTransformation:
  """Makes a transformation whose rate is that of a schedule.

  Its count is of the type by which `skipping` knows those of schedules.

  Args:
    make: rate -> transformation for an update at it; its state does not depend
      on the rate.
    schedule: count -> rate.
  """

  def init(params):
    count = optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
    return count, make(jnp.float32(0.0)).init(params)

  def update(updates, state, params=None):
    (count,), inner = state
    rate = jnp.asarray(schedule(count), jnp.float32)
    updates, inner = make(rate).update(updates, inner, params)
    count = optax.safe_increment(count)
    return updates, (optax.ScaleByScheduleState(count), inner)

  return optax.GradientTransformation(init, update)


def make_adamw(
  schedule: optax.Schedule | Rate, c: Settings
) -> optax.GradientTransformation:
  """Makes AdamW (Loshchilov & Hutter 2019)."""
  return optax.adamw(
    schedule,
    c.b1,
    c.b2,
    c.eps,
    weight_decay=c.weight_decay,
    mask=make_decay_mask,
  )


def make_adafactor(rate: Rate, c: Settings) -> optax.GradientTransformation:
  """Makes Adafactor (Shazeer & Stern 2018), without momentum.

  The rate is that of the schedule, as with relative_step=False elsewhere, and
  weight decay is AdamW's.
  """
  scale = optax.identity()
  if c.scale_parameter:
    scale = optax.scale_by_param_block_rms(1e-3)
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.add_decayed_weights(c.weight_decay, make_decay_mask),
    scale,
    optax.scale_by_learning_rate(rate),
  )


def make_lion(rate: Rate, c: Settings) -> optax.GradientTransformation:
  """Makes Lion (Chen et al. 2023)."""
  return optax.lion(
    rate, c.b1, c.b2, weight_decay=c.weight_decay, mask=make_decay_mask
  )


def make_came(rate: Rate, c: Settings) -> optax.GradientTransformation:
  """Makes CAME, with the weight decay of AdamW."""
  return optax.chain(
    came.scale_by_came(c.b1, c.b2),
    optax.add_decayed_weights(c.weight_decay, make_decay_mask),
    optax.scale_by_learning_rate(rate),
  )


def make_muon(rate: Rate, c: Settings) -> optax.GradientTransformation:
  """Makes Muon for kernels, and AdamW for the rest."""
  kernels = optax.chain(
    muon.scale_by_muon(),
    optax.add_decayed_weights(c.weight_decay, make_decay_mask),
    optax.scale_by_learning_rate(rate),
  )
  return optax.partition(
    {'muon': kernels, 'adam': make_adamw(rate, c)}, muon.labels
  )


def make_prodigy(rate: Rate, c: Settings) -> optax.GradientTransformation:
  """Makes Prodigy."""
  return estimated_rates.prodigy(
    rate,
    **c.adam,
    d0=c.d0,
    d_coef=c.d_coef,
    safeguard_warmup=c.safeguard_warmup,
  )


def make_dadapt_adam(rate: Rate, c: Settings) -> optax.GradientTransformation:
  """Makes AdamW by D-Adaptation."""
  return estimated_rates.dadapt_adam(rate, **c.adam, d0=c.d0)


def scaled(
  make: Callable[[Rate, Settings], optax.GradientTransformation],
) -> Callable[[Rate, Settings], optax.GradientTransformation]:
  """Makes a maker whose updates are multiplied by the factors of rates."""
  return lambda rate, c: learning_rates.scaled(make(rate, c), c.rules)


def make_schedule_free(rate: Rate, c: Settings) -> optax.GradientTransformation:
  """Makes schedule-free AdamW; factors belong to the steps of z."""
  return schedule_free.schedule_free_adamw(rate, **c.adam, rules=c.rules)


SCHEDULE_FREE = 'schedule_free_adamw'
# {name: (rate, Settings) -> transformation for an update at the rate}
MAKERS = {
  'adafactor': scaled(make_adafactor),
  'came': scaled(make_came),
  'dadapt_adam': scaled(make_dadapt_adam),
  'lion': scaled(make_lion),
  'muon': scaled(make_muon),
  'prodigy': scaled(make_prodigy),
  SCHEDULE_FREE: make_schedule_free,
}
NAMES = ('adamw', *MAKERS)
# Those that treat all numbers of an array alike, see eight_bit.
ELEMENTWISE = ('adamw', 'dadapt_adam', 'lion', 'prodigy', SCHEDULE_FREE)
# Those whose learning_rate is a share of an estimate of their own.
ESTIMATING = 'prodigy', 'dadapt_adam'
