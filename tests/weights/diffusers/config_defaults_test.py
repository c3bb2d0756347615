"""JSON files that lack fields have the defaults that diffusers gives them."""

import dataclasses
import inspect
import json
import shutil

import pytest

from sdxl_jax.models import vae
from sdxl_jax.weights import formats
from sdxl_jax.weights.diffusers import (
  config_defaults,
  config_json,
  scheduler_defaults,
)
from tests.support import golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
DROP = object()


@pytest.fixture
def folder(tmp_path):
  shutil.copytree(BASE, tmp_path / 'model')
  return tmp_path / 'model'


def edit(path, **fields):
  value = json.loads(path.read_text()) | fields
  value = {name: x for name, x in value.items() if x is not DROP}
  path.write_text(json.dumps(value))


@pytest.mark.slow
@pytest.mark.torch
def test_the_defaults_are_those_of_diffusers():
  diffusers = pytest.importorskip('diffusers')
  transformers = pytest.importorskip('transformers')
  for name, owner in (
    ('unet', diffusers.UNet2DConditionModel),
    ('vae', diffusers.AutoencoderKL),
  ):
    theirs = inspect.signature(owner.__init__).parameters
    for field, value in config_defaults.DEFAULTS[name].items():
      default = theirs[field].default
      default = list(default) if isinstance(default, tuple) else default
      assert value == default, field
  clip = transformers.CLIPTextConfig()
  for field, value in config_defaults.CLIP.items():
    assert value == getattr(clip, field), field
  for name, defaults in scheduler_defaults.DEFAULTS.items():
    owner = getattr(diffusers, name, None)
    theirs = inspect.signature(owner.__init__).parameters if owner else {}
    for field, value in defaults.items():
      if field in theirs:
        assert value == theirs[field].default, (name, field)


def test_fields_that_are_missing(folder):
  """Of every file, at once: the folder is read as before."""
  before = formats.open_model(folder)
  configs = {name: before.net(name).config() for name in before.loaders}
  for name in 'unet', 'vae':
    edit(folder / name / 'config.json', _class_name=DROP, act_fn=DROP)
  edit(
    folder / 'unet' / 'config.json',
    in_channels=DROP,
    out_channels=DROP,
    layers_per_block=DROP,
    sample_size=DROP,
  )
  edit(folder / 'vae' / 'config.json', in_channels=DROP, latent_channels=DROP)
  edit(folder / 'text_encoder' / 'config.json', architectures=None)
  edit(folder / 'text_encoder_2' / 'config.json', architectures=DROP)
  for name in 'text_encoder', 'text_encoder_2':
    edit(folder / name / 'config.json', vocab_size=DROP, model_type=DROP)
  edit(
    folder / 'model_index.json',
    _class_name=DROP,
    force_zeros_for_empty_prompt=DROP,
  )
  scheduler = folder / 'scheduler' / 'scheduler_config.json'
  edit(scheduler, prediction_type=DROP, num_train_timesteps=DROP)
  after = formats.open_model(folder)
  assert {n: after.net(n).config() for n in after.loaders} == configs
  assert after.index == before.index
  assert after.scheduler == before.scheduler
  assert after.sample_size == (128, 128)
  for name in 'unet', 'vae':
    assert list(formats.open_model(folder / name).loaders) == [name]


def test_defaults_that_are_not_those_of_sdxl():
  """As diffusers reads them: a scale of 0.18215, betas of DDPM."""
  path = BASE / 'vae' / 'config.json'
  published = json.loads(path.read_text())
  del published['scaling_factor']
  assert config_json.read('vae', published, 'a').scaling_factor == 0.18215
  scheduler = {'_class_name': 'DDIMScheduler'}
  complete = scheduler_defaults.complete(scheduler, 'a')
  assert (complete['beta_start'], complete['beta_end']) == (0.0001, 0.02)
  assert complete['timestep_spacing'] == 'leading'


def test_a_scheduler_without_a_class(folder):
  path = folder / 'scheduler' / 'scheduler_config.json'
  edit(path, _class_name=DROP, timestep_spacing=DROP)
  scheduler = formats.open_model(folder).scheduler
  assert scheduler['_class_name'] == 'EulerDiscreteScheduler'
  assert scheduler['timestep_spacing'] == 'linspace'
  edit(path, prediction_type='V-prediction')
  scheduler = formats.open_model(folder).scheduler
  assert scheduler['prediction_type'] == 'v_prediction'
  edit(path, prediction_type='flow_prediction')
  with pytest.raises(ValueError, match='scheduler_config.json is .flow_pred'):
    formats.open_model(folder)


