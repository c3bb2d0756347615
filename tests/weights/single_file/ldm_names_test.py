"""Single files: all names of the full-size models, and values of small ones."""

import json

import numpy as np
import pytest

from sdxl_jax.weights import pretrained, safetensors_file
from sdxl_jax.weights.diffusers import folder_reader, weight_files
from sdxl_jax.weights.single_file import (
  ldm_names,
  ldm_reader,
  ldm_writer,
  open_nets,
)
from tests.support import headers

MODELS = ['base', 'refiner']
# The words of the recorded tables for our transforms.
WORDS = {
  ldm_names.KEEP: '',
  ldm_names.TRANSPOSE: 'T',
  ldm_names.SQUEEZE_HW: 'squeeze_hw',
  ldm_names.QKV['q']: 'rows0',
  ldm_names.QKV['k']: 'rows1',
  ldm_names.QKV['v']: 'rows2',
}


def read(path):
  return json.loads(path.read_text())


def diffusers_keys(keys, model, component):
  name = f'{model}.unet' if component == 'unet' else component
  return read(keys / f'diffusers.{name}.json')


@pytest.fixture(params=MODELS)
def model(request):
  return request.param


@pytest.fixture
def folder(keys, tmp_path, model):
  """A full-size diffusers folder of sparse files, which take no space."""
  configs = keys / 'configs' / model
  for path in configs.rglob('*.json'):
    copy = tmp_path / 'folder' / path.relative_to(configs)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
  for component in folder_reader.load_model_index(
    tmp_path / 'folder'
  ).components:
    path = tmp_path / 'folder' / component
    file = f'{weight_files.STEMS[component]}.safetensors'
    headers.sparse(path / file, diffusers_keys(keys, model, component))
  return tmp_path / 'folder'


def shapes(tensors):
  return {name: list(tensor.shape) for name, tensor in tensors.items()}


def test_every_name_is_the_published_one(keys, model, folder):
  """Our rule makes the table of the reference's converter."""
  expected = read(keys / f'map.original_to_diffusers.{model}.json')
  table, model_folder = {}, folder_reader.open_model(folder)
  for component in model_folder.index.components:
    net = model_folder.net(component)
    prefix = ldm_names.PREFIXES[component]
    if model == 'refiner' and component == 'text_encoder_2':
      prefix = ldm_names.REFINER_TEXT_ENCODER
    for key, parts in open_nets.original_table(net).items():
      table[prefix + key] = [
        [component, name, WORDS[transform]] for name, transform in parts
      ]
    table |= dict.fromkeys(ldm_names.constants(prefix, component, 77), [])
  assert table == expected


def test_a_full_size_folder_as_a_single_file(keys, model, folder):
  expected = read(keys / f'original.sd_xl_{model}_1.0.json')
  opened = folder_reader.open_model(folder)
  converted = ldm_writer.tensors(opened)
  assert shapes(converted) == {n: e['shape'] for n, e in expected.items()}
  metadata = ldm_writer.metadata(opened, '')
  assert metadata['modelspec.architecture'] == f'stable-diffusion-xl-v1-{model}'
  assert metadata['modelspec.resolution'] == '1024x1024'
  assert metadata['modelspec.prediction_type'] == 'epsilon'


def test_a_full_size_single_file_as_a_folder(keys, tmp_path, model, folder):
  """The file has names and shapes only, and no config."""
  path = tmp_path / 'a.safetensors'
  headers.sparse(path, read(keys / f'original.sd_xl_{model}_1.0.json'))
  opened = ldm_reader.open_model(path)
  expected = folder_reader.open_model(folder)
  assert opened.index == expected.index and opened.is_complete
  for name, value in pretrained.SCHEDULER.items():
    assert expected.scheduler[name] == value
  assert opened.scheduler == pretrained.SCHEDULER
  for component in opened.index.components:
    net = opened.net(component)
    assert net.config() == expected.net(component).config()
    entries = diffusers_keys(keys, model, component)
    assert shapes(net.tensors()) == {n: e['shape'] for n, e in entries.items()}


def test_bare_full_size_nets(keys, tmp_path, folder):
  """In both namings, with and without the prefix of a whole model."""
  del folder
  base = read(keys / 'original.sd_xl_base_1.0.json')
  for component in ('unet', 'vae'):
    prefix = ldm_names.PREFIXES[component]
    entries = {n: e for n, e in base.items() if n.startswith(prefix)}
    bare = {n.removeprefix(prefix): e for n, e in entries.items()}
    published = diffusers_keys(keys, 'base', component)
    for case in (entries, bare, published):
      headers.sparse(tmp_path / 'a.safetensors', case)
      opened = ldm_reader.open_model(tmp_path / 'a.safetensors')
      assert list(opened.loaders) == [component] and opened.index is None
      assert shapes(opened.net(component).tensors()) == {
        n: e['shape'] for n, e in published.items()
      }


def test_values():
  """Fused rows, the transposed projection, convolutions of size one."""
  rng = np.random.default_rng(0)
  arrays = {name: rng.normal(size=(4, 4)) for name in 'qkv'}
  parts = [
    (safetensors_file.from_array(array), ldm_names.QKV[name])
    for name, array in arrays.items()
  ]
  fused = ldm_names.to_original(parts)
  assert fused.shape == (12, 4)
  np.testing.assert_array_equal(
    fused.read(), np.concatenate([*arrays.values()])
  )
  for name, array in arrays.items():
    part = ldm_names.QKV[name].to_diffusers(fused)
    assert part.shape == (4, 4)
    np.testing.assert_array_equal(part.read(), array)
  matrix = safetensors_file.from_array(rng.normal(size=(3, 4)))
  transposed = ldm_names.to_original([(matrix, ldm_names.TRANSPOSE)])
  np.testing.assert_array_equal(transposed.read(), matrix.read().T)
  assert transposed.shape == (4, 3)
  again = ldm_names.TRANSPOSE.to_diffusers(transposed)
  np.testing.assert_array_equal(again.read(), matrix.read())
  convolution = ldm_names.to_original([(matrix, ldm_names.SQUEEZE_HW)])
  assert convolution.shape == convolution.read().shape == (3, 4, 1, 1)


def test_a_layer_that_came_after_single_files():
  name = 'time_embedding.cond_proj.weight'
  with pytest.raises(ValueError, match=f'{name}: write a diffusers folder'):
    ldm_names.table('unet', [name], ldm_names.BlockLayout())
