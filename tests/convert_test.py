"""Conversions of weights from any format to any other, and back."""

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
from sdxl_jax.weights import formats, read_options
from sdxl_jax.weights.diffusers import folder_reader, folder_writer
from sdxl_jax.weights.single_file import (
  ldm_names,
  ldm_reader,
  prediction_markers,
)
from tests.support import folders, golden_sets, headers, learned_words
from tests.support.conversions import check_same, run, tensors

TINY = golden_sets.SETS[0] / 'tiny'
MODELS = ['base', 'refiner']
ROOT = pathlib.Path(__file__).parent.parent


def read_without_version(path):
  value = json.loads(path.read_text())
  return {k: v for k, v in value.items() if k != '_diffusers_version'}


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
  tokenize, tokenize_back = map(
    tokenizer.load, (TINY / model, tmp_path / 'back')
  )
  prompts = ['a fox!! naïve', '!', '']
  np.testing.assert_array_equal(tokenize_back(prompts), tokenize(prompts))


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
    loaded = pipelines.load(path)
    version = {'_diffusers_version': ''}
    assert loaded.scheduler | version == expected.scheduler | version
    for field in ('model', 'force_zeros', 'size'):
      assert getattr(loaded, field) == getattr(expected, field)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)


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
    _, loaded = net.load(scan_blocks=scan)
    _, expected = folders.load_component(folder, 'unet', scan_blocks=scan)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def guide_snippet():
  """Returns the guide's example of reading an export in another project."""
  text = (ROOT / 'sdxl_jax' / 'weights' / 'README.md').read_text()
  return re.search(r'```python\n(import jax.*?)```', text, re.DOTALL)[1]


CHECK = """
import json, sys
config = json.load(open('EXPORT/unet/config.json'))
assert not {'sdxl_jax', 'transformers', 'flax'} & set(sys.modules)
kernel = params['mid_block']['resnets_0']['conv1']['kernel']
print(len(kernel.sharding.device_set), config['in_channels'])
print(float(abs(kernel).sum()))
"""


def test_an_export_is_read_with_orbax_alone(tmp_path):
  path = tmp_path / 'EXPORT'
  run(TINY / 'base', path, 'orbax')
  code = (guide_snippet() + CHECK).replace('EXPORT', str(path))
  flags = '--xla_force_host_platform_device_count=4'
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  counts, total = done.stdout.splitlines()
  assert counts == '4 4'
  _, params = folders.load_component(TINY / 'base', 'unet')
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


def save_doubled(single, component, path):
  """Writes one net of a single file, doubled, in original names alone."""
  prefix = ldm_names.PREFIXES[component]
  bare = {
    name.removeprefix(prefix): 2 * array
    for name, array in safetensors.numpy.load_file(single).items()
    if name.startswith(prefix)
  }
  safetensors.numpy.save_file(bare, path)


def test_a_single_net_replaces_that_of_a_base(tmp_path):
  """In original names, in diffusers' names and as a diffusers folder."""
  base = TINY / 'base'
  run(base, tmp_path / 'base.safetensors', 'single_file')
  expected = tensors(base)
  for component in ('unet', 'vae'):
    doubled = {
      name: 2 * x if name[0] == component else x for name, x in expected.items()
    }
    file = tmp_path / f'{component}.safetensors'
    save_doubled(tmp_path / 'base.safetensors', component, file)
    bare_file = tmp_path / f'{component}.diffusers'
    bare = {n: 2 * x for (c, n), x in expected.items() if c == component}
    safetensors.numpy.save_file(bare, bare_file)
    folder = tmp_path / f'{component}.folder'
    shutil.copytree(base / component, folder)
    shutil.copy(bare_file, folder / 'diffusion_pytorch_model.safetensors')
    for i, source in enumerate((file, bare_file, folder)):
      target = tmp_path / f'{component}{i}'
      printed = run(source, target, 'diffusers', base=base)
      assert f'{base} for the rest' in printed
      check_same(tensors(target), doubled)
      assert (target / component / 'config.json').read_bytes()
  with pytest.raises(
    FileNotFoundError, match='has only vae, no unet: .*--base'
  ):
    run(tmp_path / 'vae.folder', tmp_path / 'x', 'diffusers')
  bare = formats.open_model(tmp_path / 'vae.safetensors')
  with pytest.raises(ValueError, match='8 16 24 24 channels.*pass a --base'):
    bare.net('vae')
  with pytest.raises(ValueError, match='of another net'):
    run(
      tmp_path / 'unet.safetensors',
      tmp_path / 'x',
      'diffusers',
      base=TINY / 'refiner',
    )


