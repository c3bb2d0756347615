"""The full-size nets map one to one onto the published tensors."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import clip, unet, vae
from sdxl_jax.weights import array_filling, net_shapes, safetensors_file
from sdxl_jax.weights.diffusers import config_json, tensor_names
from tests.support import folders

# Key list, folder of the config, our config, number of parameters.
FULL_SIZE = {
  'base.unet': ('base/unet', unet.BASE, 2_567_463_684),
  'refiner.unet': ('refiner/unet', unet.REFINER, 2_259_526_660),
  'vae': ('base/vae', vae.VAEConfig(), 83_653_863),
  'text_encoder': ('base/text_encoder', clip.VIT_L, 123_060_480),
  'text_encoder_2': ('base/text_encoder_2', clip.VIT_BIGG, 694_659_840),
}
LAYOUTS = [(name, True) for name in FULL_SIZE]
LAYOUTS += [('base.unet', False), ('refiner.unet', False)]


def flat_params(config):
  return traverse_util.flatten_dict(net_shapes.abstract_params(config))


@pytest.mark.parametrize('name,scan', LAYOUTS)
def test_names_and_shapes_are_the_published_ones(keys, name, scan):
  _, config, count = FULL_SIZE[name]
  if not scan:
    config = dataclasses.replace(config, scan_blocks=False)
  published = json.loads((keys / f'diffusers.{name}.json').read_text())
  flat = flat_params(config)
  locations = tensor_names.locations(flat)
  assert {n: list(x.shape) for n, x in locations.items()} == {
    n: entry['shape'] for n, entry in published.items()
  }
  # Every leaf is filled, and every block of every stack exactly once.
  places = {(x.path, x.index) for x in locations.values()}
  assert len(places) == len(locations)
  assert {x.path for x in locations.values()} == set(flat)
  assert sum(math.prod(leaf.shape) for leaf in flat.values()) == count


@pytest.mark.parametrize('name', FULL_SIZE)
def test_configs_are_the_published_ones(keys, name):
  folder, config, _ = FULL_SIZE[name]
  path = keys / 'configs' / folder / 'config.json'
  published = json.loads(path.read_text())
  component = folder.split('/')[1]
  assert config_json.read(component, published, str(path)) == config
  ours = config_json.write(component, config)
  assert config_json.read(component, ours, 'ours') == config
  # 4 for every level, and 4 for each level, are the same.
  layers = published.get('transformer_layers_per_block')
  if isinstance(layers, int):
    ours.pop('transformer_layers_per_block')
  shared = set(ours) & set(published)
  assert {k: ours[k] for k in shared} == {k: published[k] for k in shared}


def test_stacked_and_unrolled_hold_the_same(golden):
  folder = golden / 'tiny' / 'base'
  config, stacked = folders.load_component(folder, 'unet')
  _, unrolled = folders.load_component(folder, 'unet', scan_blocks=False)
  last = config.mid_transformer_depth - 1
  block = unrolled['mid_block']['attentions_0'][f'transformer_blocks_{last}']
  blocks = stacked['mid_block']['attentions_0']['transformer_blocks']
  jax.tree.map(
    np.testing.assert_array_equal,
    block,
    jax.tree.map(lambda leaf: leaf[last], blocks),
  )


@pytest.mark.parametrize('conv', [True, False], ids=['conv', 'linear'])
def test_an_old_autoencoder_reads_alike(golden, conv):
  config, params = folders.load_component(golden / 'tiny' / 'base', 'vae')
  old = {}
  for name, tensor in tensor_names.tensors(params).items():
    array = tensor.read()
    if '.to_' in name and name.endswith('weight') and conv:
      array = array[:, :, None, None]
    for today, then in [
      ('to_out.0', 'proj_attn'),
      ('to_q', 'query'),
      ('to_k', 'key'),
      ('to_v', 'value'),
    ]:
      name = name.replace(f'.{today}.', f'.{then}.')
    old[name] = safetensors_file.from_array(array)
  target = net_shapes.abstract_params(config)
  read = tensor_names.from_published(old, target)
  jax.tree.map(np.testing.assert_array_equal, read, params)


def test_leftovers_and_shapes_are_refused():
  target = {'conv': {'kernel': np.zeros((3, 3, 4, 8)), 'bias': np.zeros(8)}}
  tensors = {'conv.weight': np.zeros((8, 4, 3, 3)), 'conv.bias': np.zeros(8)}

  def read(changes):
    published = {
      name: safetensors_file.from_array(array)
      for name, array in (tensors | changes).items()
      if array is not None
    }
    return tensor_names.from_published(published, target)

  assert read({})['conv']['kernel'].shape == (3, 3, 4, 8)
  assert read({'embeddings.position_ids': np.arange(77)})
  with pytest.raises(
    ValueError, match='1 tensor without a place.*: extra.bias'
  ):
    read({'extra.bias': np.zeros(1)})
  with pytest.raises(ValueError, match='1 tensor of the net.*: conv.bias'):
    read({'conv.bias': None})
  message = r'conv.weight has the shape \(8, 5, 3, 3\).*\(8, 4, 3, 3\)'
  with pytest.raises(ValueError, match=message):
    read({'conv.weight': np.zeros((8, 5, 3, 3))})
  with pytest.raises(ValueError, match='conv.bias is stored as int8: quant'):
    read({'conv.bias': np.zeros(8, np.int8)})


def test_a_tensor_under_two_names():
  """It would hide the other one, unless their numbers are the same."""
  target = {'encoder': {'attentions_0': {'to_q': {'bias': np.zeros(8)}}}}
  old, new = (f'encoder.attentions.0.{n}.bias' for n in ('query', 'to_q'))
  ones = safetensors_file.from_array(np.ones(8))
  zeros = safetensors_file.from_array(np.zeros(8))
  with pytest.raises(ValueError, match='also stored under another name'):
    tensor_names.from_published({old: zeros, new: ones}, target)
  read = tensor_names.from_published({old: ones, new: ones}, target)
  np.testing.assert_array_equal(
    read['encoder']['attentions_0']['to_q']['bias'], 1
  )


def test_arrays_get_the_sharding_of_the_target():
  four = device_mesh.make_mesh(1, 4, devices=jax.devices()[:4])
  array = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  shapes = {'conv': {'kernel': jax.ShapeDtypeStruct((8, 8), np.float32)}}
  target = sharding.with_shardings(shapes, four)
  published = {'conv.weight': safetensors_file.from_array(array.T)}
  put = tensor_names.from_published(published, target)['conv']['kernel']
  assert {s.data.shape for s in put.addressable_shards} == {(2, 8)}
  np.testing.assert_array_equal(put, array)


def test_numbers_that_overflow_are_refused():
  array = np.zeros((2, 3), np.float16)
  for value in 2.0, 65504.0:
    given = np.full((2, 3), value, np.float32)
    array_filling.store(safetensors_file.from_array(given), array)
    assert np.array_equal(array, given)
  given[1, 2] = 1e6
  tensor = dataclasses.replace(safetensors_file.from_array(given), name='x')
  with pytest.raises(ValueError, match='x has 1e.06, which overflows float16'):
    array_filling.store(tensor, array)
