"""Which weights a run starts from: their variant, and another autoencoder."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.checkpoints import loading, run_sources, source_configs
from sdxl_jax.models import from_config
from sdxl_jax.training import config_diff, config_validation, run_setup
from sdxl_jax.weights import checked_cast, read_options
from tests.support import conversions, published_config

FILE = 'diffusion_pytorch_model.safetensors'


@pytest.fixture
def config():
  return published_config.get_config()


def load(config, name):
  config_validation.check(config)
  config = source_configs.with_latent_scaling(
    config, run_sources.vae_source(config)
  )
  model = from_config.make_model(config)
  return config, loading.load_start(config, model, [name])[name]


def first(params):
  return np.asarray(jax.tree.leaves(params)[0])


def test_variants(config, tmp_path):
  """Both dtypes in one folder, so that the config has to choose."""
  folder = tmp_path / 'model'
  conversions.run(config.init_from, folder, 'diffusers', variant='fp16')
  for path in folder.rglob('*.fp16.safetensors'):
    arrays = safetensors.numpy.load_file(path)
    arrays = {name: -array for name, array in arrays.items()}
    other = path.name.replace('fp16', 'bf16')
    safetensors.numpy.save_file(arrays, path.with_name(other))
  config.init_from = str(folder)
  with pytest.raises(ValueError, match='bf16, fp16.*config.init_variant'):
    load(config, 'vae')
  config.init_variant = 'fp16'
  _, positive = load(config, 'vae')
  config.init_variant = 'bf16'
  _, negative = load(config, 'vae')
  assert np.array_equal(first(positive), -first(negative))
  # A flag comes before it.
  options = read_options.ReadOptions(variant='fp16')
  assert run_sources.reading(config, options).variant == 'fp16'


def test_another_autoencoder(config, tmp_path):
  _, plain = load(config, 'vae')
  folder = tmp_path / 'vae'
  shutil.copytree(f'{config.init_from}/vae', folder)
  arrays = safetensors.numpy.load_file(folder / FILE)
  doubled = {name: 2 * array for name, array in arrays.items()}
  safetensors.numpy.save_file(doubled, folder / FILE)
  saved = json.loads((folder / 'config.json').read_text())
  saved['scaling_factor'] = 0.5
  (folder / 'config.json').write_text(json.dumps(saved))
  config.init_vae = str(folder)
  config.vae.scaling_factor = None
  filled, params = load(config, 'vae')
  assert np.array_equal(first(params), 2 * first(plain))
  assert filled.vae.scaling_factor == 0.5
  sources = run_sources.by_source(config, ['unet', 'vae'])
  assert sources == {config.init_from: ['unet'], str(folder): ['vae']}
  config.from_scratch = ('vae',)
  assert run_sources.vae_source(config) == ''


def test_numbers_that_cannot_be_right(config, tmp_path):
  folder = tmp_path / 'model'
  shutil.copytree(config.init_from, folder)
  path = folder / 'vae' / FILE
  arrays = safetensors.numpy.load_file(path)
  name = 'decoder.conv_in.weight'
  arrays[name] = np.full_like(arrays[name], np.nan)
  safetensors.numpy.save_file(arrays, path)
  config.init_from = str(folder)
  filled = source_configs.with_latent_scaling(config, config.init_from)
  with pytest.raises(checked_cast.NotFiniteError, match=f'vae/{FILE}: {name}'):
    run_setup.load_weights(filled, from_config.make_model(filled), None)


def test_older_runs_have_no_such_fields(config):
  fields = config.to_dict()
  older = {n: x for n, x in fields.items() if not n.startswith('init_v')}
  unet = {n: x for n, x in fields['unet'].items() if not n.startswith('up_')}
  assert unet != fields['unet']
  older['unet'] = unet
  assert config_diff.differences(older, fields) == {}
  with config.unlocked():
    del config.init_variant, config.init_vae
  assert run_sources.vae_source(config) == config.init_from
  assert run_sources.reading(config).variant is None
