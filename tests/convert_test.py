"""Weights from any format into any other, and what comes back."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.checkpoints import loading
from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import pipelines
from sdxl_jax.text import tokenizer
from sdxl_jax.weights import formats
from sdxl_jax.weights.diffusers import folder_reader, folder_writer
from sdxl_jax.weights.single_file import ldm_file, ldm_names
from tests.support import golden_sets, headers
from tests.support.conversions import check_same, run, tensors

TINY = golden_sets.SETS[0] / 'tiny'
MODELS = ['base', 'refiner']
ROOT = pathlib.Path(__file__).parent.parent


def read_without_version(path):
  found = json.loads(path.read_text())
  return {k: v for k, v in found.items() if k != '_diffusers_version'}


@pytest.fixture(scope='module', params=MODELS)
def model(request):
  return request.param


@pytest.fixture(scope='module')
def single(model, tmp_path_factory):
  path = tmp_path_factory.mktemp('single') / f'{model}.safetensors'
  run(TINY / model, path, 'single_file')
  return path


@pytest.fixture(scope='module')
def orbax(model, single, tmp_path_factory):
  path = tmp_path_factory.mktemp('orbax') / model
  run(single, path, 'orbax')
  return path


@pytest.mark.parametrize('way', ['single', 'orbax'])
def test_folder_and_back(model, way, tmp_path, request):
  """diffusers > single file (> orbax) > diffusers: names, numbers, configs."""
  run(request.getfixturevalue(way), tmp_path / 'back', 'diffusers')
  check_same(tensors(tmp_path / 'back'), tensors(TINY / model))
  for path in (TINY / model).rglob('*.json'):
    copy = tmp_path / 'back' / path.relative_to(TINY / model)
    if 'tokenizer' not in path.parent.name:
      assert read_without_version(copy) == read_without_version(path), path
  theirs, ours = tokenizer.load(TINY / model), tokenizer.load(tmp_path / 'back')
  prompts = ['a fox!! naïve', '!', '']
  np.testing.assert_array_equal(ours(prompts), theirs(prompts))


def test_single_file_and_back(single, orbax, tmp_path):
  """single file > orbax > single file, and > folder > single file."""
  run(orbax, tmp_path / 'a.safetensors', 'single_file')
  check_same(tensors(tmp_path / 'a.safetensors'), tensors(single))
  run(single, tmp_path / 'folder', 'diffusers')
  run(tmp_path / 'folder', tmp_path / 'b.safetensors', 'single_file')
  check_same(tensors(tmp_path / 'b.safetensors'), tensors(single))


def test_all_formats_load_alike(model, single, orbax):
  expected = pipelines.load(TINY / model)
  for path in (single, orbax):
    found = pipelines.load(path)
    for field in ('nets', 'scheduler', 'force_zeros', 'size'):
      ours, theirs = (getattr(p, field) for p in (found, expected))
      if field == 'scheduler':
        ours, theirs = ({**x, '_diffusers_version': ''} for x in (ours, theirs))
      assert ours == theirs
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_orbax_onto_a_mesh_and_into_other_forms(orbax):
  """Sharded, cast, and with blocks that are not stacked."""
  mesh = device_mesh.make_mesh(1, 4, devices=jax.devices()[:4])
  net = formats.open_model(orbax).net('unet')
  _, params = net.load(loading.make_sharding_fn(mesh), param_dtype='bfloat16')
  kernel = params['mid_block']['resnets_0']['conv1']['kernel']
  parts = {s.data.shape for s in kernel.addressable_shards}
  assert parts == {(*kernel.shape[:2], kernel.shape[2] // 4, kernel.shape[3])}
  assert kernel.dtype == 'bfloat16'
  folder = TINY / orbax.name
  for scan in (True, False):
    _, ours = net.load(scan_blocks=scan)
    _, theirs = folder_reader.load_component(folder, 'unet', scan_blocks=scan)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# The guide's snippet for other projects.
def guide_snippet():
  text = (ROOT / 'sdxl_jax' / 'weights' / 'README.md').read_text()
  found = re.search(r'```python\n(import jax.*?)```', text, re.DOTALL)
  return found[1]


CHECK = """
import json, sys
config = json.load(open('EXPORT/unet/config.json'))
assert not {'sdxl_jax', 'transformers', 'flax'} & set(sys.modules)
kernel = params['mid_block']['resnets_0']['conv1']['kernel']
print(len(kernel.sharding.device_set), config['in_channels'])
print(float(abs(kernel).sum()))
"""


def test_others_read_it_with_orbax_alone(tmp_path):
  path = tmp_path / 'EXPORT'
  run(TINY / 'base', path, 'orbax')
  code = (guide_snippet() + CHECK).replace('EXPORT', str(path))
  flags = '--xla_force_host_platform_device_count=4'
  found = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
  )
  assert found.returncode == 0, found.stderr
  counts, total = found.stdout.splitlines()
  assert counts == '4 4'
  _, params = folder_reader.load_component(TINY / 'base', 'unet')
  kernel = params['mid_block']['resnets_0']['conv1']['kernel']
  np.testing.assert_allclose(float(total), np.abs(kernel).sum(), rtol=1e-5)


def test_dtypes_variants_and_shards(tmp_path):
  source = TINY / 'refiner'
  run(source, tmp_path / 'a', 'diffusers', variant='fp16', shard_gb=1e-3)
  names = {path.name for path in (tmp_path / 'a').rglob('*.safetensors')}
  assert 'diffusion_pytorch_model.fp16-00001-of-00002.safetensors' in names
  run(tmp_path / 'a', tmp_path / 'b.safetensors', 'single_file')
  run(source, tmp_path / 'c.safetensors', 'single_file', dtype='float16')
  b, c = (tensors(tmp_path / f'{n}.safetensors') for n in 'bc')
  check_same(c, {n: x.astype('f2') for n, x in b.items()})
  with pytest.raises(ValueError, match="variant is 'fp16', which is of diff"):
    run(source, tmp_path / 'd', 'orbax', variant='fp16')


def part(single, component, path):
  """A file of one net of a single file, in the original names alone."""
  prefix = ldm_names.PREFIXES[component]
  whole = safetensors.numpy.load_file(single)
  found = {n: x for n, x in whole.items() if n.startswith(prefix)}
  bare = {n.removeprefix(prefix): 2 * x for n, x in found.items()}
  safetensors.numpy.save_file(bare, path)


def test_a_net_of_its_own_replaces_that_of_a_base(tmp_path):
  """In the original names, in diffusers' and as a folder of diffusers."""
  base = TINY / 'base'
  run(base, tmp_path / 'base.safetensors', 'single_file')
  expected = tensors(base)
  for component in ('unet', 'vae'):
    doubled = {
      name: 2 * x if name[0] == component else x for name, x in expected.items()
    }
    file = tmp_path / f'{component}.safetensors'
    part(tmp_path / 'base.safetensors', component, file)
    theirs = tmp_path / f'{component}.diffusers'
    bare = {n: 2 * x for (c, n), x in expected.items() if c == component}
    safetensors.numpy.save_file(bare, theirs)
    folder = tmp_path / f'{component}.folder'
    shutil.copytree(base / component, folder)
    shutil.copy(theirs, folder / 'diffusion_pytorch_model.safetensors')
    for i, source in enumerate((file, theirs, folder)):
      target = tmp_path / f'{component}{i}'
      said = run(source, target, 'diffusers', base=base)
      assert f'{base} for the rest' in said
      check_same(tensors(target), doubled)
      assert (target / component / 'config.json').read_bytes()
  with pytest.raises(
    FileNotFoundError, match='has only vae, no unet: .*--base'
  ):
    run(tmp_path / 'vae.folder', tmp_path / 'x', 'diffusers')
  bare = formats.open_model(tmp_path / 'vae.safetensors')
  with pytest.raises(ValueError, match='8 16 24 24 channels.*give a --base'):
    bare.net('vae')
  with pytest.raises(ValueError, match='of another net'):
    run(
      tmp_path / 'unet.safetensors',
      tmp_path / 'x',
      'diffusers',
      base=TINY / 'refiner',
    )


