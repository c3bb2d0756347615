"""Configs that must be refused, and what may change on resuming."""

import copy
import json
import re

import pytest

from configs import default, refiner
from sdxl_jax.models import clip, from_config, unet, vae
from sdxl_jax.training import (
  config_diff,
  config_fields,
  config_validation,
  optimizer_fields,
)
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
    ('total_steps', 10**12, 'total_steps is 1.*0; it must be at most 2,147,'),
    ('caption_dropout', 1.5, 'caption_dropout is 1.5; it must be 0 to 1'),
    ('uncond', 'nothing', "uncond is 'nothing'; choose one of"),
    ('max_token_length', 100, r'is 100; choose one of \(75, 150, 225\)'),
    ('data.buckets', ((18, 16),), r'\(18, 16\).*multiples of 4'),
    ('data.fixed_original_size', (0, 64), r'size is \(0, 64\); .* or None'),
    ('data.fixed_crop_top_left', (0,), r'left is \(0,\); .* or None'),
    ('data.fixed_crop_top_left', (0, -1), r'left is \(0, -1\); .* or None'),
    ('optimizer.ema_decay', -1, 'ema_decay is -1'),
    ('optimizer.warmup_steps', 4, 'warmup_steps is 4.*total_steps, 4'),
    ('optimizer.b1', 1.0, 'b1 is 1.0; it must be at least 0 and below 1'),
    ('optimizer.b2', 1.0, 'b2 is 1.0; it must be at least 0 and below 1'),
    ('optimizer.eps', 0.0, 'eps is 0.0; it must be above 0'),
    ('checkpoint.every', 0, 'checkpoint.every is 0; it must be at least 1'),
    ('checkpoint.keep_every', -1, 'keep_every is -1; it must be at least 0'),
    ('optimizer.eps', float('inf'), 'eps is inf; it must be above 0 and at'),
    ('loss.min_snr_gamma', float('inf'), 'is inf; .* at least 0 and finite'),
    ('mesh.fsdp', 0, 'fsdp is 0; it must be at least -1, but not 0'),
    ('data.filters.max_aspect', 0.0, 'max_aspect is 0.0; it must be above 0'),
    ('data.max_upscale', 0.0, 'max_upscale is 0.0; it must be above 0'),
    ('data.background', 'no colour', "it must be a colour, such as 'white'"),
    ('samples.sampler', 'eular', "sampler is 'eular'; choose one of"),
    ('unet.dtype', 'bf16', "unet.dtype is 'bf16'; choose one of .'auto', '"),
    ('unet.param_dtype', 'float16', "moments and eps .* has 'unet': set it to"),
    ('optimizer.loss_scale', 1000.0, 'is 1000.0; it must be a power of two'),
    ('optimizer.loss_scale', 0.5, 'loss_scale is 0.5; it must be 1.0 to 42949'),
    ('optimizer.loss_scale_steps', 0, 'scale_steps is 0; it must be at least'),
    ('data.buckets', (), r'buckets is \(\); it must be a tuple such as'),
    ('data.buckets', (16, 16), r'a tuple such as \(\(1024, 1024\),\)'),
    ('data.buckets', ((16, -16),), 'a tuple such as'),
    ('data.filters.min_aspect', 2e3, 'max_aspect is 1000.0, under min_aspect'),
    ('trained', ('unett',), 'it must be a tuple such as'),
    ('trained', ('vae',), r"trained has \['vae'\], which a model of this"),
    ('from_scratch', ('discriminator',), 'from_scratch has .*this config lac'),
    ('unet.num_heads', (1,), 'number of levels'),
    ('unet.num_heads', (1, 3), 'has 16, which is no multiple of 3, its num_he'),
    ('unet.norm_num_groups', 3, 'no multiple of 3, its norm_num_groups'),
    ('unet.context_dim', 20, 'context_dim is 20; it must be 16, the hidden'),
    ('unet.vector_dim', 8, 'vector_dim is 8; it must be 32, 8 of pooled'),
    ('unet.in_channels', 4, 'in_channels is 4; it must be 48, channels of'),
    ('log_every', 0, 'log_every is 0; it must be at least 1'),
    ('samples.zoom', 0, 'zoom is 0; it must be at least 1'),
    ('autoencoder.adversary_features', 0, 'features is 0; .* at least 1'),
    ('trained', (), "trained is empty: name the nets to train.*'unet'"),
    ('loss.timestep_range', (0, 0), r'timestep_range is \(0, 0\); it must be'),
    ('loss.timestep_range', (900, 1001), r'\(900, 1001\); .* last < 1000'),
    ('validation.share', 0.6, 'share is 0.6; it must be 0 to 0.5'),
    ('validation.share', -0.1, 'share is -0.1; it must be 0 to 0.5'),
    ('validation.every', -1, 'every is -1; it must be at least 0'),
    ('validation.records', 0, 'records is 0; it must be at least 1'),
    ('validation.timesteps', 1001, 'is 1001, but .*timestep_range has 1000'),
  ],
)
def test_out_of_range(field, value, message):
  config = tiny_config.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


