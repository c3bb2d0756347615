"""Scaling of latents: there and back, as diffusers has it, and measured."""

import json
import shutil

import jax
import numpy as np
import pytest

from sdxl_jax import sample
from sdxl_jax.models import latent_scaling, vae
from sdxl_jax.sampling import pipelines

MEAN, STD = (0.5, -1.0, 2.0, 0.0), (1.0, 0.5, 2.0, 3.0)
SHIFTED = vae.VAEConfig(scaling_factor=0.25, latents_mean=MEAN, latents_std=STD)


@pytest.mark.parametrize('config', [vae.VAEConfig(), SHIFTED])
def test_there_and_back(config):
  z = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
  scaled = latent_scaling.scale(config, z)
  np.testing.assert_allclose(
    latent_scaling.unscale(config, scaled), z, atol=1e-6
  )
  mean, std = np.array(config.latents_mean or 0), config.latents_std or 1
  expected = (z - mean) * config.scaling_factor / np.array(std)
  np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  ('logvar', 'std'), [(-100, np.exp(-15)), (0, 1), (100, np.exp(10))]
)
def test_the_variance_is_clamped(logvar, std):
  mean, noise = np.full((1, 2, 2, 3), 2.0), np.ones((1, 2, 2, 3))
  moments = np.concatenate([mean, np.full_like(mean, logvar)], axis=-1)
  config = vae.VAEConfig(scaling_factor=0.5)
  x = latent_scaling.sample(config, moments, noise)
  np.testing.assert_allclose(x, 0.5 * (2 + std), rtol=1e-6)


def test_measured_latents_are_standard():
  """Samples, scaled by what their moments say, have mean 0 and variance 1."""
  rng = np.random.default_rng(0)
  mean = np.array(MEAN) + 2 * rng.normal(size=(8, 32, 32, 4))
  moments = np.concatenate([mean, rng.normal(size=mean.shape)], axis=-1)
  means, squares = latent_scaling.statistics(moments)
  factor, shift = latent_scaling.standard(means.mean(0), squares.mean(0))
  config = vae.VAEConfig(
    scaling_factor=factor, latents_mean=shift, latents_std=(1.0,) * 4
  )
  x = latent_scaling.sample(config, moments, rng.normal(size=mean.shape))
  np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.05)
  assert np.square(x).mean() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(
  'fields', [{'latents_mean': MEAN}, {'latents_std': STD}]
)
def test_mean_and_std_come_together(fields):
  with pytest.raises(ValueError, match='set both, one value for each of 4'):
    vae.VAEConfig(**fields)


@pytest.mark.torch
def test_images_are_those_of_diffusers(golden, tmp_path):
  """From one folder, whose autoencoder has a mean and a standard deviation."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  shutil.copytree(golden / 'tiny' / 'base', tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'vae' / 'config.json'
  fields = {'latents_mean': MEAN, 'latents_std': STD, 'scaling_factor': 0.25}
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))
  pipeline = pipelines.load(tmp_path)
  noise = np.asarray(jax.random.normal(jax.random.key(0), (1, 32, 32, 4)))
  size = 32 * pipeline.model.vae.downscale
  ours, _ = sample.generate(
    pipeline, ['a fox'], size=(size, size), steps=2, init_noise=noise
  )
  theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path)
  image = theirs(
    'a fox',
    latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
    num_inference_steps=2,
    output_type='np',
    height=size,
    width=size,
  ).images
  assert np.abs((ours + 1) / 2 - image).max() < 1 / 255


def test_pixels_beyond_the_range_are_clipped_but_infinity_shows():
  decoded = np.array([-3, -0.5, 2, np.inf, -np.inf, np.nan], np.float32)
  found = np.ravel(latent_scaling.to_pixels(decoded.reshape(1, 1, 2, 3)))
  assert found[:3].tolist() == [-1, -0.5, 1] and np.isnan(found[3:]).all()