@pytest.mark.parametrize('zero_snr', [False, True])
def test_what_the_net_predicts(tmp_path, zero_snr):
  """As ComfyUI tells it, by keys, and by modelspec where no key does."""
  shutil.copytree(TINY / 'refiner', tmp_path / 'v')
  path = tmp_path / 'v' / 'scheduler' / 'scheduler_config.json'
  config = json.loads(path.read_text()) | {'prediction_type': 'v_prediction'}
  config |= ldm_file.ZERO_SNR if zero_snr else {}
  path.write_text(json.dumps(config))
  file = tmp_path / 'v.safetensors'
  run(tmp_path / 'v', file, 'single_file', title='Mine')
  header, body = headers.parse(file.read_bytes())
  assert header['v_pred']['shape'] == [0]
  assert ('ztsnr' in header) == zero_snr
  metadata = header['__metadata__']
  assert metadata['modelspec.prediction_type'] == 'v'
  assert metadata['modelspec.title'] == 'Mine'
  assert metadata['modelspec.sai_model_spec'] == '1.0.0'
  ours = json.loads(metadata[ldm_file.OURS])
  del ours['scheduler']
  metadata[ldm_file.OURS] = json.dumps(ours)
  for key in ('v_pred', 'modelspec.prediction_type'):
    (tmp_path / 'a').write_bytes(headers.build(header, body))
    found = formats.open_model(tmp_path / 'a').scheduler
    assert found['prediction_type'] == 'v_prediction'
    trailing = found.get('timestep_spacing') == 'trailing'
    assert (
      found.get('rescale_betas_zero_snr', False)
      == trailing
      == (zero_snr and key == 'v_pred')
    )
    header.pop(key, None)
    header.pop('ztsnr', None)
  metadata.pop('modelspec.prediction_type')
  (tmp_path / 'a').write_bytes(headers.build(header, body))
  found = formats.open_model(tmp_path / 'a').scheduler
  assert found['prediction_type'] == 'epsilon'