def test_an_autoencoder_in_float16():
  config = default.get_config()
  config_validation.check(config)
  config.vae.dtype = 'float16'
  with pytest.raises(ValueError, match='overflows to NaN: set it to .bfloat16'):
    config_validation.check(config)


# Fields of config.optimizer that runs have had from the beginning.
OLDER = {
  'b1',
  'b2',
  'clip_norm',
  'ema_decay',
  'ema_snapshots',
  'ema_widths',
  'eps',
  'learning_rate',
  'warmup_steps',
  'weight_decay',
}
# What 0 means in each field that holds a number: off, or nothing at all.
ZERO_IS_OFF = {
  'distillation.w_min',
  'distillation.w_max',
  'caption_dropout',
  'data.captions.caption_dropout_every_n_epochs',
  'data.captions.caption_tag_dropout_rate',
  'data.captions.keep_tokens',
  'data.flip_probability',
  'data.index_workers',
  'data.num_threads',
  'data.prefetch',
  'data.filters.min_side',
  'data.filters.min_aspect',
  'data.scenes.held_out',
  'data.scenes.jitter',
  'loss.adaptive_noise_scale',
  'loss.ip_noise_gamma',
  'loss.min_snr_gamma',
  'loss.multires_noise_iterations',
  'loss.offset_noise',
  'loss.p2_gamma',
  'loss.soft_min_snr_gamma',
  'schedule.shift_size',
  'autoencoder.adversary_start',
  'autoencoder.adversary_weight',
  'autoencoder.kl_weight',
  'autoencoder.measure_latents',
  'autoencoder.perceptual_weight',
  'checkpoint.keep_every',
  'optimizer.b1',
  'optimizer.b2',
  'optimizer.clip_norm',
  'optimizer.decay_steps',
  'optimizer.min_lr_ratio',
  'optimizer.ema_decay',
  'optimizer.ema_snapshots',
  'optimizer.learning_rate',
  'optimizer.warmup_steps',
  'optimizer.weight_decay',
  'validation.every',
  'samples.every',
  'samples.guidance_scale',
  'skip_non_finite',
}
ZERO_IS_A_NUMBER = {
  'seed',
  'loss.logit_mean',
  'autoencoder.adversary_layers',
  'unet.mid_transformer_depth',
}


@pytest.mark.parametrize(
  'heads, depths',
  [
    ((3, 2), {'up_transformer_depth': (1, 1)}),
    ((3, 2), {'up_transformer_depth': ((1, 1), 1)}),
    ((1, 3), {'transformer_depth': (1, 0)}),  # of the mid block
  ],
)
def test_heads_of_levels_with_attention(heads, depths):
  config = tiny_config.get_config()
  config.unet.layers_per_block = 1
  config.unet.num_heads = heads
  config.unet.update(depths)
  with pytest.raises(ValueError, match='no multiple of 3, its num_heads'):
    config_validation.check(config)
  # No other attention has these heads.
  off = {'up_transformer_depth': None, 'mid_transformer_depth': 0}
  config.unet.update(off)
  config_validation.check(config)


def test_a_section_in_place_of_a_value():
  config = tiny_config.get_config().unlock()
  with config.ignore_type():
    config.total_steps = {'first': 4}
  with pytest.raises(
    ValueError, match=r"steps is \{'first': 4\}; it must be a"
  ):
    config_validation.check(config)


def test_every_field_has_a_kind():
  """Whoever adds a field to configs/default.py adds a row to the table."""
  fields = dict(config_validation.leaves(default.get_config()))
  assert set(fields) <= set(config_fields.FIELDS)
  for field, value in fields.items():
    assert config_fields.FIELDS[field].remedy(value) is None, field


