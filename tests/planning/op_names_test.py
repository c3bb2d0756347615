"""Tests which part of a net the names of operations are read as."""

import pytest

from sdxl_jax.planning import op_names
from sdxl_jax.planning.op_names import BACKWARD, FORWARD, RECOMPUTED

UP = 'up_blocks_0/attentions_1'


@pytest.mark.parametrize(
  'name, phase, block, layer',
  [
    (
      f'jit(gradients)/jvp(UNet)/{UP}/{UP[12:]}.blocks/transformer_blocks_2/'
      'attn1/jvp(vmap(BTNH,BSNH->BNTS))/dot_general',
      FORWARD,
      'UNet up_blocks_0',
      'self-attention',
    ),
    (
      'jit(gradients)/transpose(jvp(UNet))/mid_block/jvp(UNet)/mid_block/'
      'checkpoint/rematted_computation/resnets_1/norm1/reduce_sum',
      RECOMPUTED,
      'UNet mid_block',
      'norms',
    ),
    (
      'jit(gradients)/transpose(jvp(UNet))/down_blocks_1/jvp(UNet)/'
      'down_blocks_1/checkpoint/resnets_0/conv1/conv_general_dilated;jit(x)/y',
      BACKWARD,
      'UNet down_blocks_1',
      'ResnetBlock2D',
    ),
    (
      'jit(gradients)/transpose(jvp(jit(encode)))/CLIPText/text_model/encoder/'
      'while/body/closed_call/layers/mlp/fc1/dot_general',
      BACKWARD,
      'CLIPText encoder',
      'FeedForward',
    ),
    (
      'jit(decode)/VAE.decode/decoder/up_blocks_1/upsamplers_0/conv/add',
      FORWARD,
      'VAE decoder',
      'Downsample2D, Upsample2D',
    ),
    (
      r'params[\'unet\'][\'up_blocks_1\'][\'resnets_0\'][\'conv1\'][\'bias\']',
      FORWARD,
      'UNet up_blocks_1',
      'ResnetBlock2D',
    ),
    (
      'jit(gradients)/transpose(jvp(UNet))/conv_in/reduce_sum:transpose('
      'jvp(UNet))/conv_out/reduce_sum',
      BACKWARD,
      op_names.SEVERAL,
      'others',
    ),
    ('jit(update)/sqrt', FORWARD, 'optimizer, EMA', 'others'),
    ('jit(gradients)/jvp()/cos', FORWARD, op_names.NO_NET, 'others'),
  ],
)
def test_sites(name, phase, block, layer):
  site = op_names.site(name)
  assert (site.phase, site.block, site.layer) == (phase, block, layer)


def test_paths_leave_out_control_flow():
  name = (
    'jit(f)/transpose(jvp(UNet))/mid_block/jvp(UNet)/mid_block/checkpoint/'
    'rematted_computation/while/body/closed_call/attentions_0/norm/mul'
  )
  assert op_names.site(name).path == (
    'UNet',
    'mid_block',
    'attentions_0',
    'norm',
  )
  assert op_names.site(None) == op_names.UNKNOWN
