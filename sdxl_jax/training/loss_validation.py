"""Checks what the fields of config.loss require of each other."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import config_dict

from sdxl_jax.diffusion import loss_kinds
from sdxl_jax.training import loss_fields

TIMESTEPS = 1000  # of the noise schedule
MASKED = ('folder', 'webdataset', 'parquet', 'tfds')  # sources with masks


def one_of(field: str, *values: str) -> tuple[str, Callable[[Any], bool]]:
  """Returns a row of NEEDS: the field must have one of some values."""
  text = f'{field} {" or ".join(map(repr, values))}'
  return text, lambda c: c[field] in values


HUBER = one_of('loss_type', *loss_kinds.WITH_C)
LOGIT_NORMAL = one_of('timestep_sampling', 'logit_normal')
BIASED = one_of('timestep_bias_strategy', 'earlier', 'later')
# Fields that have an effect only with another: {field: (what it needs, whether
# a config.loss has that)}.
NEEDS = {
  'huber_c': HUBER,
  'huber_scale': (
    f"{HUBER[0]}, and another huber_schedule than 'snr'",
    lambda c: HUBER[1](c) and c.huber_schedule != 'snr',
  ),
  'huber_schedule': HUBER,
  'p2_k': ('a p2_gamma above 0', lambda c: c.p2_gamma),
  'logit_mean': LOGIT_NORMAL,
  'logit_std': LOGIT_NORMAL,
  'sigmoid_scale': one_of('timestep_sampling', 'sigmoid'),
  'timestep_weights': one_of('timestep_sampling', 'weights'),
  'timestep_bias_strategy': one_of('timestep_sampling', 'uniform'),
  'timestep_bias_multiplier': BIASED,
  'timestep_bias_portion': BIASED,
  'multires_noise_discount': (
    'multires_noise_iterations above 0',
    lambda c: c.multires_noise_iterations,
  ),
}


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for a loss, or timesteps, that cannot be."""
  c = config.loss
  low, high = c.timestep_range
  if not 0 <= low < high <= TIMESTEPS:
    raise ValueError(
      f'config.loss.timestep_range is {(low, high)}; it must be (first, last + '
      f'1) with 0 <= first <= last < {TIMESTEPS}'
    )
  check_timesteps(config)
  check_weighting(config)
  if c.masked_loss and config.data.source == 'scenes':
    raise ValueError(
      "config.loss.masked_loss is True, but config.data.source is 'scenes', "
      'which have no masks: set masked_loss to False, or name another source'
    )
  # As sd-scripts, whose authors found both at once to be too much.
  if c.offset_noise and c.multires_noise_iterations:
    raise ValueError(
      f'config.loss.offset_noise is {c.offset_noise} and '
      f'multires_noise_iterations {c.multires_noise_iterations}; both add '
      'noise of large structures: set one of them to 0'
    )
  if c.adaptive_noise_scale and not c.offset_noise:
    raise ValueError(
      f'config.loss.adaptive_noise_scale is {c.adaptive_noise_scale}, which '
      'changes offset_noise, and that is 0: set offset_noise, such as 0.05, or '
      'adaptive_noise_scale to 0'
    )
  # c falls from 1 to huber_c, by a power of it.
  is_exponential = c.huber_schedule == 'exponential'
  if c.loss_type in loss_kinds.WITH_C and is_exponential and c.huber_c > 1:
    raise ValueError(
      f'config.loss.huber_c is {c.huber_c}; with huber_schedule '
      "'exponential' it is what 1 falls to: take 1 or less"
    )


def check_timesteps(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for weights of timesteps that give no distribution."""
  c = config.loss
  if c.timestep_sampling != 'weights':
    return
  weights, count = tuple(c.timestep_weights), c.timestep_range[1]
  count -= c.timestep_range[0]
  if not 0 < len(weights) <= count or not sum(weights) > 0:
    raise ValueError(
      f'config.loss.timestep_weights is {weights}; timestep_sampling '
      f"'weights' needs 1 to {count} numbers, one at least above 0, each of an "
      'equal part of timestep_range'
    )


def check_weighting(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for weights that exclude each other or have no sense."""
  c = config.loss
  chosen = loss_fields.make_weighting(config).chosen
  if len(chosen) > 1:
    raise ValueError(
      f'config.loss has {" and ".join(chosen)}, each of which is a weight for '
      'all timesteps: turn all but one off'
    )
  predicted = config.schedule.prediction
  if c.scale_v_pred_loss_like_noise_pred and predicted != 'v':
    raise ValueError(
      'config.loss.scale_v_pred_loss_like_noise_pred is True, but '
      f"config.schedule.prediction is {predicted!r}: it is for 'v' alone; set "
      'it to False'
    )


def unused(config: config_dict.ConfigDict) -> Iterator[str]:
  """Yields a warning for each field that has no effect with the others."""
  for name, value in loss_fields.changed(config).items():
    if name in NEEDS:
      need, is_met = NEEDS[name]
      if not is_met(config.loss):
        yield (
          f'config.loss.{name} is {value!r}, which has an effect with {need} '
          'only'
        )


def unused_masks(config: config_dict.ConfigDict) -> Iterator[str]:
  """Yields a warning for masks that are named, but not read."""
  if config.loss.masked_loss:
    return
  for kind in MASKED:
    if value := config.data[kind].mask:
      yield (
        f'config.data.{kind}.mask is {value!r}, but config.loss.masked_loss is '
        'False: no masks will be read'
      )


def unseen(config: config_dict.ConfigDict) -> Iterator[str]:
  """Yields a warning if the timestep that sampling begins with has weight 0."""
  c, loss = config.schedule, config.loss
  chosen = loss_fields.make_weighting(config).chosen
  # Only the weights of the error in eps stay where there is no signal, and one
  # of the error in v.
  stays = c.prediction == 'v' and chosen == ['debiased_estimation_loss']
  ends_in_noise = c.zero_terminal_snr or c.prediction == 'flow'
  has_no_signal = ends_in_noise and loss.timestep_range[1] == TIMESTEPS
  if not chosen or stays or c.prediction == 'eps' or not has_no_signal:
    return
  name = chosen[0]
  off = loss_fields.DEFAULTS[name]
  cause = 'zero_terminal_snr'
  if c.prediction == 'flow':
    cause = "prediction = 'flow'"
  yield (
    f'config.loss.{name} is {loss[name]}, and with '
    f'config.schedule.{cause} the last timestep has no signal, and '
    'so weight 0: sampling begins at a timestep that is not trained; '
    f'{off:g} weighs all timesteps alike'
  )
