"""ControlNets at a path: folders, single files in both names, and errors."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest

from sdxl_jax.models import controlnet, unet
from sdxl_jax.weights import (
  net_shapes,
  other_controlnets,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.single_file import control_names, ldm_names
from tests.support import control_nets, folders

# Shapes alone, of what would be gigabytes: no test reads them.
FULL = controlnet.BASE
UNION = controlnet.ControlNetConfig(
  control_types=8, conditioning_features=(48, 96, 192, 384)
)
BASE = types.SimpleNamespace(unet=unet.BASE)


@functools.cache
def full_size(config):
  """{name in diffusers: tensor without numbers} of a net of full size."""
  shapes = net_shapes.abstract_params(config)
  places = tensor_names.locations(tensor_names.flat(shapes))
  return {
    name: safetensors_file.LazyTensor(
      place.shape, np.dtype(np.float16), None, name=name
    )
    for name, place in places.items()
  }


def original(tensors, prefix='control_model.'):
  """The same in the original names."""
  layout = ldm_names.block_layout(controlnet.BASE)
  return {
    prefix + control_names.original_name(name, layout): tensor
    for name, tensor in tensors.items()
  }


@pytest.fixture
def open_tensors(monkeypatch, tmp_path):
  """open_tensors(tensors) > the net of a file that holds them."""

  def open_(tensors):
    path = tmp_path / 'control.safetensors'
    path.touch()
    file = safetensors_file.TensorFile(path, tensors, {})
    monkeypatch.setattr(
      control_names.tensor_files, 'open_file', lambda path: file
    )
    return other_controlnets.open_all([path], BASE)[0]

  return open_


@pytest.mark.parametrize(
  'config',
  [FULL, pytest.param(UNION, marks=pytest.mark.slow)],
  ids=['plain', 'union'],
)
def test_files_of_full_size(open_tensors, config):
  """Their config follows from shapes, in the names of diffusers."""
  net = open_tensors(full_size(config))
  assert net.config() == config
  assert net.tensors().keys() == full_size(config).keys()


def test_original_names(open_tensors):
  """The names that ControlNet's own program gave them."""
  names = original(full_size(FULL))
  for name in (
    'input_blocks.0.0.weight',
    'input_hint_block.0.weight',
    'input_hint_block.14.bias',
    'zero_convs.0.0.weight',
    'zero_convs.8.0.bias',
    'middle_block_out.0.weight',
    'label_emb.0.2.weight',
    'input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight',
  ):
    assert f'control_model.{name}' in names
  net = open_tensors(names)
  assert net.config() == FULL
  found = {name: x.shape for name, x in net.tensors().items()}
  assert found == {name: x.shape for name, x in full_size(FULL).items()}


def test_a_tensor_is_missing_or_unknown(open_tensors):
  tensors = dict(full_size(FULL))
  del tensors['mid_block.resnets.0.conv1.bias']
  with pytest.raises(ValueError, match=r'missing: mid_block.resnets.0.conv1'):
    open_tensors(tensors).tensors()
  odd = dataclasses.replace(tensors['conv_in.weight'], name='new.weight')
  tensors = full_size(FULL) | {'new.weight': odd}
  with pytest.raises(ValueError, match='without a place in the net: new.wei'):
    open_tensors(tensors).tensors()


def test_files_that_do_not_fit(open_tensors):
  sd1 = {n: t for n, t in full_size(FULL).items() if 'add_embedding' not in n}
  with pytest.raises(ValueError, match='of Stable Diffusion 1 or 2.* for SDXL'):
    open_tensors(sd1)
  no_control = {n: t for n, t in sd1.items() if 'controlnet' not in n}
  with pytest.raises(ValueError, match='is no ControlNet: it has neither'):
    open_tensors(no_control)
  lora = {'lora_controlnet': sd1['conv_in.weight']}
  with pytest.raises(ValueError, match='is a Control-LoRA .*not implemented'):
    open_tensors(lora)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """(folder, config, params) of a tiny ControlNet."""
  config = control_nets.make_config(union=True, channel_order='bgr')
  params = control_nets.random_params(config)
  folder = tmp_path_factory.mktemp('tiny') / 'net'
  return control_nets.write(folder, config, params), config, params


def tiny_base():
  folder = control_nets.TINY / 'base'
  return types.SimpleNamespace(unet=folders.load_config(folder, 'unet'))


def test_a_folder_is_read_as_it_was_written(tiny):
  folder, config, params = tiny
  (net,) = other_controlnets.open_all([folder], tiny_base())
  found, read = net.load()
  assert found == config
  jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.slow
@pytest.mark.torch
def test_diffusers_reads_a_folder(tiny):
  pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  folder, config, params = tiny
  config = control_nets.make_config()
  params = control_nets.random_params(config)
  folder = control_nets.write(folder.parent / 'plain', config, params)
  net = diffusers.ControlNetModel.from_pretrained(folder)
  tensors = tensor_names.tensors(params)
  for name, tensor in net.state_dict().items():
    np.testing.assert_array_equal(tensor.numpy(), tensors[name].read())


def edit(folder, tiny, **fields):
  """A copy of the tiny ControlNet with another config.json."""
  control_nets.write(folder, *tiny[1:])
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))
  return folder


@pytest.mark.parametrize(
  'fields, message',
  [
    (
      {'addition_embed_type': None, 'cross_attention_dim': 768},
      'ControlNet of Stable Diffusion 1, .*768.*trained for SDXL, whose .*2048',
    ),
    (
      {'cross_attention_dim': 30},
      'its cross_attention_dim is 30, and that .*28',
    ),
    ({'global_pool_conditions': True}, 'global_pool_conditions is True'),
    ({'in_channels': 9}, 'its latents is 9'),
    ({'num_trans_channel': 7}, 'num_trans_channel is 7, but only'),
    (
      {'_class_name': 'UNet2DConditionModel'},
      'unknown option|is no ControlNet',
    ),
    ({'controlnet_conditioning_channel_order': 'gbr'}, "is 'gbr', but only"),
  ],
)
def test_folders_that_do_not_fit(tiny, tmp_path, fields, message):
  folder = edit(tmp_path / 'net', tiny, **fields)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    other_controlnets.open_all([folder], tiny_base())


def test_no_such_path(tmp_path):
  with pytest.raises(
    FileNotFoundError, match='x: neither a file, nor a folder'
  ):
    other_controlnets.open_all([tmp_path / 'x'], tiny_base())
