"""Pruned UNets: names, shapes and configs at full size."""

import dataclasses
import json
import math

import pytest

from sdxl_jax.models import unet
from sdxl_jax.weights import infer_config, nearest_config, net_shapes
from sdxl_jax.weights.diffusers import config_json, tensor_names, unet_blocks
from sdxl_jax.weights.lora import lora_names
from sdxl_jax.weights.single_file import ldm_names

RESNET = {'mid_block_type': 'UNetMidBlock2D'}
# Our config, entries of the published config.json that differ from the base's,
# parameters (those of diffusers' net).
KINDS = {
  'SSD-1B': (
    unet.SSD_1B,
    {
      'transformer_layers_per_block': [1, [2, 2], [4, 4]],
      'reverse_transformer_layers_per_block': [[4, 4, 10], [2, 1, 1], 1],
      **RESNET,
    },
    1_331_334_404,
  ),
  'Segmind Vega': (
    unet.VEGA,
    {'transformer_layers_per_block': [1, 1, 2], **RESNET},
    745_225_604,
  ),
  'KOALA-700M': (
    unet.KOALA_700M,
    {
      'transformer_layers_per_block': [1, 2, 5],
      'layers_per_block': 1,
      'mid_block_type': None,
    },
    782_822_724,
  ),
  'KOALA-1B': (
    unet.KOALA_1B,
    {'transformer_layers_per_block': [1, 2, 6], 'layers_per_block': 1},
    1_161_184_324,
  ),
  # Everything that may differ at once; attention at the top going up alone.
  'odd': (
    dataclasses.replace(
      unet.BASE,
      layers_per_block=(1, 3, 2),
      transformer_depth=(0, (1, 2, 3), 4),
      up_transformer_depth=(2, (3, 2, 1, 1), 3),
      mid_transformer_depth=4,
    ),
    {
      'layers_per_block': [1, 3, 2],
      'transformer_layers_per_block': [1, [1, 2, 3], 4],
      'reverse_transformer_layers_per_block': [3, [3, 2, 1, 1], 2],
      'up_block_types': ['CrossAttnUpBlock2D'] * 3,
    },
    1_271_957_444,
  ),
}


SLOW = 'Segmind Vega', 'KOALA-1B'  # of which others have all that differs


@pytest.fixture(
  params=[
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in KINDS
  ]
)
def kind(keys, request):
  """(our config, published config.json, number of parameters)."""
  path = keys / 'configs' / 'base' / 'unet' / 'config.json'
  config, change, count = KINDS[request.param]
  return config, json.loads(path.read_text()) | change, count


def shapes(config):
  """{diffusers name: shape} of our net."""
  flat = tensor_names.flat(net_shapes.abstract_params(config))
  return {n: x.shape for n, x in tensor_names.locations(flat).items()}


def test_configs_shapes_and_names(kind):
  config, published, count = kind
  assert config_json.read('unet', published, 'here') == config
  written = config_json.write('unet', config)
  assert config_json.read('unet', written, 'here') == config
  ours = shapes(config)
  assert sum(map(math.prod, ours.values())) == count
  # From shapes alone, by both names.
  found = infer_config.unet_fields(ours.get)
  assert dataclasses.replace(unet.BASE, **found) == config
  table = ldm_names.table('unet', ours, ldm_names.block_layout(config))
  assert sum(map(len, table.values())) == len(ours) == len(table)
  layout = ldm_names.infer_block_layout(table)
  originals = {key: ours[name] for key, ((name, _),) in table.items()}
  found = infer_config.unet_fields(
    lambda name: originals.get(ldm_names.original_unet(name, layout))
  )
  assert dataclasses.replace(unet.BASE, **found) == config
  # LoRA files of kohya name layers as single files do.
  layers = {name.rpartition('.')[0] for name in ours}
  found = lora_names.unet_block_layout(layers)
  assert found.layers == layout.layers
  assert found.attention == ldm_names.block_layout(config).attention
  # Such nets are told from published ones that lack a tensor.
  assert nearest_config.count_blocks(config) < nearest_config.MOST_BLOCKS


@pytest.mark.torch
def test_live_names_and_shapes(kind):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  config, published, _ = kind
  for form in published, config_json.write('unet', config):
    with torch.device('meta'):
      net = diffusers.UNet2DConditionModel.from_config(form)
    theirs = {n: tuple(x.shape) for n, x in net.state_dict().items()}
    assert theirs == shapes(config)


def test_original_names_of_pruned_blocks():
  """As A1111 and ComfyUI find SSD-1B: what is left keeps its number."""
  layout = ldm_names.block_layout(unet.SSD_1B)
  names = [ldm_names.original_unet(n, layout) for n in shapes(unet.SSD_1B)]
  middle = {n.split('.')[1] for n in names if n.startswith('middle_block')}
  assert middle == {'0'}

  def depth(block):
    blocks = [n.split('.') for n in names if n.startswith(f'{block}.1.')]
    return len({n[4] for n in blocks if n[3] == 'transformer_blocks'})

  assert [depth(f'input_blocks.{i}') for i in (1, 4, 5, 7, 8)] == [
    *(0, 2, 2),
    *(4, 4),
  ]
  assert [depth(f'output_blocks.{i}') for i in range(9)] == [
    *(4, 4, 10),
    *(2, 1, 1),
    *(0, 0, 0),
  ]


@pytest.mark.parametrize(
  'change,match',
  [
    ({'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn'}, 'SimpleCrossAttn'),
    ({'layers_per_block': 10**12}, 'layers_per_block'),
    ({'layers_per_block': [2, 2]}, 'layers_per_block'),
    ({'layers_per_block': None}, 'layers_per_block'),
    ({'transformer_layers_per_block': [1, [2], 10]}, 'transformer_layers'),
    ({'transformer_layers_per_block': [1, 0, 10]}, 'transformer_layers'),
    ({'transformer_layers_per_block': [1, 'x', 10]}, 'transformer_layers'),
    ({'transformer_layers_per_block': [1, 2]}, 'has 3 levels'),
  ],
)
def test_blocks_that_cannot_be(keys, change, match):
  path = keys / 'configs' / 'base' / 'unet' / 'config.json'
  published = json.loads(path.read_text()) | change
  with pytest.raises(ValueError, match=match):
    config_json.read('unet', published, 'here')


def test_blocks_without_a_counterpart_are_refused():
  config = dataclasses.replace(unet.BASE, transformer_depth=(0, (2, 0), 10))
  config = dataclasses.replace(config, up_transformer_depth=(0, 2, 10))
  with pytest.raises(ValueError, match='after some of its blocks only'):
    unet_blocks.write(config)