@pytest.mark.parametrize('zero_snr', [False, True])
def test_prediction_type(tmp_path, zero_snr):
  """By the keys that ComfyUI reads, and by modelspec where they are missing."""
  shutil.copytree(TINY / 'refiner', tmp_path / 'v')
  path = tmp_path / 'v' / 'scheduler' / 'scheduler_config.json'
  config = json.loads(path.read_text()) | {'prediction_type': 'v_prediction'}
  config |= prediction_markers.ZERO_SNR if zero_snr else {}
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
  ours = json.loads(metadata[ldm_reader.OURS])
  del ours['scheduler']
  metadata[ldm_reader.OURS] = json.dumps(ours)
  for key in ('v_pred', 'modelspec.prediction_type'):
    (tmp_path / 'a').write_bytes(headers.build(header, body))
    scheduler = formats.open_model(tmp_path / 'a').scheduler
    assert scheduler['prediction_type'] == 'v_prediction'
    is_trailing = scheduler.get('timestep_spacing') == 'trailing'
    has_zero_snr = scheduler.get('rescale_betas_zero_snr', False)
    assert is_trailing == has_zero_snr == (zero_snr and key == 'v_pred')
    header.pop(key, None)
    header.pop('ztsnr', None)
  metadata.pop('modelspec.prediction_type')
  (tmp_path / 'a').write_bytes(headers.build(header, body))
  scheduler = formats.open_model(tmp_path / 'a').scheduler
  assert scheduler['prediction_type'] == 'epsilon'


def test_targets_are_not_lost(tmp_path, monkeypatch):
  source, target = TINY / 'refiner', tmp_path / 'model'
  printed = run(source, target, 'diffusers', dry_run=True)
  assert 'unet: 780 tensors, float32 > the same' in printed
  assert 'refiner, predicts epsilon' in printed and '0.0068 GB' in printed
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
  with pytest.raises(
    FileExistsError, match='model is a folder, which a file does'
  ):
    run(source, target, 'single_file', overwrite=True)
  (tmp_path / 'file').touch()
  with pytest.raises(
    FileExistsError, match='file is a file, which a folder does'
  ):
    run(source, tmp_path / 'file', 'orbax', overwrite=True)
  assert {p.name for p in tmp_path.iterdir()} == {'model', 'other', 'file'}


def interrupt(*args):
  raise KeyboardInterrupt