@pytest.mark.parametrize(
  'field',
  [
    field
    for field, value in config_validation.leaves(default.get_config())
    if isinstance(value, (int, float)) and not isinstance(value, bool)
  ],
)
def test_zero_is_off_or_refused(field):
  """No number has a 0 that is accepted and means something else."""
  config = tiny_config.get_config()
  value = config_validation.get(default.get_config(), field)
  if field.startswith(('vae.', 'text_')):  # shapes of nets
    assert config_fields.FIELDS[field].remedy(0)
    return
  config.update_from_flattened_dict({field: type(value)(0)})
  if field in ZERO_IS_OFF | ZERO_IS_A_NUMBER:
    config_validation.check(config)
  else:
    with pytest.raises(ValueError, match=rf'{field} is 0.*; (it must|choose)'):
      config_validation.check(config)


@pytest.mark.parametrize('value', [None, -1, float('nan'), '1', (1,)])
@pytest.mark.parametrize(
  'field',
  [
    'total_steps',
    'global_batch_size',
    'caption_dropout',
    'optimizer.learning_rate',
    'optimizer.warmup_steps',
    'optimizer.clip_norm',
    'optimizer.decay_steps',
    'optimizer.min_lr_ratio',
    'optimizer.ema_decay',
    'checkpoint.every',
    'samples.every',
    'loss.min_snr_gamma',
    'data.num_threads',
  ],
)
def test_values_that_are_no_such_number(field, value):
  """Other programs' words for 'off', and types that Python lets pass."""
  config = tiny_config.get_config().unlock()
  section, _, name = f'.{field}'.rpartition('.')
  place = config if section == '' else config[section[1:]]
  with place.ignore_type():
    place[name] = value
  with pytest.raises(ValueError, match=f'config.{field} is .*; it must be'):
    config_validation.check(config)


def test_types_of_a_section_that_was_replaced():
  """A new dict has no types to keep to; the table still has."""
  config = tiny_config.get_config().unlock()
  settings = config.optimizer.to_dict()
  config.optimizer = settings | {'clip_norm': 1, 'weight_decay': 0}
  config_validation.check(config)
  for name, value in ('cosine', 1), ('warmup_steps', True), ('b1', True):
    config.optimizer = settings | {name: value}
    with pytest.raises(ValueError, match=f'{name} is {value}; it must be'):
      config_validation.check(config)


@pytest.mark.parametrize(
  'section, name, message',
  [
    ('optimizer', 'learning_rat', 'was config.optimizer.learning_rate meant'),
    ('optimizer', 'total_steps', 'was config.total_steps meant'),
    ('', 'warmup_steps', 'was config.optimizer.warmup_steps meant'),
    ('data.folder', 'shards', 'was config.data.webdataset.shards meant'),
    ('checkpoint', 'qqqqqqqq', 'remove it; configs/default.py lists them'),
  ],
)
def test_unknown_fields_of_an_unlocked_config(section, name, message):
  config = tiny_config.get_config().unlock()
  place = config_validation.get(config, section) if section else config
  place[name] = 1
  with pytest.raises(ValueError, match=rf'config\.\S*{name} is no .*{message}'):
    config_validation.check(config)


def test_eps_cannot_reach_zero_terminal_snr():
  config = tiny_config.get_config()
  config.schedule.update(prediction='eps', zero_terminal_snr=True)
  with pytest.raises(ValueError, match="pure noise.*set prediction to 'v'"):
    config_validation.check(config)
  # A refiner does not see the last timestep.
  config.loss.timestep_range = (0, 200)
  config_validation.check(config)
  config.loss.timestep_range = (0, 1000)
  for changes in {'prediction': 'v'}, {'zero_terminal_snr': False}:
    other = tiny_config.get_config()
    other.schedule.update({'prediction': 'eps'} | changes)
    config_validation.check(other)


@pytest.mark.parametrize(
  'part, message',
  [
    ('photos', r"is 'photos'; it must be dict\(source='folder'"),
    ({'source': 'folder', 'path': 'x'}, r"has \['path', 'source'\]; a folder"),
    ({'source': 'folder', 'share': 1, 'pth': 'x'}, 'some of .*path'),
    ({'source': 'folder', 'share': 0}, 'share is 0; it must be above 0'),
    ({'source': 'folder', 'share': 1, 'path': 3}, 'path is 3; it must be text'),
    ({'source': 'mixture', 'share': 1}, 'cannot be part of a mixture'),
  ],
)
def test_parts_of_a_mixture(part, message):
  config = tiny_config.get_config().unlock()
  config.data.update(source='mixture', mixture={'a': part})
  with pytest.raises(ValueError, match=f'mixture.a.*{message}'):
    config_validation.check(config)