def test_targets_are_not_lost(tmp_path, monkeypatch):
  source, target = TINY / 'refiner', tmp_path / 'model'
  said = run(source, target, 'diffusers', dry_run=True)
  assert 'unet: 780 tensors, float32 > the same' in said
  assert 'refiner, predicts epsilon' in said and '0.0068 GB' in said
  assert not list(tmp_path.iterdir())
  run(source, target, 'diffusers', dtype='float16')
  with pytest.raises(FileExistsError, match='model exists: .*--overwrite'):
    run(source, target, 'diffusers')
  before = tensors(target)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(folder_writer, 'model_index_json', interrupt)
    run(source, target, 'diffusers', overwrite=True)
  check_same(tensors(target), before)
  assert [path.name for path in tmp_path.iterdir()] == ['model']
  run(source, target, 'diffusers', overwrite=True)
  check_same(tensors(target), tensors(source))
  (tmp_path / 'other').mkdir()
  with pytest.raises(FileExistsError, match='other is a folder without a mod'):
    run(source, tmp_path / 'other', 'diffusers', overwrite=True)
  with pytest.raises(FileExistsError, match='model holds .*which is read'):
    run(target / 'vae', target, 'diffusers', base=source, overwrite=True)
  assert {path.name for path in tmp_path.iterdir()} == {'model', 'other'}


def interrupt(*args):
  raise KeyboardInterrupt


def test_no_room_on_the_disk(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(OSError, match='has 0.001 GB left, and a takes 0.0068 GB'):
    run(TINY / 'refiner', tmp_path / 'a', 'diffusers')


def test_what_is_not_sdxl(tmp_path):
  for name, message in (
    ('cond_stage_model.x', 'not SDXL but Stable Diffusion 1 or 2'),
    ('lora_unet_x.lora_up.weight', 'not SDXL but a LoRA'),
    ('x', '1 tensors belong to no net of SDXL: x'),
  ):
    headers.sparse(tmp_path / 'a', {name: {'shape': [2], 'dtype': 'F32'}})
    with pytest.raises(ValueError, match=message):
      run(tmp_path / 'a', tmp_path / 'b', 'diffusers')
  with pytest.raises(FileNotFoundError, match='none is not there'):
    run(tmp_path / 'none', tmp_path / 'b', 'diffusers')


def test_the_command(tmp_path):
  def command(*args):
    command = (sys.executable, '-m', 'sdxl_jax.convert', *map(str, args))
    return subprocess.run(command, capture_output=True, text=True)

  target = tmp_path / 'a.safetensors'
  done = command(TINY / 'refiner', target, '--to=single_file')
  assert done.returncode == 0 and f'wrote {target}' in done.stdout, done.stderr
  assert '100%' in done.stderr
  again = command(target, '--to=diffusers')
  assert again.returncode != 0 and 'SOURCE and TARGET must be' in again.stderr
  target.write_bytes(target.read_bytes()[:-4])
  broken = command(target, tmp_path / 'b', '--to=diffusers')
  assert 'error: ' in broken.stderr and 'is no whole safet' in broken.stderr
  assert 'Traceback' not in broken.stderr


@pytest.mark.torch
def test_diffusers_reads_our_single_file(model, single, tmp_path):
  """Its own converter of single files finds the same numbers in ours."""
  pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  kind = diffusers.StableDiffusionXLPipeline
  if model == 'refiner':
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
  loaded = kind.from_single_file(
    str(single),
    config=str(TINY / model),
    local_files_only=True,
    add_watermarker=False,
  )
  for name in folder_reader.load_model_index(TINY / model).components:
    found = getattr(loaded, name).state_dict()
    expected = tensors(TINY / model / name)
    for (_, key), array in expected.items():
      bare = key.removeprefix('text_model.')
      theirs = found[key if key in found else bare]
      np.testing.assert_array_equal(theirs.numpy(), array, key)
