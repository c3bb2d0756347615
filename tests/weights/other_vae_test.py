"""The autoencoder of a model, replaced by one from elsewhere."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.sampling import pipelines
from sdxl_jax.weights import formats, other_vae
from tests.support import conversions, golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
FILE = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  """A model whose autoencoder has other numbers and another scale."""
  folder = tmp_path_factory.mktemp('other') / 'model'
  shutil.copytree(BASE, folder)
  tensors = safetensors.numpy.load_file(folder / 'vae' / FILE)
  doubled = {name: 2 * array for name, array in tensors.items()}
  safetensors.numpy.save_file(doubled, folder / 'vae' / FILE)
  path = folder / 'vae' / 'config.json'
  config = json.loads(path.read_text()) | {'scaling_factor': 0.5}
  path.write_text(json.dumps(config))
  return folder


def same(one, two):
  return np.array_equal(one['decoder']['conv_in']['kernel'], two)


@pytest.mark.parametrize('path', ['', 'vae', f'vae/{FILE}'])
def test_sampling(other, path):
  """A folder of a model or of a net, or a file, which has no scale."""
  plain = pipelines.load(BASE)
  expected = 2 * plain.params['vae']['decoder']['conv_in']['kernel']
  pipeline = pipelines.load(BASE, vae=other / path)
  assert same(pipeline.params['vae'], expected)
  scale = plain.model.vae.scaling_factor if path.endswith(FILE) else 0.5
  assert pipeline.model.vae.scaling_factor == scale
  notes = '; '.join(pipeline.notes)
  assert f'vae: {other / path}' in notes
  assert ('scaling_factor of the latents is 0.5' in notes) == (scale == 0.5)


def test_a_model_without_one(other, tmp_path):
  folder = tmp_path / 'model'
  shutil.copytree(BASE, folder)
  shutil.rmtree(folder / 'vae')
  model = other_vae.replace(formats.open_model(folder), other)
  assert model.net('vae').config().scaling_factor == 0.5
  assert model.notes == (f'vae: {other}',)


def test_converting(other, tmp_path):
  target = tmp_path / 'a.safetensors'
  conversions.run(BASE, target, 'single_file', vae=other / 'vae')
  conversions.run(target, tmp_path / 'folder', 'diffusers')
  written = safetensors.numpy.load_file(tmp_path / 'folder' / 'vae' / FILE)
  expected = safetensors.numpy.load_file(other / 'vae' / FILE)
  conversions.check_same(written, expected)
  config = json.loads((tmp_path / 'folder/vae/config.json').read_text())
  assert config['scaling_factor'] == 0.5


def test_what_does_not_fit(other, tmp_path):
  with pytest.raises(FileNotFoundError, match='unet has unet, and no autoenc'):
    pipelines.load(BASE, vae=other / 'unet')
  with pytest.raises(FileNotFoundError, match='x does not exist'):
    pipelines.load(BASE, vae='x')
  vae = formats.open_model(other / 'vae').net('vae').config()
  with pytest.raises(ValueError, match='have 4 channels, .* UNet 16'):
    other_vae.check_channels(vae, 16, 'a')
  broken = tmp_path / 'vae'
  shutil.copytree(other / 'vae', broken)
  config = json.loads((broken / 'config.json').read_text())
  config['latent_channels'] = 16
  (broken / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='have 16 channels.*of the UNet 4'):
    pipelines.load(BASE, vae=broken)
