"""Settings that are hardly meant: each gives one line, usual ones give none."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, lora, refiner, stage0, stage1, stage2, stage3, tiny
from sdxl_jax.training import config_warnings, optimizer_warnings
from tests.support import autoencoder_config, tiny_config


def get_config():
  """A tiny config of usual length, which nothing is said about."""
  config = tiny_config.get_config().unlock()
  config.total_steps = 2000
  return config


def only(lines):
  assert len(lines) == 1, lines
  assert '\n' not in lines[0]
  return lines[0]


@pytest.mark.parametrize(
  'module', [default, lora, refiner, stage0, stage1, stage2, stage3, tiny]
)
def test_the_configs_are_meant(module):
  assert config_warnings.of_config(module.get_config()) == []


@pytest.mark.parametrize('stage', tiny.STAGES)
def test_the_tiny_stages_are_meant(stage):
  assert config_warnings.of_config(tiny.get_config(stage)) == []


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'optimizer.learning_rate': 0.0}, 'learning_rate is 0: nothing will be'),
    ({'optimizer.learning_rate': 1.0}, 'rate is 1.0: .*1e-4 is usual'),
    ({'optimizer.learning_rate': 0.9, 'optimizer.name': 'lion'},
     'rate is 0.9: lion moves each'),
    ({'optimizer.name': 'prodigy'}, 'rate is 0.002: prodigy .*1.0 is usual'),
    ({'optimizer.name': 'schedule_free_adamw'},
     "schedule is 'cosine', but .* averages in place of a decay"),
    ({'optimizer.weight_decay': 100.0}, 'takes 20% of each kernel away'),
    ({'optimizer.warmup_steps': 20_000, 'optimizer.cosine': False},
     'steps is 20,000, .*has 2,000 steps: .* ends at 0.0002 .* of 0.002'),
    ({'optimizer.ema_decay': 0.9999},
     'ema_decay is 0.9999, .*10,000 steps, .*has 2,000: .*ninth .*0.99 fits'),
    ({'optimizer.ema_decay': 1.0}, 'ema_decay is 1.0, an average over inf'),
    ({'log_every': 3000}, 'log_every is 3,000, .* one line of metrics'),
    ({'checkpoint.every': 3000}, 'only the last step will be saved'),
    ({'checkpoint.keep_every': 3000}, 'no checkpoint will be kept beside'),
    ({'validation.every': 3000, 'validation.share': 0.1},
     'before the first and after the last step only'),
    ({'validation.every': 0, 'validation.share': 0.1}, 'validation alone'),
    ({'samples.every': 3000}, 'samples after the last step only'),
    ({'optimizer.ema_snapshots': 3000, 'optimizer.ema_widths': (0.1,)},
     'only the last averages will be copied'),
    ({'loss.min_snr_gamma': 5.0}, 'min_snr_gamma is 5.0, .* is not trained'),
    ({'refiner': True}, r'range is \(0, 1000\), but .*refiner is True'),
    ({'refiner': True, 'loss.timestep_range': (0, 200), 'samples.every': 9},
     'samples.every is 9, .*cannot begin with pure noise'),
    ({'caption_dropout': 1.0}, 'caption_dropout is 1: no caption'),
    ({'data.flip_probability': 1.0}, 'every image will be mirrored'),
    ({'data.folder.path': 'IMAGES'},
     "folder.path is 'IMAGES', but config.data.source is 'scenes'"),
    ({'data.num_threads': 9, 'data.prefetch': 8}, 'num_threads is 9, .* is 8:'),
    ({'data.captions.keep_tokens': 2}, 'keep_tokens is 2, but neither shuffle'),
    ({'data.parquet.files': '*.parquet'}, 'parquet.files is .* not be read'),
  ],
)  # fmt: skip
def test_one_line_each(changes, words):
  config = get_config()
  assert config_warnings.of_config(config) == []
  config.update_from_flattened_dict(changes)
  assert_matches(words, only(config_warnings.of_config(config)))


def assert_matches(words, line):
  assert re.search(words, line), line


def test_a_mixture_that_is_not_read():
  config = get_config()
  config.data.mixture = {'photos': {'source': 'folder', 'share': 1}}
  line = only(config_warnings.of_config(config))
  assert "mixture has ['photos'], but config.data.source is 'scenes'" in line


def test_an_autoencoder_without_its_own_loss():
  config = default.get_config()
  config.trained = ('unet', 'vae')
  line = only(config_warnings.of_config(config))
  assert "config.trained has 'vae'" in line


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'autoencoder.adversary_start': 2000}, 'discriminator will not take part'),
    ({'loss.offset_noise': 0.05}, 'offset_noise is 0.05, which .* not use'),
    ({'loss.min_snr_gamma': 5.0}, 'min_snr_gamma is 5.0, which .* not use'),
  ],
)
def test_autoencoders(changes, words):
  config = autoencoder_config.get_config().unlock()
  config.total_steps = 2000
  assert config_warnings.of_config(config) == []
  config.update_from_flattened_dict(changes)
  assert_matches(words, only(config_warnings.of_config(config)))


def test_other_settings_of_the_same_fields():
  """What is near the settings above, but usual."""
  config = get_config()
  config.optimizer.update(ema_decay=1.0, ema_widths=(0.1,))  # not in use
  config.optimizer.update(warmup_steps=1999)
  config.samples.every = config.checkpoint.every = 2000
  config.loss.min_snr_gamma = 5.0
  config.schedule.zero_terminal_snr = False
  assert config_warnings.of_config(config) == []


TABLE = ((16, 16), (16, 24), (24, 16))


@pytest.mark.parametrize(
  'counts, batch, words',
  [
    ((9, 9, 9), 4, None),
    ((9, 0, 9), 4, '1 of 3 buckets have no images: 16x24;'),
    ((0, 0, 9), 4, '2 of 3 buckets have no images: 16x16, 16x24;'),
    ((9, 3, 9), 4, '1 of 3 buckets have fewer images than a batch of 4'),
    ((1, 1, 1), 4, 'global_batch_size is 4, but there are 3 images'),
    ((2, 1, 1), 4, '3 of 3 buckets have fewer images than a batch of 4'),
  ],
)
def test_records_and_buckets(counts, batch, words):
  config = get_config()
  config.global_batch_size = batch
  lines = config_warnings.of_data(config, TABLE, np.array(counts))
  if words is None:
    assert lines == []
  else:
    assert words in only(lines)


def test_a_batch_of_several_buckets():
  """Each bucket of a step takes its part of the batch only."""
  config = get_config()
  config.update(global_batch_size=8, buckets_per_step=2)
  assert config_warnings.of_data(config, TABLE, np.array([4, 4, 4])) == []
  table = [(16, 16 + 8 * i) for i in range(9)]
  lines = config_warnings.of_data(config, table, np.eye(9, dtype=int)[0] * 99)
  assert '8 of 9 buckets' in only(lines) and '16x56, ...;' in only(lines)


def params(dtype, shape=(100, 100)):
  return {'unet': {'kernel': jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))}}


@pytest.mark.parametrize(
  'dtype, changes, words',
  [
    ('float32', {}, None),
    ('float32', {'learning_rate': 1e-6}, None),
    ('float32', {'learning_rate': 1e-10}, 'steps of 1e-10, but float32 param'),
    ('float32', {'ema_decay': 0.99999}, None),
    ('float32', {'clip_norm': 0.0}, None),
    ('float32', {'clip_norm': float('inf')}, None),
    ('float32', {'clip_norm': 0.01}, None),
    ('float32', {'clip_norm': 1e-8}, 'clip_norm is 1e-08, 1e-10 for each of'),
    ('bfloat16', {'learning_rate': 1e-3}, None),
    ('bfloat16', {'learning_rate': 1e-5}, "or set param_dtype to 'float32'"),
    ('bfloat16', {'ema_decay': 0.9999}, 'their EMA will stop to follow them'),
    ('bfloat16', {'ema_decay': 0.9999, 'ema_widths': (0.1,)}, None),
  ],
)
def test_steps_that_parameters_cannot_hold(dtype, changes, words):
  config = get_config()
  config.optimizer.update(changes)
  lines = optimizer_warnings.of_params(config, params(dtype))
  if words is None:
    assert lines == []
  else:
    assert words in only(lines)


def test_one_line_for_all_nets():
  config = get_config()
  config.optimizer.learning_rate = 1e-10
  two = params('float32') | {'lora': params('float32')['unet']}
  line = only(optimizer_warnings.of_params(config, two))
  assert 'float32 parameters of lora, unet that' in line


def test_the_limit_is_that_of_the_arithmetic():
  """A step below the limit leaves a typical weight as it is."""
  weight = jnp.asarray(optimizer_warnings.TYPICAL_WEIGHT, jnp.bfloat16)
  config = get_config()
  config.optimizer.learning_rate = 2e-5
  assert optimizer_warnings.of_params(config, params('bfloat16'))
  assert weight + jnp.bfloat16(2e-5) == weight
  config.optimizer.learning_rate = 1e-4
  assert not optimizer_warnings.of_params(config, params('bfloat16'))
  assert weight + jnp.bfloat16(1e-4) != weight