@pytest.mark.parametrize(
  'data, message',
  [
    ({'source': 'scenes'}, 'scenes.scored is False.*set it to True'),
    ({'source': 'parquet'}, "parquet.score is ''.*name that the data have"),
    ({'source': 'mixture', 'mixture': {'a': {'source': 'tfds', 'share': 1}}},
     "mixture.a.score is ''"),
  ],
)  # fmt: skip
def test_a_refiner_needs_scores(data, message):
  config = refiner.get_config().unlock()
  config.data.update(data)
  with pytest.raises(ValueError, match=message):
    config_validation.check(config)


def test_scores_for_a_refiner():
  config = refiner.get_config().unlock()
  for kind in 'folder', 'webdataset':
    config.data.source = kind
    config_validation.check(config)
  part = {'source': 'tfds', 'share': 1, 'score': 'quality'}
  config.data.update(source='mixture', mixture={'a': part})
  config_validation.check(config)


def test_samples_need_whole_latents():
  config = tiny_config.get_config()
  config.samples.update(every=2, size=(16, 18))
  with pytest.raises(ValueError, match=r'samples.size has \(16, 18\); heights'):
    config_validation.check(config)
  config.samples.every = 0
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
    ('trained', ('vae',), 'from_scratch has .*discriminator.*would stay rand'),
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
    ({'a': ATTENTION | {'rank': 4.0}}, {}, 'rank is 4.0; it must be a whole'),
    ({'a': ATTENTION | {'rnk': 4}}, {}, r"a has .*'rnk'\]; .*'rank'"),
    ({'a': {'layers': '.*'}}, {}, "a has .*it must have .*'rank'"),
    ({'a': ATTENTION | {'layers': '(to_q'}}, {}, r"'\(to_q', which is no reg"),
    ({'a': ATTENTION | {'algo': 'oft'}}, {}, "a.algo is 'oft'; choose one of"),
    ({'a': ATTENTION | {'dora_wd': 1}}, {}, 'dora_wd is 1; it must be True or'),
    ({'a': ATTENTION | {'factor': 8}}, {}, "factor=8 with algo 'lora'; only"),
    ({'a': ATTENTION | {'algo': 'lokr', 'factor': 0}}, {}, 'factor is 0; it'),
    ({'a': ATTENTION | {'algo': 'full', 'dora_wd': True}}, {},
     "dora_wd with algo 'full', whose difference has norms of its own"),
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


@pytest.mark.parametrize(
  'fields',
  [
    dict(algo='lora', dora_wd=True),
    dict(algo='lokr', factor=8, dora_wd=True),
    dict(algo='loha', factor=-1),
    dict(algo='full', dora_wd=False),
  ],
  ids=str,
)
def test_kinds_of_factors(fields):
  config = tiny_config.get_config().unlock()
  config.update(trained=('lora',), lora={'a': ATTENTION | fields})
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


def test_a_section_that_older_configs_lack():
  """Captions as they are: the run goes on, and another setting is grave."""
  old, new = tiny_config.get_config().to_dict(), tiny_config.get_config()
  del old['data']['captions']
  lines = []
  config_diff.check_changes(old, new.to_dict(), 'DIR', False, lines.append)
  assert not lines
  new.data.captions.shuffle_caption = True
  with pytest.raises(ValueError, match='captions.shuffle_caption: False > Tr'):
    config_diff.check_changes(old, new.to_dict(), 'DIR', False, lines.append)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'caption_separator': ''}, "caption_separator is ''"),
    ({'caption_dropout_every_n_epochs': 2}, "set config.uncond to 'empty'"),
  ],
)
def test_settings_of_captions_that_cannot_be(changes, words):
  config = tiny_config.get_config()
  config.uncond = 'zeros'
  config.data.captions.update(changes)
  with pytest.raises(ValueError, match=re.escape(words)):
    config_validation.check(config)
  if 'caption_separator' not in changes:
    config.uncond = 'empty'
    config_validation.check(config)


