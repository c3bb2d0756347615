"""Runs exported as pretrained weights in every format."""

import dataclasses
import functools
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax import sample, train
from sdxl_jax.checkpoints import completion, export
from sdxl_jax.ema import transform
from sdxl_jax.models import from_config
from sdxl_jax.sampling import pipelines
from sdxl_jax.weights import net_shapes, pretrained, read_options
from sdxl_jax.weights.diffusers import (
  folder_reader,
  folder_writer,
  tensor_names,
)
from sdxl_jax.weights.single_file import ldm_writer
from tests.support import (
  autoencoder_config,
  folders,
  golden_sets,
  random_params,
  random_runs,
  tiny_config,
)
from tests.support.conversions import check_same, run, tensors

TINY = golden_sets.SETS[0] / 'tiny'


@pytest.fixture(scope='module', params=['base', 'refiner'])
def model(request):
  return request.param


def tiny_run(model, source):
  """The config of a run that trains a UNet from scratch, on random nets."""
  tiny = tiny_config.get_config().unlock()
  tiny.vae = autoencoder_config.get_config().vae
  tiny.init_from = str(source)
  tiny.trained = tiny.from_scratch = ('unet',)
  tiny.total_steps = 2
  tiny.data.buckets = ((16, 24),)
  tiny.samples.size = (16, 24)
  tiny.unet.in_channels = tiny.unet.out_channels = 4
  # EMA and last parameters must differ.
  tiny.optimizer.update(ema_decay=0.5, learning_rate=0.05)
  tiny.schedule.update(prediction='eps', zero_terminal_snr=False)
  if model == 'refiner':
    tiny.refiner, tiny.text_encoder, tiny.uncond = True, None, 'empty'
    tiny.unet.update(context_dim=8, vector_dim=8 + 5 * 4)
    tiny.data.scenes.scored = True
    tiny.loss.timestep_range = (0, 200)
  return tiny.lock()


def write_random(config, folder):
  """Writes a diffusers folder of all nets of a config, with random numbers."""
  nets = from_config.make_model(config)

  def random_net(name):
    shapes = net_shapes.abstract_params(nets.configs[name])
    zeros = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
    params = jax.tree.map(np.float32, random_params.draw(zeros))
    return pretrained.from_params(
      name, nets.configs[name], lambda target: params
    )

  index = pretrained.ModelIndex(config.refiner, config.uncond == 'zeros')
  loaders = {n: functools.partial(random_net, n) for n in index.components}
  model = pretrained.Model(
    'random', folder, loaders, index, pretrained.SCHEDULER
  )
  folder_writer.save(folder, completion.with_tokenizers(model))


@pytest.fixture(scope='module')
def started(model, tmp_path_factory):
  """The folder of random nets from which a run starts."""
  folder = tmp_path_factory.mktemp('start') / model
  write_random(tiny_run(model, ''), folder)
  return folder


@pytest.fixture(scope='module')
def workdir(model, started, tmp_path_factory):
  path = tmp_path_factory.mktemp('run') / model
  train.train(tiny_run(model, started), path)
  return path


@pytest.mark.slow
def test_an_exported_run_has_the_same_parameters(started, workdir, tmp_path):
  """EMA or last parameters of the UNet, and the frozen nets of its start."""

  def numbers(path, **settings):
    """Loads {(net, published name): array}, stacked or not."""
    params = pipelines.load(path, **settings).params
    return {
      (component, name): tensor.read()
      for component in params
      for name, tensor in tensor_names.tensors(params[component]).items()
    }

  for average, to in (('ema', 'diffusers'), ('none', 'single_file')):
    run(workdir, tmp_path / to, to, average=average)
    check_same(numbers(tmp_path / to), numbers(workdir, average=average))
  last = workdir / 'checkpoints' / '2'
  run(last, tmp_path / 'orbax', 'orbax', dtype='bfloat16')
  half = {'dtype': 'bfloat16', 'vae_dtype': 'bfloat16'}
  check_same(numbers(tmp_path / 'orbax', **half), numbers(workdir, **half))
  frozen, exported = tensors(started), tensors(tmp_path / 'diffusers')
  assert frozen.keys() == exported.keys()
  for (component, name), array in frozen.items():
    same = np.array_equal(exported[component, name], array)
    assert same == (component != 'unet') or array.ndim == 1


def test_an_autoencoder_of_a_run_replaces_that_of_a_base(tmp_path):
  config = autoencoder_config.get_config().unlock()
  config.vae.update(latent_channels=4, scaling_factor=0.5)
  state = random_runs.save(config.lock(), tmp_path / 'run')
  with pytest.raises(FileNotFoundError, match='has only vae, no unet'):
    run(tmp_path / 'run', tmp_path / 'a', 'diffusers')
  run(tmp_path / 'run', tmp_path / 'a', 'diffusers', base=TINY / 'base')
  vae_config, params = folders.load_component(tmp_path / 'a', 'vae')
  assert vae_config.scaling_factor == 0.5
  average = transform.ema_params(state.opt_state)['vae']
  jax.tree.map(np.testing.assert_array_equal, params, average)
  assert 'its latents are scaled by 0.5' in run(
    tmp_path / 'a', tmp_path / 'b', 'single_file', dry_run=True
  )


def save_config(config, workdir):
  """Saves a run of which nothing but its config is read."""
  random_runs.save_state({'x': np.zeros(1)}, config, workdir)
  return workdir


