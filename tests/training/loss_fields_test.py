"""Fields of config.loss: what is refused, what is warned of, what they make."""

import json
import re

import pytest

from configs import default
from sdxl_jax.diffusion import losses
from sdxl_jax.training import (
  config_diff,
  config_validation,
  config_warnings,
  loss_fields,
  loss_validation,
)
from tests.support import tiny_config


def test_defaults_are_those_of_the_config():
  """And make the loss that there was before there were choices."""
  config = default.get_config()
  fields = config.loss.to_dict()
  assert fields.pop('timestep_range') == (0, 1000)
  assert fields == loss_fields.DEFAULTS
  settings = loss_fields.make_settings(config)
  assert settings.timesteps.timestep_range == (0, 1000)
  plain = losses.LossSettings(timesteps=settings.timesteps)
  assert settings == plain and plain.timesteps.is_uniform
  assert set(loss_validation.NEEDS) < set(loss_fields.DEFAULTS)


def test_configs_without_the_fields_are_the_same():
  """Those that older runs saved, which know two of the fields."""
  new = json.loads(tiny_config.get_config().to_json())
  known = 'offset_noise', 'min_snr_gamma', 'timestep_range'
  old = new | {'loss': {name: new['loss'][name] for name in known}}
  assert config_diff.differences(old, new) == {}
  new['loss']['loss_type'] = 'huber'
  changes = config_diff.differences(old, new)
  assert changes == {'loss.loss_type': 'l2 > huber'}


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'loss_type': 'l3'}, r"loss_type is 'l3'; choose one of .*'smooth_l1'"),
    ({'huber_c': 0.0}, 'huber_c is 0.0; it must be above 0'),
    (
      {'loss_type': 'huber', 'huber_schedule': 'exponential', 'huber_c': 2.0},
      "huber_c is 2.0; with huber_schedule 'exponential' .*: take 1 or less",
    ),
    (
      {'min_snr_gamma': 5.0, 'debiased_estimation_loss': True},
      'min_snr_gamma and debiased_estimation_loss, .*: turn all but one off',
    ),
    (
      {'scale_v_pred_loss_like_noise_pred': True},
      "noise_pred is True, but config.schedule.prediction is 'x0'.*to False",
    ),
    (
      {'offset_noise': 0.05, 'multires_noise_iterations': 6},
      'offset_noise is 0.05 and multires_noise_iterations 6; .* to 0',
    ),
    (
      {'adaptive_noise_scale': 0.01},
      'noise_scale is 0.01, which changes offset_noise, and that is 0: set off',
    ),
    (
      {'timestep_sampling': 'weights'},
      r"timestep_weights is \(\); timestep_sampling 'weights' needs 1 to 1000",
    ),
    (
      {'timestep_sampling': 'weights', 'timestep_weights': (0.0, 0.0)},
      r'timestep_weights is \(0.0, 0.0\); .* one at least above 0',
    ),
    (
      {
        'timestep_sampling': 'weights',
        'timestep_weights': (1.0, 2.0, 3.0),
        'timestep_range': (10, 12),
      },
      'needs 1 to 2 numbers',
    ),
    ({'timestep_weights': (-1.0,)}, 'it must be a tuple such as'),
    ({'masked_loss': True}, "source is 'scenes', which have no masks: set mas"),
  ],
)
def test_refused(changes, message):
  config = tiny_config.get_config()
  config.loss.update(changes)
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'huber_c': 0.5}, "huber_c is 0.5, which has an effect with loss_type 'h"),
    ({'logit_mean': 0.5}, "with timestep_sampling 'logit_normal' only"),
    ({'p2_k': 2.0}, 'p2_k is 2.0, which has an effect with a p2_gamma above 0'),
    ({'multires_noise_discount': 0.5}, 'with multires_noise_iterations above'),
    (
      {'timestep_bias_strategy': 'later', 'timestep_sampling': 'sigmoid'},
      "strategy is 'later', which has an effect with timestep_sampling 'unifo",
    ),
    ({'soft_min_snr_gamma': 4.0}, 'soft_min_snr_gamma is 4.0.* not trained; 0'),
  ],
)
def test_warned_of(changes, message):
  config = tiny_config.get_config()
  before = config_warnings.of_config(config)
  config.loss.update(changes)
  config_validation.check(config)
  (line,) = set(config_warnings.of_config(config)) - set(before)
  assert re.search(message, line), line


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'samples.sampler': 'lcm'}, 'config.samples: the sampler lcm is of nets'),
    ({'schedule.prediction': 'v'}, 'config.schedule: shift is 3.0 .* leave'),
    ({'schedule.zero_terminal_snr': True}, 'config.schedule: zero_terminal_sn'),
    ({'schedule.shift': 0.0}, 'shift is 0.0; it must be above 0'),
    ({'loss.scale_v_pred_loss_like_noise_pred': True}, "it is for 'v' alone"),
  ],
)
def test_flows(changes, message):
  config = tiny_config.get_config()
  config.schedule.update(prediction='flow', zero_terminal_snr=False, shift=3.0)
  config.samples.every = 2
  config_validation.check(config)
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


def test_masks_that_are_not_read():
  config = tiny_config.get_config()
  config.data.source = 'folder'
  config.data.folder.update(path='x', mask='.mask.png')
  before = config_warnings.of_config(config)
  (line,) = [line for line in before if 'mask' in line]
  assert "folder.mask is '.mask.png', but config.loss.masked_loss is F" in line
  config.loss.masked_loss = True
  assert set(before) - {line} == set(config_warnings.of_config(config))


def test_usual_settings_pass():
  """Each option with what it needs, without a warning."""
  for changes in (
    {'loss_type': 'smooth_l1', 'huber_c': 0.2},
    {'loss_type': 'huber', 'huber_schedule': 'constant', 'huber_scale': 2.0},
    {'timestep_sampling': 'logit_normal', 'logit_mean': -0.5},
    {'timestep_sampling': 'weights', 'timestep_weights': [1, 2.5]},
    {'timestep_bias_strategy': 'earlier', 'timestep_bias_multiplier': 2.0},
    {'multires_noise_iterations': 6, 'multires_noise_discount': 0.4},
    {'offset_noise': 0.05, 'adaptive_noise_scale': 0.005},
    {'ip_noise_gamma': 0.1, 'debiased_estimation_loss': True},
  ):
    config = tiny_config.get_config()
    config.schedule.update(prediction='v', zero_terminal_snr=False)
    before = config_warnings.of_config(config)
    config.loss.update(changes)
    config_validation.check(config)
    assert config_warnings.of_config(config) == before
    loss_fields.make_settings(config)
