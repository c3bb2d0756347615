"""Fields of config.distillation, and those that do not go with them."""

import pytest

from configs import lcm_lora, tiny
from sdxl_jax.training import (
  config_diff,
  config_validation,
  distillation_fields,
)


def test_the_defaults_are_those_of_a_config():
  fields = tiny.get_config().distillation.to_dict()
  assert fields == distillation_fields.DEFAULTS


@pytest.mark.parametrize(
  'config', [lcm_lora.get_config, lambda: tiny.get_config('lcm')]
)
def test_configs_are_valid(config):
  config_validation.check(config())


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('distillation.num_ddim_timesteps', 1001, 'is 1001; it must be at most'),
    ('distillation.w_min', 16.0, 'w_min is 16.0 and w_max 15.0'),
    ('distillation.method', 'dmd', "'dmd'"),
    ('trained', ('unet',), r"trained \('unet',\), but .*'lcm' trains \('lora'"),
    ('lora.attention.layers', 'text_.*', 'begin with unet/'),
    ('refiner', True, 'the UNet is a refiner'),
    ('unet.guidance_embed_dim', 256, 'has a guidance_embed_dim'),
    ('schedule.prediction', 'flow', "prediction is 'flow'"),
    ('loss.min_snr_gamma', 5.0, r'config.loss.min_snr_gamma is 5.0, but'),
    ('loss.timestep_range', (0, 500), 'config.loss.timestep_range is'),
    ('validation.every', 100, 'config.validation.every is 100'),
  ],
)
def test_what_does_not_go_together(field, value, message):
  config = lcm_lora.get_config()
  with config.unlocked():
    if field == 'trained':
      config.lora = {}
    config.update_from_flattened_dict({field: value})
    if field == 'unet.guidance_embed_dim':
      config.unet.guidance_embed_dim = value
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


def test_precomputed_data_have_no_empty_caption():
  config = lcm_lora.get_config()
  with config.unlocked():
    config.data.source = 'precomputed'
    config.data.precomputed.path = 'CACHE'
  config_validation.check(config)  # zeros are at hand
  with config.unlocked():
    config.uncond = 'empty'
  with pytest.raises(ValueError, match="config.uncond is 'empty'.*zeros"):
    config_validation.check(config)


def test_a_run_keeps_its_distillation():
  """Also a run of a tree that had no such fields, which is resumed."""
  plain, lines = tiny.get_config('lora').to_dict(), []
  old = {name: x for name, x in plain.items() if name != 'distillation'}
  config_diff.check_changes(old, plain, 'DIR', False, lines.append)
  assert not lines
  new = plain | {'distillation': plain['distillation'] | {'method': 'lcm'}}
  with pytest.raises(ValueError, match='distillation.method: none > lcm'):
    config_diff.check_changes(old, new, 'DIR', False, lines.append)
