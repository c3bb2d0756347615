"""Relatives of SDXL, whole runs against live diffusers.

Pruned UNets, nets of continuous noise levels (EDM) and the tiny autoencoder,
each from a folder and from a single file.
"""

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import pytest

from sdxl_jax.models import tiny_vae
from sdxl_jax.sampling import generation, pipelines
from sdxl_jax.weights import formats
from sdxl_jax.weights.diffusers import edm_config, scheduler_config
from sdxl_jax.weights.single_file import ldm_writer
from tests.support import folders, random_nets

SIZE = 64, 48
PROMPTS = ['a red fox', 'snow']
TINY = tiny_vae.TinyConfig(features=8, decoder_blocks=(1, 1, 1, 1))


@dataclasses.dataclass(frozen=True)
class Kind:
  """What differs from the tiny base."""

  unet: dict = dataclasses.field(default_factory=dict)
  autoencoder: Any = None  # config
  scheduler: dict | None = None


def shifted_vae():
  """The tiny base's autoencoder with Playground's mean and std of latents."""
  config = folders.load_config(random_nets.TINY / 'base', 'vae')
  return dataclasses.replace(
    config,
    scaling_factor=0.5,
    latents_mean=(-1.6574, 1.886, -1.383, 2.5155),
    latents_std=(8.4927, 5.9022, 6.5498, 5.2299),
  )


KINDS = {
  # Blocks of their own depth and one residual block in the middle, as SSD-1B.
  'pruned': Kind(
    {
      'transformer_depth': (0, 1, 2),
      'up_transformer_depth': (0, (1, 2, 1), (2, 1, 3)),
      'mid_transformer_depth': 0,
    }
  ),
  # One block less, and none in the middle, as KOALA-700M.
  'no middle': Kind(
    {
      'layers_per_block': 1,
      'transformer_depth': (0, 2, 1),
      'mid_transformer_depth': None,
    }
  ),
  'playground': Kind(
    autoencoder=shifted_vae(), scheduler=edm_config.PLAYGROUND
  ),
  'cosxl': Kind(scheduler=edm_config.COSXL),
  'tiny autoencoder': Kind(autoencoder=TINY),
  'tiny and edm': Kind(autoencoder=TINY, scheduler=edm_config.COSXL),
}


def write(folder, kind):
  """Writes a kind of model, as a diffusers folder."""
  random_nets.write(folder, vae=kind.autoencoder, **kind.unet)
  if kind.scheduler:
    path = folder / 'scheduler' / 'scheduler_config.json'
    path.write_text(json.dumps(kind.scheduler))
    index = json.loads((folder / 'model_index.json').read_text())
    index['scheduler'] = 'diffusers', kind.scheduler['_class_name']
    (folder / 'model_index.json').write_text(json.dumps(index))
  return folder


def load(path):
  """A Pipeline, and the sampler that its scheduler's config names."""
  pipeline = dataclasses.replace(pipelines.load(path), size=SIZE)
  sampler, note = scheduler_config.sampler_of(pipeline.scheduler)
  assert note is None
  return pipeline, sampler


def noise():
  rng = np.random.default_rng(7)
  shape = 2, SIZE[0] // 8, SIZE[1] // 8, 4
  return rng.normal(size=shape).astype(np.float32)


def nchw(x):
  return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def diffusers_pipeline(folder, name='StableDiffusionXLPipeline'):
  diffusers = pytest.importorskip('diffusers')
  pipeline = getattr(diffusers, name).from_pretrained(folder)
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


def check_images(found, expected):
  """Images in [-1, 1] and in [0, 1], as files would have them."""
  found = np.round((np.asarray(found) + 1) * 127.5)
  assert np.abs(found - np.round(expected * 255)).max() <= 2


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:__array__ implementation')
@pytest.mark.parametrize('name', KINDS)
def test_live_relatives(name, tmp_path, close, tolerances):
  torch = pytest.importorskip('torch')
  folder = write(tmp_path / 'model', KINDS[name])
  theirs = diffusers_pipeline(folder)
  pipeline, sampler = load(folder)
  options = {'steps': 4, 'sampler': sampler, 'init_noise': noise()}
  images, latents = generation.generate(pipeline, PROMPTS, **options)
  for output in 'latent', 'np':
    expected = theirs(
      prompt=PROMPTS,
      height=SIZE[0],
      width=SIZE[1],
      num_inference_steps=4,
      guidance_scale=5.0,
      latents=torch.from_numpy(nchw(noise())),
      output_type=output,
    ).images
    if output == 'latent':
      limit = tolerances['pipeline_latents_each_step_and_final']
      close(nchw(latents), expected.numpy(), limit)
    else:
      check_images(images, expected)
  # The same from a single file, and bit for bit.
  model, file = formats.open_model(folder), tmp_path / 'model.safetensors'
  if isinstance(KINDS[name].autoencoder, tiny_vae.TinyConfig):
    with pytest.raises(ValueError, match='a TAESD, which single files of a wh'):
      ldm_writer.save(file, model)
    return
  ldm_writer.save(file, model)
  pipeline, sampler = load(file)
  assert sampler == options['sampler']
  again = generation.generate(pipeline, PROMPTS, **options)
  np.testing.assert_array_equal(again[1], latents)
  np.testing.assert_array_equal(again[0], images)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:__array__ implementation')
def test_live_image_to_image(tmp_path, monkeypatch, close, tolerances):
  """On continuous noise levels, with the encoder of a TAESD."""
  torch = pytest.importorskip('torch')
  folder = write(tmp_path / 'model', KINDS['tiny and edm'])
  theirs = diffusers_pipeline(folder, 'StableDiffusionXLImg2ImgPipeline')
  monkeypatch.setattr(
    sys.modules[type(theirs).__module__],
    'randn_tensor',
    lambda *args, **kwargs: torch.from_numpy(nchw(noise())),
  )
  rng = np.random.default_rng(3)
  image = rng.uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)
  expected = theirs(
    prompt=PROMPTS,
    image=torch.from_numpy(nchw(image) / 2 + 0.5),
    strength=0.6,
    num_inference_steps=5,
    guidance_scale=5.0,
    output_type='latent',
  ).images
  pipeline, sampler = load(folder)
  _, found = generation.generate(
    pipeline,
    PROMPTS,
    image=image,
    strength=0.6,
    steps=5,
    sampler=sampler,
    init_noise=noise(),
  )
  limit = tolerances['pipeline_latents_each_step_and_final']
  close(nchw(found), expected.numpy(), limit)


def test_a_refiner_needs_timesteps(tmp_path):
  pipeline, sampler = load(write(tmp_path / 'model', KINDS['cosxl']))
  refiner = pipelines.load(random_nets.TINY / 'refiner')
  with pytest.raises(ValueError, match='a refiner takes over at a timestep'):
    generation.generate(pipeline, ['a'], refiner=refiner, sampler=sampler)
