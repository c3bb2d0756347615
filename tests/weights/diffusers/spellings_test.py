"""Names of tensors in files of older and newer libraries."""

import json

import numpy as np
import pytest

from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.diffusers import spellings

LAYER = 'text_model.encoder.layers.3.mlp.fc1.bias'
ATTENTION = 'decoder.mid_block.attentions.0'
DOWN = 'down_blocks.0.downsamplers.0'
RESNET = 'up_blocks.1.resnets.2'


@pytest.mark.parametrize('old,new', [
  (LAYER, LAYER),
  ('encoder.down_blocks.0.resnets.0.conv1.weight', None),
  ('encoder.layers.3.mlp.fc1.bias', LAYER),
  (f'transformer.{LAYER}', LAYER),
  ('final_layer_norm.bias', 'text_model.final_layer_norm.bias'),
  ('text_projection', 'text_projection.weight'),
  ('text_projection.weight', None),
  (f'{ATTENTION}.query.bias', f'{ATTENTION}.to_q.bias'),
  (f'{ATTENTION}.q.weight', f'{ATTENTION}.to_q.weight'),
  (f'{ATTENTION}.key.weight', f'{ATTENTION}.to_k.weight'),
  (f'{ATTENTION}.v.weight', f'{ATTENTION}.to_v.weight'),
  (f'{ATTENTION}.proj_attn.weight', f'{ATTENTION}.to_out.0.weight'),
  (f'{ATTENTION}.proj_out.bias', f'{ATTENTION}.to_out.0.bias'),
  (f'{ATTENTION}.norm.bias', f'{ATTENTION}.group_norm.bias'),
  # The UNet's attention has such names today.
  ('mid_block.attentions.0.norm.bias', None),
  ('mid_block.attentions.0.proj_out.bias', None),
  (f'{DOWN}.op.weight', f'{DOWN}.conv.weight'),
  (f'{DOWN}.Conv2d_0.bias', f'{DOWN}.conv.bias'),
  (f'{RESNET}.nin_shortcut.bias', f'{RESNET}.conv_shortcut.bias'),
  (f'{RESNET}.temb_proj.bias', f'{RESNET}.time_emb_proj.bias'),
  ('decoder.norm_out.bias', 'decoder.conv_norm_out.bias'),
  ('_orig_mod.module.conv_in.weight', 'conv_in.weight'),
  (f'{RESNET}._orig_mod.conv1.weight', f'{RESNET}.conv1.weight'),
  ('state_dict.conv_in.weight', 'conv_in.weight'),
])  # fmt: skip
def test_names_of_older_and_newer_files(old, new):
  assert spellings.canonical_name(old) == (new or old)


def test_todays_names_stay(keys):
  for path in keys.glob('diffusers.*.json'):
    for name in json.loads(path.read_text()):
      assert spellings.canonical_name(name) == name


def test_a_bare_projection_multiplies_from_the_other_side():
  matrix = np.arange(6.0).reshape(2, 3)
  for name, expected in (
    ('text_projection', matrix.T),
    ('text_projection.weight', matrix),
  ):
    unified = spellings.unify({name: safetensors_file.from_array(matrix)})
    read = unified['text_projection.weight']
    assert read.shape == expected.shape
    np.testing.assert_array_equal(read.read(), expected)
