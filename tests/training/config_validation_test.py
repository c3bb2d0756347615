"""Configs that must be refused, and what may change on resuming."""

import pytest

from configs import default
from sdxl_jax.models import clip, from_config, unet, vae
from sdxl_jax.training import config_diff, config_validation
from tests.support import autoencoder_config, tiny_config


def test_default_config_is_sdxl():
  nets = from_config.make_model(default.get_config(), 'cpu')
  runtime = dict(dtype='float32', remat='none')
  nets = nets.replace(**runtime)
  assert nets.unet == unet.BASE
  assert nets.vae == vae.VAEConfig()
  assert nets.text.text_encoder_2 == clip.VIT_BIGG
  assert nets.text.text_encoder == clip.VIT_L


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('total_steps', 0, 'total_steps is 0; it must be at least 1'),
    ('caption_dropout', 1.5, 'caption_dropout is 1.5; it must be 0 to 1'),
    ('uncond', 'nothing', "uncond is 'nothing'; choose one of"),
    ('max_token_length', 100, r'is 100; choose one of \(75, 150, 225\)'),
    ('data.buckets', ((18, 16),), r'\(18, 16\).*multiples of 4'),
    ('optimizer.ema_decay', -1, 'ema_decay is -1'),
    ('optimizer.warmup_steps', 4, 'warmup_steps is 4.*total_steps, 4'),
    ('optimizer.b1', 1.0, 'b1 is 1.0; it must be at least 0 and below 1'),
    ('optimizer.b2', 1.0, 'b2 is 1.0; it must be at least 0 and below 1'),
    ('optimizer.eps', 0.0, 'eps is 0.0; it must be above 0'),
    ('checkpoint.every', 0, 'checkpoint.every is 0; it must be at least 1'),
    ('log_every', 0, 'log_every is 0; it must be at least 1'),
    ('samples.zoom', 0, 'zoom is 0; it must be at least 1'),
    ('autoencoder.adversary_features', 0, 'features is 0; .* at least 1'),
    ('trained', (), "trained is empty: name the nets to train.*'unet'"),
    ('loss.timestep_range', (0, 0), r'timestep_range is \(0, 0\); it must be'),
    ('loss.timestep_range', (900, 1001), r'\(900, 1001\); .* last < 1000'),
  ],
)
def test_out_of_range(field, value, message):
  config = tiny_config.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


@pytest.mark.parametrize(
  'field',
  [
    'caption_dropout',
    'data.flip_probability',
    'data.index_workers',
    'data.num_threads',
    'loss.min_snr_gamma',
    'loss.offset_noise',
    'optimizer.b1',
    'optimizer.b2',
    'optimizer.clip_norm',
    'optimizer.ema_decay',
    'optimizer.ema_snapshots',
    'optimizer.warmup_steps',
    'optimizer.weight_decay',
    'samples.every',
  ],
)
def test_zero_means_off(field):
  config = tiny_config.get_config()
  value = config_validation.get(config, field)
  config.update_from_flattened_dict({field: type(value)(0)})
  config_validation.check(config)


def test_samples_need_prompts():
  config = tiny_config.get_config()
  config.samples.update(every=2, prompts=())
  with pytest.raises(ValueError, match='samples.every is 2.*prompts is empty'):
    config_validation.check(config)
  config.samples.every = 0
  config_validation.check(config)


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('trained', ('vae',), r"trained is \('vae',\).*'discriminator', 'vae'"),
    ('vae.scaling_factor', None, 'measure_latents is 0.*new encoder'),
    ('max_token_length', 150, 'max_token_length is 150.*reads no captions'),
  ],
)
def test_autoencoders_that_cannot_be_trained(field, value, message):
  config = autoencoder_config.get_config().unlock()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


ATTENTION = dict(layers='unet/.*to_q', rank=4, alpha=4.0)


@pytest.mark.parametrize(
  'groups, changes, message',
  [
    ({}, {}, r"\('lora',\) and config.lora has \[\].*dict\(layers="),
    ({'a': ATTENTION}, {'trained': ('unet',)}, r"'unet',\) and .* has \['a'\]"),
    ({'a': ATTENTION | {'rank': 0}}, {}, 'config.lora.a.rank is 0; .*least 1'),
    ({'a': ATTENTION | {'alpha': 0.0}}, {}, 'config.lora.a.alpha is 0.0'),
    ({'a': ATTENTION | {'layers': '(to_q'}}, {}, r"'\(to_q', which is no reg"),
    ({'a': ATTENTION | {'layers': '.*'}}, {'data.source': 'precomputed'},
     'patterns of config.lora that begin with unet/'),
  ],
)  # fmt: skip
def test_factors_that_cannot_be_trained(groups, changes, message):
  config = tiny_config.get_config().unlock()
  config.update(trained=('lora',), lora=groups)
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


def test_factors_from_precomputed_text():
  config = tiny_config.get_config().unlock()
  config.update(trained=('lora',), lora={'a': ATTENTION})
  config.data.source = 'precomputed'
  config_validation.check(config)


def test_unknown_field():
  config = tiny_config.get_config()
  with pytest.raises((AttributeError, KeyError), match='learning_rat'):
    config.optimizer.learning_rat = 1


@pytest.mark.parametrize(
  'field, value, refused',
  [
    ('optimizer.b1', 0.5, False),
    ('total_steps', 9, False),
    ('mesh.processes', 2, False),
    ('accumulation_steps', 2, False),
    ('data.num_threads', 7, False),
    ('unet.remat', 'full', False),
    ('seed', 1, True),
    ('buckets_per_step', 2, True),
    ('data.flip_probability', 0.5, True),
    ('unet.num_heads', (1, 1), True),
    ('schedule.prediction', 'v', True),
  ],
)
def test_changed_fields(field, value, refused):
  old, new = tiny_config.get_config(), tiny_config.get_config()
  new.update_from_flattened_dict({field: value})
  lines = []

  def check(accepted):
    return config_diff.check_changes(
      old.to_dict(), new.to_dict(), 'DIR', accepted, lines.append
    )

  if refused:
    with pytest.raises(ValueError, match=rf'DIR holds .*\n  {field}: .* > '):
      check(False)
    assert not lines
  check(refused)
  assert f'{field}: ' in lines[0] and f'> {value}' in lines[0]


def test_nothing_changed():
  config, lines = tiny_config.get_config().to_dict(), []
  config_diff.check_changes(config, config, 'DIR', False, lines.append)
  assert not lines


def test_a_field_that_older_configs_lack():
  """Its present value is no change where it means what they did."""
  old, new = tiny_config.get_config().to_dict(), tiny_config.get_config()
  del old['data']['folder']['encoding']
  lines = []
  config_diff.check_changes(old, new.to_dict(), 'DIR', False, lines.append)
  assert not lines
  new.data.folder.encoding = 'cp932'
  with pytest.raises(ValueError, match='data.folder.encoding:  > cp932'):
    config_diff.check_changes(old, new.to_dict(), 'DIR', False, lines.append)