@pytest.mark.parametrize(
  'value, size',
  [
    (DROP, (128, 128)),
    (None, (128, 128)),
    (24, (24, 24)),
    ([16, 24], (16, 24)),
  ],
)
def test_sizes(folder, value, size):
  edit(folder / 'unet' / 'config.json', sample_size=value)
  assert formats.open_model(folder).sample_size == size


@pytest.mark.parametrize('value', ['128', [], [1, 2, 3], 0, [8, -8], True, 1.5])
def test_sizes_that_cannot_be(folder, value):
  edit(folder / 'unet' / 'config.json', sample_size=value)
  with pytest.raises(ValueError, match='unet: sample_size of its config is'):
    _ = formats.open_model(folder).sample_size


def test_what_has_no_default(folder):
  path = folder / 'unet' / 'config.json'
  edit(path, projection_class_embeddings_input_dim=None)
  with pytest.raises(ValueError, match="unet lacks 'projection_class"):
    formats.open_model(folder).net('unet').config()
  edit(path, quantization_config={'quant_method': 'bitsandbytes'})
  with pytest.raises(ValueError, match='of bitsandbytes, and quantised'):
    formats.open_model(folder).net('unet')
  (folder / 'text_encoder_2').rename(folder / 'other')
  edit(folder / 'model_index.json', _class_name=DROP)
  with pytest.raises(ValueError, match='without a second text encoder, not an'):
    formats.open_model(folder)


def test_a_mark_before_the_text(folder):
  """As editors of Windows write it."""
  for path in folder.rglob('*.json'):
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
  assert formats.open_model(folder).net('unet').config()


def test_settings_of_training_change_nothing(folder):
  before = formats.open_model(folder)
  configs = {name: before.net(name).config() for name in before.loaders}
  edit(
    folder / 'unet' / 'config.json',
    dropout=0.1,
    upcast_attention=True,
    act_fn='swish',
  )
  edit(folder / 'text_encoder' / 'config.json', attention_dropout=0.1)
  edit(folder / 'vae' / 'config.json', scaling_factor=1)
  configs['vae'] = dataclasses.replace(configs['vae'], scaling_factor=1)
  after = formats.open_model(folder)
  for name, config in configs.items():
    assert after.net(name).config() == config


def test_the_config_of_a_whole_clip(folder):
  """Has those of two encoders within it."""
  before = formats.open_model(folder)
  for name in 'text_encoder', 'text_encoder_2':
    path = folder / name / 'config.json'
    text = json.loads(path.read_text())
    size = text.pop('projection_dim')
    del text['architectures']
    whole = {'model_type': 'clip', 'architectures': ['CLIPModel']}
    whole |= {'projection_dim': size, 'text_config': text}
    path.write_text(json.dumps(whole))
    expected = before.net(name).config()
    assert formats.open_model(folder).net(name).config() == expected


@pytest.mark.parametrize('value', ['0.13', None, True])
def test_a_scale_that_is_no_number(value):
  config = vae.VAEConfig()
  # The types of its fields are checked in tests only.
  object.__setattr__(config, 'scaling_factor', value)
  with pytest.raises(ValueError, match=f'x has .*scaling_factor is {value!r}'):
    config_json.check_types(config, 'x')


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'beta_start': 'x'}, "beta_start is 'x', not of type float"),
    ({'beta_end': None}, 'beta_end is None, not of type float'),
    ({'num_train_timesteps': '1000'}, "'1000', not of type int"),
    ({'solver_order': '2'}, "solver_order is '2', not of type int"),
    (
      {'_class_name': 'FlowMatchHeunDiscreteScheduler'},
      'flow matching, of which FlowMatchEuler.* in its place',
    ),
    (
      {
        '_class_name': 'FlowMatchEulerDiscreteScheduler',
        'use_dynamic_shifting': True,
      },
      'has use_dynamic_shifting = True, which is not implemented: set it to F',
    ),
  ],
)
def test_schedules_that_cannot_be_read(folder, fields, message):
  path = folder / 'scheduler' / 'scheduler_config.json'
  edit(path, **fields)
  with pytest.raises(ValueError, match=f'{path} .*{message}'):
    formats.open_model(folder)
