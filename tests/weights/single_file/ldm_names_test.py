"""Single files of the full-size models name by name, and values in small."""

import json

import numpy as np
import pytest

from sdxl_jax.weights import pretrained, safetensors_file
from sdxl_jax.weights.diffusers import folder_reader
from sdxl_jax.weights.single_file import ldm_file, ldm_names
from tests.support import headers

MODELS = ['base', 'refiner']


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
  """A full-size diffusers folder, whose numbers take no room."""
  configs = keys / 'configs' / model
  for path in configs.rglob('*.json'):
    copy = tmp_path / 'folder' / path.relative_to(configs)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
  for component in folder_reader.load_model_index(
    tmp_path / 'folder'
  ).components:
    path = tmp_path / 'folder' / component
    file = f'{folder_reader.STEMS[component]}.safetensors'
    headers.sparse(path / file, diffusers_keys(keys, model, component))
  return tmp_path / 'folder'


def shapes(tensors):
  return {name: list(tensor.shape) for name, tensor in tensors.items()}


def test_every_name_is_the_published_one(keys, model, folder):
  """The table that a converter of the reference makes, by our rule."""
  expected = read(keys / f'map.original_to_diffusers.{model}.json')
  found, source = {}, folder_reader.open_model(folder)
  for component in source.index.components:
    net = source.net(component)
    prefix = ldm_names.PREFIXES[component]
    if model == 'refiner' and component == 'text_encoder_2':
      prefix = ldm_names.REFINER_TOWER
    for key, parts in ldm_file.original_table(net).items():
      found[prefix + key] = [[component, *part] for part in parts]
    found |= dict.fromkeys(ldm_names.extras(prefix, component, 77), [])
  assert found == expected


def test_a_full_size_folder_as_a_single_file(keys, model, folder):
  expected = read(keys / f'original.sd_xl_{model}_1.0.json')
  found = ldm_file.tensors(folder_reader.open_model(folder))
  assert shapes(found) == {n: entry['shape'] for n, entry in expected.items()}
  told = ldm_file.metadata(folder_reader.open_model(folder), '')
  assert told['modelspec.architecture'] == f'stable-diffusion-xl-v1-{model}'
  assert told['modelspec.resolution'] == '1024x1024'
  assert told['modelspec.prediction_type'] == 'epsilon'


def test_a_full_size_single_file_as_a_folder(keys, tmp_path, model, folder):
  """Nothing but names and shapes tells what the file holds."""
  path = tmp_path / 'a.safetensors'
  headers.sparse(path, read(keys / f'original.sd_xl_{model}_1.0.json'))
  found, expected = ldm_file.open_model(path), folder_reader.open_model(folder)
  assert found.index == expected.index and found.is_complete
  for name, value in pretrained.SCHEDULER.items():
    assert expected.scheduler[name] == value
  assert found.scheduler == pretrained.SCHEDULER
  for component in found.index.components:
    net = found.net(component)
    assert net.config() == expected.net(component).config()
    entries = diffusers_keys(keys, model, component)
    assert shapes(net.tensors()) == {n: e['shape'] for n, e in entries.items()}


def test_bare_full_size_nets(keys, tmp_path, folder):
  """In both namings, with and without the prefix of a whole model."""
  del folder
  whole = read(keys / 'original.sd_xl_base_1.0.json')
  for component in ('unet', 'vae'):
    prefix = ldm_names.PREFIXES[component]
    entries = {n: e for n, e in whole.items() if n.startswith(prefix)}
    bare = {n.removeprefix(prefix): e for n, e in entries.items()}
    theirs = diffusers_keys(keys, 'base', component)
    for case in (entries, bare, theirs):
      headers.sparse(tmp_path / 'a.safetensors', case)
      found = ldm_file.open_model(tmp_path / 'a.safetensors')
      assert list(found.loaders) == [component] and found.index is None
      assert shapes(found.net(component).tensors()) == {
        n: e['shape'] for n, e in theirs.items()
      }


def test_values():
  """Fused rows, the projection turned over, convolutions of size one."""
  rng = np.random.default_rng(0)
  q, k, v, p = (rng.normal(size=(4, 4)) for _ in range(4))
  parts = [
    (safetensors_file.from_array(x), f'rows{i}')
    for i, x in enumerate((q, k, v))
  ]
  fused = ldm_names.to_original(parts)
  assert fused.shape == (12, 4)
  np.testing.assert_array_equal(fused.read(), np.concatenate([q, k, v]))
  for i, x in enumerate((q, k, v)):
    part = ldm_names.to_diffusers(fused, f'rows{i}')
    assert part.shape == (4, 4)
    np.testing.assert_array_equal(part.read(), x)
  turned = ldm_names.to_original([(safetensors_file.from_array(p[:3]), 'T')])
  np.testing.assert_array_equal(turned.read(), p[:3].T)
  assert turned.shape == (4, 3)
  square = ldm_names.to_original(
    [(safetensors_file.from_array(p), 'squeeze_hw')]
  )
  assert square.shape == square.read().shape == (4, 4, 1, 1)


def test_a_layer_that_came_after_single_files():
  name = 'time_embedding.cond_proj.weight'
  with pytest.raises(ValueError, match=f'{name}: write a diffusers folder'):
    ldm_names.table('unet', [name], ldm_names.BlockLayout())
