"""Single files in the spellings of other programs hold the same numbers."""

import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.weights import formats
from sdxl_jax.weights.single_file import ldm_spellings
from tests.support import conversions, golden_sets, net_files

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
ATTENTION = 'decoder.mid.attn_1'


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """{name: array} of the tiny base as a single file."""
  path = tmp_path_factory.mktemp('single') / 'a.safetensors'
  conversions.run(BASE, path, 'single_file')
  return safetensors.numpy.load_file(path)


def test_a_part_of_a_net(single, tmp_path):
  whole = tmp_path / 'a-00001-of-00001.safetensors'
  safetensors.numpy.save_file(single, whole)
  assert formats.open_model(whole).is_complete
  part = whole.rename(tmp_path / 'a-00001-of-00002.safetensors')
  with pytest.raises(ValueError, match='one of 2 files of one net: pass the'):
    formats.open_model(part)


def linear_projection(arrays):
  """As diffusers' conversion script writes it: a layer's transposed matrix."""
  name = 'conditioner.embedders.1.model.text_projection'
  linear = {f'{name}.weight': np.ascontiguousarray(arrays[name].T)}
  return {n: x for n, x in arrays.items() if n != name} | linear


def both_projections(arrays):
  return arrays | linear_projection(arrays)


def matrices(arrays):
  """The autoencoder's attention as matrices in diffusers' names."""
  squeezed = {
    name: x[..., 0, 0] if 'attn_1' in name and x.ndim == 4 else x
    for name, x in arrays.items()
  }
  return net_files.rename(squeezed, *net_files.TO)


def compiled(arrays):
  return {f'module._orig_mod.{name}': x for name, x in arrays.items()}


def several_types(arrays):
  """Half of the tensors in a type that holds the same numbers."""
  return {
    name: x.astype('f8') if i % 2 and x.dtype == 'f4' else x
    for i, (name, x) in enumerate(arrays.items())
  }


@pytest.mark.parametrize(
  'change',
  [linear_projection, both_projections, matrices, compiled, several_types],
)
def test_a_spelling_holds_the_same_numbers(single, change, tmp_path):
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(change(single), path)
  opened = formats.open_model(path, formats.open_model(BASE))
  expected = conversions.tensors(BASE)
  assert opened.is_complete
  for net in opened.loaders:
    for name, tensor in opened.net(net).tensors().items():
      np.testing.assert_array_equal(tensor.read(), expected[net, name], name)


def test_two_projections_that_differ_are_refused(single, tmp_path):
  name = 'conditioner.embedders.1.model.text_projection'
  arrays = both_projections(single)
  arrays[f'{name}.weight'] = arrays[f'{name}.weight'] + 1
  safetensors.numpy.save_file(arrays, tmp_path / 'a.safetensors')
  opened = formats.open_model(
    tmp_path / 'a.safetensors', formats.open_model(BASE)
  )
  with pytest.raises(ValueError, match=f'{name}.* stored twice with different'):
    opened.net('text_encoder_2')


@pytest.mark.parametrize('old,new', [
  (f'{ATTENTION}.to_q.weight', f'{ATTENTION}.q.weight'),
  (f'{ATTENTION}.query.bias', f'{ATTENTION}.q.bias'),
  (f'{ATTENTION}.proj_attn.bias', f'{ATTENTION}.proj_out.bias'),
  (f'{ATTENTION}.to_out.0.weight', f'{ATTENTION}.proj_out.weight'),
  (f'{ATTENTION}.group_norm.weight', f'{ATTENTION}.norm.weight'),
  ('encoder.down.1.block.0.conv_shortcut.bias',
   'encoder.down.1.block.0.nin_shortcut.bias'),
  ('transformer.resblocks.3.attn.in_proj.bias',
   'transformer.resblocks.3.attn.in_proj_bias'),
  ('text_projection.weight', 'text_projection'),
  ('middle_block.1.proj_out.weight', 'middle_block.1.proj_out.weight'),
])  # fmt: skip
def test_names(old, new):
  assert ldm_spellings.canonical_name(old) == new
