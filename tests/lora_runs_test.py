"""Low-rank factors from training to file to sample, ours and diffusers'."""

import hashlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from sdxl_jax import train
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.data import figures, images
from sdxl_jax.models import lora
from sdxl_jax.sampling import generation, pipelines, png_settings
from sdxl_jax.weights.lora import (
  lora_file,
  lora_names,
  lora_writer,
  published_parts,
  trained_factors,
)
from tests.support import (
  conversions,
  golden_sets,
  random_bases,
  tiny_config,
)

FILES = [
  folder / 'tiny' / 'lora' / f'{name}.safetensors'
  for folder in golden_sets.SETS
  for name in ('kohya', 'peft')
]
BASE = golden_sets.SETS[0] / 'tiny' / 'base'
GROUPS = {
  'linear': dict(
    layers=r'.*/(to_[qkv]|to_out_0|net_0/proj|([qkv]|out)_proj|fc[12])',
    rank=2,
    alpha=4.0,
  ),
  'conv': dict(layers=r'unet/.*/(conv2|conv_shortcut)', rank=3, alpha=1.0),
}


# Every other kind, of which all train at once.
KINDS = {
  'dora': dict(layers=r'unet/.*/attn1/to_[qkv]', rank=2, dora_wd=True),
  'loha': dict(layers=r'unet/.*/attn2/to_[qkv]', rank=2, algo='loha'),
  'lokr': dict(layers=r'unet/.*/(net_2|conv2)', rank=1, algo='lokr'),
  'full': dict(layers=r'unet/.*/proj_in', rank=1, algo='full'),
  'text': dict(layers=r'text_encoder/.*/fc1', rank=1, algo='lokr', factor=2),
}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A workdir with a base model: random, and never trained."""
  folder = tmp_path_factory.mktemp('base')
  return random_bases.save(folder, tiny_config.get_config())


def get_config(base):
  """Returns a config for a few large steps of factors."""
  config = tiny_config.get_config()
  config.unlock()
  config.update(init_from=str(base), trained=('lora',), lora=GROUPS)
  config.data.buckets = ((16, 24),)
  config.samples.update(every=4, size=(16, 24), steps=2, prompts=('a fox',))
  config.optimizer.learning_rate = 0.1
  return config.lock()


@pytest.fixture(scope='module')
def workdir(base, tmp_path_factory):
  """The workdir of a finished run."""
  folder = tmp_path_factory.mktemp('lora')
  assert train.train(get_config(base), folder) == 4
  return folder


@pytest.fixture(scope='module')
def loaded(workdir):
  return pipelines.load(workdir)


def read(path):
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'))


def sample(pipeline):
  settings = dict(steps=2, size=(16, 24), guidance_scale=3.0)
  return generation.generate(pipeline, ['a fox'], **settings)[0]


@pytest.fixture(scope='module')
def samples(loaded):
  return sample(loaded)


def test_a_run_keeps_factors_alone(workdir):
  saved = orbax_checkpoint.find(workdir) / 'state' / '_METADATA'
  arrays = json.loads(saved.read_text())['tree_metadata']
  params = [name for name in arrays if "'params'" in name]
  assert len(params) > 100 and all("'lora'" in name for name in params)
  losses = [
    json.loads(line)['loss']
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  assert len(losses) == 4 and np.isfinite(losses).all()


def test_resuming_equals_no_stop(base, workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  config = get_config(base)
  config.samples.every = 0
  assert train.train(config, tmp_path / 'run') == 4
  a, b = (
    loading.load_trained_lora(orbax_checkpoint.find(f), config)
    for f in (workdir, tmp_path / 'run')
  )
  assert a.factors.keys() == b.factors.keys()
  for key, factors in a.factors.items():
    jax.tree.map(np.testing.assert_array_equal, factors, b.factors[key])


def test_samples_during_and_after_training(base, workdir, samples):
  """Factors beside the kernels sample as merged ones, unlike the base."""
  grid = images.to_float(read(workdir / 'samples' / '0000004.png'))
  alone = samples[0]
  zoom = get_config(base).samples.zoom
  cell = grid[figures.GAP :, figures.GAP :]
  part = cell[: 16 * zoom : zoom, : 24 * zoom : zoom]
  assert np.abs(part - alone).max() < 0.02
  assert np.abs(sample(pipelines.load(base)) - samples).max() > 0.1


def test_averages(workdir):
  last = pipelines.load(workdir, average='none')
  average = pipelines.load(workdir, average='ema')
  equal = jax.tree.map(np.array_equal, last.params, average.params)
  assert not jax.tree.all(equal['unet'])


def data_hash(path):
  """The SHA-256 of all of a file that is behind its header, as A1111 has it."""
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], 'little')
  return hashlib.sha256(data[start:]).hexdigest()


@pytest.mark.parametrize('dialect', ['kohya', 'diffusers'])
def test_a_file_of_a_run(base, workdir, loaded, tmp_path, close, dialect):
  path = tmp_path / 'mine.safetensors'
  conversions.run_lora(workdir, path, dialect)
  merged = pipelines.load(base, loras=[str(path)]).params
  jax.tree.map(lambda a, b: close(a, b, 1e-6), merged, loaded.params)
  if dialect == 'kohya':
    metadata = lora_file.load(path, merged).metadata
    assert metadata['ss_network_dim'] == 'Dynamic'
    assert metadata['modelspec.title'] == 'mine'
    assert (
      'modelspec.prediction_type' not in metadata
    )  # which has no value for x0
    assert metadata['ss_network_module'] == 'networks.lora'
    assert metadata['ss_resolution'] == '(24, 16)'
    assert metadata['modelspec.hash_sha256'] == f'0x{data_hash(path)}'
    assert metadata['sshs_model_hash'] == data_hash(path)


def parts(folder, config):
  """{(net, tensor, part): array} of what a run trained."""
  folder = orbax_checkpoint.find(folder)
  made = loading.load_trained_lora(folder, config, average='none')
  return parts_of(made)


def parts_of(made):
  return {
    (*key, part): array
    for key, delta in made.changes().items()
    for part, array in published_parts.parts_of(delta).items()
  }


@pytest.mark.slow
def test_a_run_of_all_kinds(base, tmp_path, close):
  config = get_config(base).unlock()
  config.lora = {name: group | {'alpha': 2.0} for name, group in KINDS.items()}
  config.samples.every = 0
  config.checkpoint.update(every=2, max_to_keep=2)
  assert train.train(config.lock(), tmp_path / 'whole') == 4
  # From the second step on again: the same numbers.
  shutil.copytree(tmp_path / 'whole', tmp_path / 'again')
  shutil.rmtree(tmp_path / 'again' / 'checkpoints' / '4')
  assert train.train(config, tmp_path / 'again') == 4
  expected = parts(tmp_path / 'whole', config)
  again = parts(tmp_path / 'again', config)
  jax.tree.map(np.testing.assert_array_equal, again, expected)
  before = parts(tmp_path / 'whole' / 'checkpoints' / '2', config)
  # The last block of a text encoder has no part in what the UNet reads.
  moved = {k for k, x in expected.items() if not np.array_equal(before[k], x)}
  still = [k for k in expected.keys() - moved if k[-1] != 'alpha']
  assert {key[0] for key in moved} == {'unet', 'text_encoder'}
  assert all('layers.1.mlp.fc1' in key[1] for key in still), still
  # The file has the same numbers, and makes the same model of the base.
  path = tmp_path / 'mine.safetensors'
  conversions.run_lora(tmp_path / 'whole', path, average='none')
  loaded = pipelines.load(tmp_path / 'whole', average='none').params
  from_file = pipelines.load(base, loras=[str(path)]).params
  jax.tree.map(lambda a, b: close(a, b, 1e-6), from_file, loaded)
  read = lora_file.load(path, loaded)
  jax.tree.map(np.testing.assert_array_equal, parts_of(read), expected)
  metadata = read.metadata
  assert metadata['ss_network_module'] == 'lycoris.kohya'
  assert (metadata['ss_steps'], metadata['ss_seed']) == ('4', '0')
  assert metadata['ss_sd_model_name'] == base.name


def test_a_run_without_factors(base, tmp_path):
  with pytest.raises(ValueError, match="'lora' in config.trained"):
    conversions.run_lora(base, tmp_path / 'x.safetensors')


@pytest.mark.slow
def test_command(tmp_path):
  """The PNG lists the LoRA files that it was sampled with."""
  specs = [str(FILES[0]), f'{FILES[1]}:0.5']
  out = tmp_path / 'out.png'
  command = [sys.executable, '-m', 'sdxl_jax.sample', '--weights', str(BASE)]
  command += ['--prompt=a fox', '--steps=2', '--height=32', '--width=48']
  command += [f'--lora={spec}' for spec in specs] + ['--output', str(out)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert png_settings.load(out).models['lora'] == specs
  expected, _ = generation.generate(
    pipelines.load(BASE, loras=specs), ['a fox'], size=(32, 48), steps=2
  )
  assert np.abs(np.int32(read(out)) - images.to_uint8(expected)[0]).max() <= 1
  command[-3] = '--lora=none.safetensors'
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode and 'LoRA none.safetensors: no such' in done.stderr


def save_ours(path, dialect):
  """Random factors beside many layers of the reference's base, as a file.

  If a text encoder has factors for some of its layers only, as to_q without
  to_out, diffusers does not recognise the key format and drops the factors with
  a warning.
  """
  params = pipelines.load(BASE).params
  targets = tuple(lora.Target(name, **group) for name, group in GROUPS.items())
  tree = lora.init(jax.random.key(0), params, targets)
  tree = jax.tree.map(lambda x: x + 0.1, tree)
  factors = trained_factors.from_training(tree, targets)
  lora_writer.save(path, factors, params, dialect)


@pytest.mark.slow
@pytest.mark.torch
def test_samples_of_diffusers(tmp_path, close, tolerances):
  """Samples equal diffusers', from its files and ours (but PEFT's keys)."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  pytest.importorskip('peft')
  files = {path: path.parents[1] / 'base' for path in FILES}
  for dialect in lora_names.KEY_FORMATS[:4]:
    path = tmp_path / f'{dialect}.safetensors'
    save_ours(path, dialect)
    files[path] = BASE
  rng = np.random.default_rng(0)
  noise = rng.standard_normal((1, 8, 12, 4)).astype(np.float32)
  settings = dict(
    latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
    num_inference_steps=3,
    height=64,
    width=96,
    output_type='latent',
  )
  for path, folder in files.items():
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    plain = theirs('a fox', **settings).images
    theirs.load_lora_weights(path)
    expected = theirs('a fox', **settings).images
    assert (expected - plain).abs().max() > 0.1 * plain.abs().max()
    pipeline = pipelines.load(folder, loras=[str(path)])
    _, ours = generation.generate(
      pipeline, ['a fox'], size=(64, 96), steps=3, init_noise=noise
    )
    limit = tolerances['pipeline_latents_each_step_and_final']
    close(ours.transpose(0, 3, 1, 2), expected.numpy(), limit, path.name)