def test_a_full_disk(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(OSError, match='has 0.001 GB left, and a takes 0.0068 GB'):
    run(TINY / 'refiner', tmp_path / 'a', 'diffusers')


def test_tensors_beside_the_nets(tmp_path):
  """Those that change nothing are counted; others only go with a flag."""
  path = tmp_path / 'a.safetensors'
  run(TINY / 'refiner', path, 'single_file')
  arrays = safetensors.numpy.load_file(path)
  arrays |= {name: np.ones(4, np.float32) for name in ('betas', 'scale.betas')}
  safetensors.numpy.save_file(arrays, path)
  options = {'base': TINY / 'refiner'}
  printed = run(path, tmp_path / 'b', 'diffusers', **options)
  assert 'note: passed over 3 tensors that no net reads: betas, ' in printed
  check_same(tensors(tmp_path / 'b'), tensors(TINY / 'refiner'))
  arrays['bundle_emb.x'] = np.ones((1, 16), np.float32)
  safetensors.numpy.save_file(arrays, path)
  with pytest.raises(ValueError, match='1 tensor would change.*bundle_emb.x'):
    run(path, tmp_path / 'c', 'diffusers', **options)
  options['options'] = read_options.ReadOptions(skip_unsupported=True)
  printed = run(path, tmp_path / 'c', 'diffusers', **options)
  assert 'left out 1 tensor that would change the image: emb' in printed
  check_same(tensors(tmp_path / 'c'), tensors(TINY / 'refiner'))


def test_other_models_are_refused(tmp_path):
  for name, message in (
    ('cond_stage_model.x', 'not SDXL but Stable Diffusion 1 or 2'),
    ('lora_unet_x.lora_up.weight', 'not SDXL but a LoRA'),
    ('x', '1 tensor of no net of SDXL: x'),
  ):
    headers.sparse(tmp_path / 'a', {name: {'shape': [2], 'dtype': 'F32'}})
    with pytest.raises(ValueError, match=message):
      run(tmp_path / 'a', tmp_path / 'b', 'diffusers')
  with pytest.raises(FileNotFoundError, match='none does not exist'):
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
  assert again.returncode != 0 and 'pass SOURCE and TARGET' in again.stderr
  target.write_bytes(target.read_bytes()[:-4])
  broken = command(target, tmp_path / 'b', '--to=diffusers')
  assert (
    'error: ' in broken.stderr
    and 'truncated or corrupt safetens' in broken.stderr
  )
  assert 'Traceback' not in broken.stderr


@pytest.mark.torch
def test_diffusers_reads_our_single_file(model, single, tmp_path):
  """Its own converter of single files reads the same numbers from ours."""
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
    state = getattr(loaded, name).state_dict()
    expected = tensors(TINY / model / name)
    for (_, key), array in expected.items():
      bare = key.removeprefix('text_model.')
      tensor = state[key if key in state else bare]
      np.testing.assert_array_equal(tensor.numpy(), array, key)


def test_added_tokens_stay(tmp_path):
  """Folder > folder > single file > folder: embeddings and tokens."""
  words = ['<s0>', '<s1>', 'MyTok']
  source = learned_words.folder(tmp_path / 'source', words, 49407)
  copy, file, back = (tmp_path / n for n in ('copy', 'x.safetensors', 'back'))
  run(source, copy, 'diffusers')
  note = 'added tokens (<s0>, <s1>, MyTok): they are in the metadata'
  assert note in run(copy, file, 'single_file')
  assert note in run(file, tmp_path / 'y', 'single_file', dry_run=True)
  run(file, back, 'diffusers')
  prompts = ['a <s0><S1> mytok!', '']
  expected = tokenizer.load(source)(prompts)
  assert (expected >= 49408).sum() == 6
  for path in (copy, back):
    check_same(tensors(path), tensors(source))
    np.testing.assert_array_equal(tokenizer.load(path)(prompts), expected)
  for path in (copy, file, back):
    for name in ('text_encoder', 'text_encoder_2'):
      config = formats.open_model(path).net(name).config()
      assert (config.vocab_size, config.eos_token_id) == (49411, 49407)
  pipeline = pipelines.load(file)
  np.testing.assert_array_equal(pipeline.tokenize(prompts), expected)


@pytest.mark.parametrize(
  'token', [{'id': '1', 'content': 'a'}, {'id': 1}, 'a', {'content': 'a'}]
)
def test_corrupt_added_tokens_are_refused(token, tmp_path):
  path = tmp_path / 'file.safetensors'
  text = json.dumps({'added_tokens': {'tokenizer': [token]}})
  safetensors.numpy.save_file({'a': np.zeros(1)}, path, {'sdxl_jax': text})
  with pytest.raises(ValueError, match="metadata 'sdxl_jax' is corrupt"):
    formats.added_tokens(path)