def test_kinds_of_factors_that_older_configs_lack():
  old = tiny_config.get_config().unlock()
  old.update(trained=('lora',), lora={'a': ATTENTION})
  new, lines = old.copy_and_resolve_references(), []
  new.lora.a.update(algo='lora', dora_wd=False, factor=-1)
  for a, b in (old, new), (new, old):
    config_diff.check_changes(
      a.to_dict(), b.to_dict(), 'DIR', False, lines.append
    )
  assert not lines
  new.lora.a.algo = 'loha'
  with pytest.raises(ValueError, match='lora.a.algo: lora > loha'):
    config_diff.check_changes(
      old.to_dict(), new.to_dict(), 'DIR', False, lines.append
    )


@pytest.mark.parametrize('place', ['folder.path', 'tfds.dataset'])
def test_data_that_moved(place):
  """Another place is no grave change where the data are compared as well."""
  old, new = tiny_config.get_config().to_dict(), tiny_config.get_config()
  new.update_from_flattened_dict({f'data.{place}': '/elsewhere'})
  lines = []
  with pytest.raises(ValueError, match=f'data.{place}:'):
    config_diff.check_changes(old, new.to_dict(), 'DIR', False, lines.append)
  config_diff.check_changes(
    old, new.to_dict(), 'DIR', False, lines.append, lambda: True
  )
  assert f'data.{place}:  > /elsewhere' in lines[0]


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'name': 'adam'}, r"name is 'adam'; choose one of \('adamw', "),
    ({'schedule': 'linear', 'cosine': True}, "cosine is True, an older word"),
    ({'schedule': 'linear', 'warmup_steps': 4},
     "steps is 4; schedule 'linear' needs fewer than .*total_steps, 4"),
    ({'schedule': 'warmup_stable_decay'},
     'decay_steps is 0; warmup_stable_decay needs 1 to 3, .* 1, is usual'),
    ({'name': 'adafactor', 'moments_dtype': 'int8'},
     "moments_dtype is 'int8', but 'adafactor' has no moments"),
    ({'name': 'muon', 'moments_dtype': 'int8'},
     "is 'int8', but 'muon' computes with whole arrays"),
    ({'name': 'schedule_free_adamw', 'b1': 0.0}, 'b1 is 0, but .* averages'),
    ({'name': 'schedule_free_adamw', 'ema_widths': (0.1,)},
     r'ema_widths is \(0.1,\), but .* an average of its own'),
  ],
)  # fmt: skip
def test_optimizers_that_cannot_be(changes, words):
  config = tiny_config.get_config()
  config.optimizer.update(changes)
  with pytest.raises(ValueError, match=words):
    config_validation.check(config)


def test_an_estimate_needs_float32():
  config = tiny_config.get_config()
  config.optimizer.name = 'prodigy'
  config_validation.check(config)
  config.text_encoder.param_dtype = 'bfloat16'
  with pytest.raises(ValueError, match="of 'prodigy' cannot grow in small st"):
    config_validation.check(config)


@pytest.mark.parametrize(
  'cosine, schedule, expected',
  [
    (None, 'linear', 'linear'),
    (True, 'constant', 'cosine'),
    (False, 'cosine', 'constant'),
  ],
)
def test_the_older_word_for_a_schedule(cosine, schedule, expected):
  c = tiny_config.get_config().optimizer
  c.update(cosine=cosine, schedule=schedule)
  assert optimizer_fields.schedule_of(c) == expected


def test_an_older_config_has_the_same_optimizer():
  """`cosine` became `schedule`; the new fields had their defaults."""
  new = json.loads(tiny_config.get_config().to_json())
  old = copy.deepcopy(new)
  for name in set(old['optimizer']) - OLDER:
    del old['optimizer'][name]
  old['optimizer']['cosine'] = True
  lines = []
  config_diff.check_changes(old, new, 'DIR', False, lines.append)
  assert lines == []
  old['optimizer']['cosine'] = False
  config_diff.check_changes(old, new, 'DIR', False, lines.append)
  (line,) = lines
  assert 'optimizer.schedule: constant > cosine' in line


def test_a_run_has_no_controlnets():
  config = tiny_config.get_config().unlock()
  config.samples.guess_mode = True
  with pytest.raises(ValueError, match='config.samples.guess_mode is no field'):
    config_validation.check(config)