def test_a_run_that_started_from_a_run(tmp_path):
  """Its frozen nets are those of the first, whose config decides as its own."""
  first = autoencoder_config.get_config().unlock()
  first.vae.scaling_factor = 0.5
  second = tiny_run('refiner', save_config(first, tmp_path / 'first')).unlock()
  second.trained = second.from_scratch = ('unet', 'text_encoder_2')
  second.vae = first.vae
  path = save_config(second, tmp_path / 'second')
  model = export.open_source(path)
  assert model.is_complete
  assert model.net('vae').config().scaling_factor == 0.5
  options = read_options.ReadOptions(prediction='v')
  with pytest.raises(ValueError, match='second is a workdir, whose config'):
    export.open_source(path, options=options)


def test_what_a_start_has_beside_its_nets_is_listed(tmp_path):
  config = tiny_run('refiner', tmp_path / 'vae.safetensors').unlock()
  config.trained = config.from_scratch = ('unet', 'text_encoder_2')
  stored = TINY / 'base' / 'vae' / 'diffusion_pytorch_model.safetensors'
  arrays = safetensors.numpy.load_file(stored)
  arrays = {f'vae.{name}': array for name, array in arrays.items()}
  arrays['alphas_cumprod'] = np.zeros(1, np.float32)
  safetensors.numpy.save_file(arrays, config.init_from)
  model = export.open_source(save_config(config, tmp_path / 'run'))
  assert model.passed_over == ('alphas_cumprod',)


@pytest.mark.parametrize('part', ['file', 'folder', 'run'])
def test_a_base_that_is_no_model(part, tmp_path):
  """A net alone cannot complete another one."""
  base = TINY / 'base' / 'vae'
  if part == 'file':
    base = base / 'diffusion_pytorch_model.safetensors'
  if part == 'run':
    base = save_config(autoencoder_config.get_config(), tmp_path / 'run')
  with pytest.raises(FileNotFoundError, match='has only vae, no unet'):
    export.open_source(TINY / 'base' / 'unet', base)


def test_zero_snr_is_refused_where_the_base_predicts_eps():
  unet, options = TINY / 'base' / 'unet', read_options.ReadOptions
  with pytest.raises(ValueError, match='the UNet predicts eps'):
    export.open_source(unet, TINY / 'base', options=options(zero_snr=True))
  model = export.open_source(
    unet, TINY / 'base', options=options(prediction='v', zero_snr=True)
  )
  assert model.scheduler['prediction_type'] == 'v_prediction'
  assert model.scheduler['rescale_betas_zero_snr']


def test_runs_that_no_format_has(tmp_path):
  random_runs.save(tiny_config.get_config(), tmp_path / 'run')
  with pytest.raises(
    ValueError, match='identity autoencoder .* no counterpart'
  ):
    run(tmp_path / 'run', tmp_path / 'a', 'diffusers')


def test_a_single_file_cannot_express_x0(tmp_path):
  model = folder_reader.open_model(TINY / 'base')
  scheduler = model.scheduler | {'prediction_type': 'sample'}
  model = dataclasses.replace(model, scheduler=scheduler)
  with pytest.raises(ValueError, match="predicts 'sample', and a single file"):
    ldm_writer.metadata(model, '')


@pytest.mark.torch
def test_diffusers_samples_alike_with_a_trained_model(
  model, workdir, tmp_path, close, tolerances, monkeypatch
):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  run(workdir, tmp_path / 'folder', 'diffusers')
  rng = np.random.default_rng(0)
  settings = {'guidance_scale': 5.0}
  size = (16, 24)
  noise = rng.normal(size=(1, 8, 12, 4)).astype(np.float32)
  ours = pipelines.load(workdir)
  torch_noise = torch.tensor(noise.transpose(0, 3, 1, 2))
  if model == 'base':
    reference = diffusers.StableDiffusionXLPipeline.from_pretrained(
      tmp_path / 'folder', add_watermarker=False
    )
    inputs = {'latents': torch_noise, 'height': 16, 'width': 24}
    own = {'init_noise': noise}
  else:
    reference = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
      tmp_path / 'folder', add_watermarker=False
    )
    latents = rng.normal(size=noise.shape).astype(np.float32)
    noises = iter([torch_noise])
    inputs = {
      'image': torch.tensor(latents.transpose(0, 3, 1, 2)),
      'strength': 0.5,
    }
    inputs |= {'original_size': size, 'target_size': size}
    own = {'latents': latents, 'strength': 0.5, 'init_noise': noise}
    module = sys.modules[reference.__module__]
    monkeypatch.setattr(
      module, 'randn_tensor', lambda *args, **kwargs: next(noises)
    )
  reference.set_progress_bar_config(disable=True)
  expected = reference(
    'a fox', **inputs, num_inference_steps=6, output_type='latent', **settings
  ).images.numpy()
  _, latents = sample.generate(
    ours, ['a fox'], size=size, steps=6, **own, **settings
  )
  limit = tolerances['pipeline_latents_each_step_and_final']
  close(latents, expected.transpose(0, 2, 3, 1), limit)
  # Other parameters of the same run give another result.
  last = pipelines.load(workdir, average='none')
  _, other = sample.generate(
    last, ['a fox'], size=size, steps=6, **own, **settings
  )
  assert np.abs(other - latents).max() > 100 * limit * np.abs(latents).max()
