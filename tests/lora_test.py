"""Low-rank factors from training to file to picture, ours and diffusers'."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from sdxl_jax import generation, pipelines, requests, train
from sdxl_jax.data import images
from sdxl_jax.training import checkpoint
from sdxl_jax.weights import lora_files
from tests import golden_sets, published_config, tiny_config

BASE = published_config.WEIGHTS
FILES = [
  folder / 'tiny' / 'lora' / f'{name}.safetensors'
  for folder in golden_sets.SETS
  for name in ('kohya', 'peft')
]
SETTINGS = dict(size=(32, 48), steps=2)
NETS = ('unet', 'text_encoder', 'text_encoder_2')


def get_config():
  """A few steps beside the reference's tiny base, large ones."""
  config = published_config.get_config()
  config.unlock()
  config.trained = ('lora',)
  config.lora.linear = dict(
    layers=r'(unet/(down_blocks_1|mid_block)|text_encoder.*)/.*/'
    r'(to_[qkv]|to_out_0|net_0/proj|fc1)',
    rank=2,
    alpha=4.0,
  )
  config.lora.conv = dict(
    layers=r'unet/up_blocks_1/.*/(conv2|conv_shortcut)', rank=3, alpha=1.0
  )
  config.data.buckets = ((32, 48),)
  config.samples.update(every=4, size=(32, 48), steps=2, prompts=('a fox',))
  config.optimizer.learning_rate = 0.1
  return config.lock()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Of a finished run."""
  folder = tmp_path_factory.mktemp('lora')
  assert train.train(get_config(), folder) == 4
  return folder


@pytest.fixture(scope='module')
def loaded(workdir):
  return pipelines.load(workdir)


def read(path):
  with Image.open(path) as picture:
    return np.asarray(picture.convert('RGB'))


def draw(pipeline):
  return generation.generate(pipeline, ['a fox', 'a pig'], **SETTINGS)[0]


@pytest.fixture(scope='module')
def drawn(loaded):
  return draw(loaded)


def test_a_run_keeps_factors_alone(workdir):
  saved = checkpoint.find(workdir) / 'state' / '_METADATA'
  arrays = json.loads(saved.read_text())['tree_metadata']
  params = [name for name in arrays if "'params'" in name]
  assert len(params) > 100 and all("'lora'" in name for name in params)
  losses = [
    json.loads(line)['loss']
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  assert len(losses) == 4 and np.isfinite(losses).all()


def test_resuming_equals_no_stop(workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  config = get_config()
  config.samples.every = 0
  assert train.train(config, tmp_path / 'run') == 4
  a, b = (
    pipelines.load_trained_lora(checkpoint.find(f), config)
    for f in (workdir, tmp_path / 'run')
  )
  assert a.factors.keys() == b.factors.keys()
  for key, factors in a.factors.items():
    jax.tree.map(np.testing.assert_array_equal, factors, b.factors[key])


def test_pictures_during_and_after_training(workdir, drawn):
  """By added products, and by merged ones; and not those of the base."""
  config = get_config()
  grid = images.to_float(read(workdir / 'samples' / '0000004.png'))
  alone = drawn[0]
  part = grid[: alone.shape[0], : alone.shape[1]]
  before = draw(pipelines.load(BASE))
  assert np.abs(part - alone).max() < 0.02 * config.samples.zoom
  assert np.abs(before - drawn).max() > 0.1


def test_averages(workdir):
  last = pipelines.load(workdir, average='none')
  average = pipelines.load(workdir, average='ema')
  equal = jax.tree.map(np.array_equal, last.params, average.params)
  assert jax.tree.all(equal['vae']) and not jax.tree.all(equal['unet'])


@pytest.mark.parametrize('dialect', ['kohya', 'diffusers'])
def test_a_file_of_a_run(workdir, loaded, tmp_path, close, dialect):
  path = tmp_path / 'mine.safetensors'
  pipelines.save_lora(workdir, path, dialect)
  base = pipelines.load(BASE, loras=[str(path)])
  jax.tree.map(lambda a, b: close(a, b, 1e-6), base.params, loaded.params)
  if dialect == 'kohya':
    told = lora_files.load(path, base.params).metadata
    assert told['ss_network_dim'] == 'Dynamic'
    assert told['modelspec.title'] == 'mine'
    assert told['modelspec.prediction_type'] == 'epsilon'


def test_a_run_without_factors(workdir, tmp_path):
  config = tiny_config.get_config()
  config.total_steps = config.checkpoint.every = 1
  config.data.buckets = ((16, 16),)
  train.train(config, tmp_path / 'whole')
  with pytest.raises(ValueError, match="'lora' in config.trained"):
    pipelines.save_lora(tmp_path / 'whole', tmp_path / 'x.safetensors')


def test_command(tmp_path):
  """A picture tells which files it was drawn with."""
  specs = [str(FILES[0]), f'{FILES[1]}:0.5']
  out = tmp_path / 'out.png'
  command = [sys.executable, '-m', 'sdxl_jax.sample', '--weights', str(BASE)]
  command += ['--prompt=a fox', '--steps=2', '--height=32', '--width=48']
  command += [f'--lora={spec}' for spec in specs] + ['--output', str(out)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  _, models = requests.from_text(out)
  assert models['lora'] == specs
  expected = draw(pipelines.load(BASE, loras=specs))[:1]
  assert np.abs(np.int32(read(out)) - images.to_uint8(expected)[0]).max() <= 1
  command[-3] = '--lora=none.safetensors'
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode and 'LoRA none.safetensors: no such' in done.stderr


@pytest.mark.torch
def test_pictures_of_diffusers(workdir, tmp_path, close, tolerances):
  """With the same file, the reference's and our own in two dialects."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  pytest.importorskip('peft')
  files = {path: path.parent.parent / 'base' for path in FILES}
  for dialect in 'kohya', 'diffusers':
    path = tmp_path / f'{dialect}.safetensors'
    pipelines.save_lora(workdir, path, dialect)
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
  for path, base in files.items():
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(base)
    theirs.set_progress_bar_config(disable=True)
    plain = theirs('a fox', **settings).images
    theirs.load_lora_weights(path)
    expected = theirs('a fox', **settings).images
    assert (expected - plain).abs().max() > 0.1 * plain.abs().max()
    pipeline = pipelines.load(base, loras=[str(path)])
    _, ours = generation.generate(
      pipeline, ['a fox'], size=(64, 96), steps=3, init_noise=noise
    )
    limit = tolerances['pipeline_latents_each_step_and_final']
    close(ours.transpose(0, 3, 1, 2), expected.numpy(), limit, path.name)
