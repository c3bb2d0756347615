"""TAESD against live diffusers, from a folder and from single files."""

import dataclasses

import numpy as np
import pytest

from sdxl_jax.models import tiled_decoding, tiny_vae, vae
from sdxl_jax.weights import formats, other_vae, safetensors_file
from sdxl_jax.weights.diffusers import config_json, folder_writer, tensor_names
from tests.support import folders, random_nets

CONFIG = tiny_vae.TinyConfig(
  features=8, encoder_blocks=(1, 2, 1), decoder_blocks=(2, 1, 1)
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of AutoencoderTiny with random parameters."""
  path = tmp_path_factory.mktemp('tiny') / 'vae'
  net = folders.net_of('vae', CONFIG, random_nets.fill(CONFIG))
  folder_writer.save_net(path, net)
  return path


def original(folder):
  """{half: {name as the original program has it: tensor}} of a folder."""
  tensors = formats.open_model(folder).net('vae').tensors()
  halves = {'encoder': {}, 'decoder': {}}
  for name, tensor in tensors.items():
    half, _, number, rest = name.split('.', 3)
    number = int(number) + (half == 'decoder')
    halves[half][f'{number}.{rest}'] = tensor
  return halves


def load(path):
  return formats.open_model(path).net('vae').load()


@pytest.fixture
def files(folder, tmp_path):
  """{kind: path} of the same net as others store it."""
  halves = original(folder)
  comfyui = {
    f'taesd_{half}.{name}': tensor
    for half, tensors in halves.items()
    for name, tensor in tensors.items()
  }
  one = safetensors_file.from_array(np.float32(1.0))
  stored = {
    'taesdxl_decoder': halves['decoder'],
    'taesdxl_encoder': halves['encoder'],
    'comfyui': comfyui | {'vae_scale': one, 'vae_shift': one},
    'alone/decoder_only': halves['decoder'],
    'alone/encoder_only': halves['encoder'],
  }
  (tmp_path / 'alone').mkdir()
  paths = {}
  for name, tensors in stored.items():
    paths[name] = tmp_path / f'{name}.safetensors'
    safetensors_file.write(paths[name], dict(tensors))
  (tmp_path / 'alone' / 'encoder_only.safetensors').rename(
    tmp_path / 'alone' / 'first.safetensors'
  )
  paths['alone/encoder_only'] = tmp_path / 'alone' / 'first.safetensors'
  paths['diffusers'] = folder / 'diffusion_pytorch_model.safetensors'
  return paths


def test_single_files_hold_the_same(folder, files):
  config, params = load(folder)
  assert config == CONFIG
  expected = tensor_names.tensors(params)
  for name in ('diffusers', 'comfyui', 'taesdxl_decoder', 'taesdxl_encoder'):
    model = formats.open_model(files[name])
    found, params = model.net('vae').load()
    assert found == CONFIG, name
    for key, tensor in tensor_names.tensors(params).items():
      np.testing.assert_array_equal(tensor.read(), expected[key].read())
    assert bool(model.notes) == name.startswith('taesdxl')


def test_a_decoder_alone(files, jit, folder):
  config, params = load(files['alone/decoder_only'])
  assert config.encoder_blocks == ()
  z = np.ones((1, 4, 4, 4), np.float32)
  net = vae.make_vae(config)

  def decode(net, params):
    return net.apply({'params': params}, z, method='decode')

  whole = decode(vae.make_vae(CONFIG), load(folder)[1])
  np.testing.assert_array_equal(decode(net, params), whole)
  with pytest.raises(ValueError, match='a decoder only'):
    image = np.ones((1, 16, 16, 3), np.float32)
    net.apply({'params': params}, image, method='encode')
  with pytest.raises(ValueError, match='holds the encoder of a TAESD alone'):
    formats.open_model(files['alone/encoder_only'])


def test_in_place_of_another_autoencoder(folder):
  base = formats.open_model(random_nets.TINY / 'base')
  model = other_vae.replace(base, folder)
  assert model.net('vae').config() == CONFIG
  assert model.notes == (f'vae: {folder}',)  # its latents are SDXL's
  # Those of Playground are scaled in another way.
  net = base.net('vae')
  shift = {'latents_mean': [1.0] * 4, 'latents_std': [2.0] * 4}
  net = dataclasses.replace(net, published=net.published | shift)
  shifted = dataclasses.replace(
    base, loaders=base.loaders | {'vae': lambda: net}
  )
  notes = other_vae.replace(shifted, folder).notes
  assert any('latents_mean of the latents is None by' in x for x in notes)


@pytest.mark.torch
def test_live_autoencoder(folder, close):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  theirs = diffusers.AutoencoderTiny.from_pretrained(folder)
  image = np.random.default_rng(0).uniform(-1, 1, (2, 24, 16, 3))
  image = image.astype(np.float32)
  with torch.no_grad():
    z = theirs.encode(torch.from_numpy(np.moveaxis(image, -1, 1))).latents
    decoded = np.moveaxis(theirs.decode(3 * z).sample.numpy(), 1, -1)
  z = np.moveaxis(z.numpy(), 1, -1)
  config, params = load(folder)
  net, variables = vae.make_vae(config), {'params': params}
  moments = net.apply(variables, image, method='encode')
  close(moments[..., :4], z, 1e-5)
  assert (np.asarray(moments[..., 4:]) == tiny_vae.NO_VARIANCE).all()
  close(net.apply(variables, 3 * z, method='decode'), decoded, 1e-5)
  close(tiled_decoding.decode(config, params, 3 * z), decoded, 1e-5)


def test_published_config():
  published = config_json.write('vae', tiny_vae.TinyConfig())
  assert config_json.read('vae', published, 'here') == tiny_vae.TinyConfig()
  bare = {'_class_name': 'AutoencoderTiny'}
  assert config_json.read('vae', bare, 'here') == tiny_vae.TinyConfig()
  for change, match in (
    ({'act_fn': 'gelu'}, "act_fn is 'gelu'"),
    ({'upsampling_scaling_factor': 3}, 'upsampling_scaling_factor is 3'),
    ({'decoder_block_out_channels': [64, 64, 64, 32]}, 'widths'),
    ({'use_attention': True}, 'unknown option use_attention'),
  ):
    with pytest.raises(ValueError, match=match):
      config_json.read('vae', published | change, 'here')
