"""Tests that a cache is compared with its images, and with a run's nets."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import pytest

from sdxl_jax.checkpoints import params_digest
from sdxl_jax.data.sources import cache_layout
from sdxl_jax.text import clip_vocabulary, tokenizer
from sdxl_jax.training import cache_check, cache_encoder, run_setup
from tests.support import caches, datasets, tiny_config

PARAMS = {'text_encoder': {'kernel': jnp.ones((2, 2))}}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  return caches.make_first(tmp_path, monkeypatch)


def set_up(folder, workdir, accept_changes=False, **fields):
  """Opens a cache as training does; returns the lines reported."""
  config = caches.config_of('nowhere')
  config.data.source = 'precomputed'
  config.data.precomputed.update(path=str(folder), dtype='float16')
  config.update_from_flattened_dict(fields)
  lines = []
  workdir.mkdir(exist_ok=True)
  run_setup.make_source(config, workdir, lines.append, accept_changes)
  return lines


def test_a_stale_cache_is_refused(cache, tmp_path):
  folder, images, make = cache
  assert len(set_up(folder, tmp_path / 'run')) == 1
  caches.edit_all(images)
  with pytest.raises(ValueError, match='out of date') as error:
    set_up(folder, tmp_path / 'run')
  message = str(error.value)
  assert '20 kept, 2 changed, 2 removed, 3 added' in message
  assert f'changed: {images}/0000.png' in message
  assert 'sdxl_jax.precompute' in message and '--accept_changes' in message
  lines = set_up(folder, tmp_path / 'run', accept_changes=True)
  assert 'which is accepted: 20 kept' in lines[-1]
  make(folder)
  assert len(set_up(folder, tmp_path / 'run')) == 1


def test_the_order_of_records_is_no_change(tmp_path, monkeypatch):
  examples = [datasets.example(i, caches.SIZES[i]) for i in range(7)]
  images = tmp_path / 'images'
  datasets.write_folder(images, examples)
  caches.make(monkeypatch, caches.config_of(images), tmp_path / 'cache')
  datasets.write_folder(images, examples[::-1])
  assert len(set_up(tmp_path / 'cache', tmp_path / 'run')) == 1


def test_images_that_are_gone_are_not_compared(cache, tmp_path):
  folder, images, _ = cache
  shutil.rmtree(images)
  lines = set_up(folder, tmp_path / 'run')
  assert f'{folder} was not compared with its images: ' in lines[-1]
  assert str(images) in lines[-1] and '\n' not in lines[-1]


def test_images_by_a_relative_path(tmp_path, monkeypatch):
  """Are found from any working directory."""
  caches.write(tmp_path / 'images', 0)
  monkeypatch.chdir(tmp_path)
  caches.make(monkeypatch, caches.config_of('images'), tmp_path / 'cache')
  monkeypatch.chdir('/')
  assert len(set_up(tmp_path / 'cache', tmp_path / 'run')) == 1
  caches.write(tmp_path / 'images', 0, 'another caption')
  with pytest.raises(ValueError, match='0 kept, 1 changed'):
    set_up(tmp_path / 'cache', tmp_path / 'run')


def test_images_of_a_mixture(tmp_path, monkeypatch):
  config, parts = caches.config_of(tmp_path), {}
  for name in ('first', 'second'):
    caches.write(tmp_path / name, 0, name)
    parts[name] = dict(source='folder', path=name, share=1)
  with config.unlocked():
    config.data.source, config.data.mixture = 'mixture', parts
  monkeypatch.chdir(tmp_path)
  caches.make(monkeypatch, config, tmp_path / 'cache')
  monkeypatch.chdir('/')
  assert len(set_up(tmp_path / 'cache', tmp_path / 'run')) == 1
  caches.write(tmp_path / 'second', 0, 'another caption')
  with pytest.raises(ValueError, match='1 kept, 1 changed'):
    set_up(tmp_path / 'cache', tmp_path / 'run')


def test_images_behind_a_url_are_not_read(cache, tmp_path):
  folder, *_ = cache
  layout = cache_layout.Layout.load(folder)
  origin = json.loads(json.dumps(layout.origin))
  origin['data']['source'] = 'webdataset'
  origin['data']['webdataset'] = {'shards': 'gs://bucket/{00..99}.tar'}
  dataclasses.replace(layout, origin=origin).save(folder)
  assert 'behind a URL' in set_up(folder, tmp_path / 'run')[-1]


@pytest.mark.parametrize(
  'field, value, row',
  [
    ('vae.scaling_factor', 0.5, 'vae.scaling_factor: 1.0 > 0.5'),
    ('vae.patch', 8, 'vae.patch: 4 > 8'),
    ('text_encoder.hidden_size', 16, 'text_encoder.hidden_size: 8 > 16'),
  ],
)
def test_other_nets_are_refused(cache, tmp_path, field, value, row):
  folder, *_ = cache
  with pytest.raises(ValueError, match='computed with other nets') as error:
    set_up(folder, tmp_path / 'run', **{field: value})
  assert row in str(error.value)
  # The types of numbers may be others in training.
  set_up(folder, tmp_path / 'run', **{'text_encoder.dtype': 'bfloat16'})


# The parameters of the nets.


@pytest.fixture
def config(tmp_path):
  """A config that trains on a cache of PARAMS."""
  config = tiny_config.get_config()
  config.data.precomputed.path = str(tmp_path)
  config.init_from = 'weights'
  nets = {name: params_digest.digest(p) for name, p in PARAMS.items()}
  cache_layout.Layout(
    buckets=((16, 16),),
    crops=1,
    flips=1,
    dtype='bfloat16',
    downscale=4,
    moments=96,
    context=(77, 16),
    pooled=8,
    facts={'nets': nets, 'text_encoder': {'param_dtype': 'float32'}},
    records='digest',
    origin={'init_from': 'older'},
  ).save(tmp_path)
  return config


def test_the_same_nets(config):
  cache_check.check_nets(config, PARAMS)
  # Those that are not loaded cannot be compared, nor those of another type.
  cache_check.check_nets(config, {'unet': PARAMS})
  config.text_encoder.param_dtype = 'bfloat16'
  cache_check.check_nets(config, {'text_encoder': {}})


def test_other_nets(config, tmp_path):
  other = {'text_encoder': {'kernel': jnp.zeros((2, 2))}}
  with pytest.raises(
    ValueError, match=f'{tmp_path} .* another text_encoder .*weights .*older'
  ):
    cache_check.check_nets(config, other)


def test_a_cache_of_an_earlier_version(config, tmp_path):
  layout = cache_layout.Layout.load(tmp_path)
  dataclasses.replace(layout, facts={}, records='', origin={}).save(tmp_path)
  cache_check.check_nets(config, {'text_encoder': {}})


def test_a_vocabulary_from_any_file(tmp_path):
  """A folder's tokenizer is the vendored one if their tokens are the same."""
  for name in tokenizer.PADS:
    clip_vocabulary.save(tmp_path / name, name)
  digests = [
    cache_encoder.vocabulary_digest(tokenizer.load(folder))
    for folder in (None, tmp_path)
  ]
  assert digests[0] == digests[1]
  (tmp_path / 'tokenizer_2' / 'vocab.json').write_text('{"a": 0, "b": 1}')
  (tmp_path / 'tokenizer_2' / 'merges.txt').write_text('#version: 0.2\n')
  assert cache_encoder.vocabulary_digest(tokenizer.load(tmp_path)) != digests[0]
