"""Inpainting UNets and distilled ones, against live diffusers."""

import dataclasses
import functools
import itertools
import sys

import jax
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.diffusion import samplers
from sdxl_jax.sampling import (
  denoising_loop,
  generation,
  pipelines,
  vae_batches,
)
from sdxl_jax.sampling.noise_streams import NoiseStream
from sdxl_jax.weights import pretrained
from sdxl_jax.weights.diffusers import folder_reader
from tests.support import folders, golden_sets, schedulers

TINY = golden_sets.SETS[0] / 'tiny'
SIZE = 64, 96
PROMPTS = ['a red fox', 'snow']


def write(folder, index, **fields):
  """The tiny base with another UNet, what is new in it random; as a folder."""
  source = TINY / 'base'
  components = folders.load_all(source)
  config, params = components['unet']
  config = dataclasses.replace(config, **fields)
  flat, rng = traverse_util.flatten_dict(params), np.random.default_rng(0)
  for path, leaf in traverse_util.flatten_dict(
    pretrained.abstract_params(config)
  ).items():
    if path not in flat or flat[path].shape != leaf.shape:
      scale = np.prod(leaf.shape[:-1]) ** -0.5
      flat[path] = np.float32(scale * rng.normal(size=leaf.shape))
  components['unet'] = config, traverse_util.unflatten_dict(flat)
  folders.save_all(source, folder, components, index)
  return dataclasses.replace(pipelines.load(folder), size=SIZE)


@pytest.fixture(scope='module')
def inpainting(tmp_path_factory):
  """(its folder, its Pipeline)."""
  folder = tmp_path_factory.mktemp('nets') / 'inpainting'
  index = pretrained.ModelIndex(False, True, inpainting=True)
  return folder, write(folder, index, in_channels=9)


@pytest.fixture(scope='module')
def distilled(tmp_path_factory):
  folder = tmp_path_factory.mktemp('nets') / 'distilled'
  index = pretrained.ModelIndex(False, True)
  return folder, write(folder, index, guidance_embed_dim=16)


@pytest.fixture(scope='module')
def pictures():
  """(images [2, h, w, 3], masks [2, h, w])."""
  rng = np.random.default_rng(1)
  masks = np.zeros((2, *SIZE), np.float32)
  # They begin at corners of 8 x 8 px, which diffusers samples, and end within.
  masks[0, 8:50, 16:70], masks[1, :, 40:] = 1, 0.75
  return rng.uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32), masks


@functools.cache
def diffusers_pipeline(folder):
  diffusers = pytest.importorskip('diffusers')
  pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


@pytest.fixture
def reference(monkeypatch):
  """reference(folder, scheduler, numbers) > diffusers' pipeline of a folder.

  It draws what ours draws of seeds 0 and 1 for these numbers, in this order.
  """
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  keys = jax.vmap(jax.random.key)(np.arange(2))

  def load(folder, scheduler, numbers):
    pipeline = diffusers_pipeline(folder)
    found = getattr(diffusers, scheduler).from_config(
      folder_reader.load_scheduler(folder)
    )
    pipeline.scheduler, numbers = found, iter(numbers)

    def drawn(shape, *args, **kwargs):
      b, c, h, w = shape
      noise = samplers.draw_noise(keys, next(numbers), (b, h, w, c))
      return torch.from_numpy(np.moveaxis(np.asarray(noise), -1, 1).copy())

    drawing = (
      diffusers.models.autoencoders.vae,
      *map(lambda x: sys.modules[type(x).__module__], (pipeline, found)),
    )
    for module in drawing:
      monkeypatch.setattr(module, 'randn_tensor', drawn, raising=False)
    return pipeline

  return load


def same_settings(theirs):
  """The scheduler of a diffusers pipeline, as ours."""
  config = dict(theirs.scheduler.config)
  config['_class_name'] = type(theirs.scheduler).__name__
  return config, schedulers.sampler_of(config)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:__array__ implementation')
@pytest.mark.parametrize(
  'scheduler',
  [
    *('EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler'),
    *('DDIMScheduler', 'DPMSolverMultistepScheduler'),
  ],
)
def test_live_inpainting(
  inpainting, pictures, reference, scheduler, close, tolerances
):
  torch = pytest.importorskip('torch')
  folder, ours = inpainting
  images, masks = pictures
  for strength, scale, rescale in ((1.0, 5.0, 0.0), (0.6, 3.0, 0.7)):
    first = [] if strength == 1 else [NoiseStream.IMAGE_ENCODING]
    steps = itertools.count(1 if strength == 1 else 3)
    theirs = reference(
      *(folder, scheduler),
      itertools.chain(
        first,
        [NoiseStream.IMAGE_NOISE, NoiseStream.MASKED_IMAGE_ENCODING],
        steps,
      ),
    )
    settings, sampler = same_settings(theirs)
    expected = theirs(
      prompt=PROMPTS,
      image=torch.from_numpy(np.moveaxis(images, -1, 1) / 2 + 0.5),
      mask_image=torch.from_numpy(masks[:, None]),
      height=SIZE[0],
      width=SIZE[1],
      strength=strength,
      num_inference_steps=5,
      guidance_scale=scale,
      guidance_rescale=rescale,
      output_type='latent',
    ).images
    _, found = generation.generate(
      dataclasses.replace(ours, scheduler=settings),
      PROMPTS,
      image=images,
      mask=masks,
      strength=strength,
      steps=5,
      sampler=sampler,
      guidance_scale=scale,
      guidance_rescale=rescale,
    )
    expected = np.moveaxis(expected.numpy(), 1, -1)
    limit = tolerances['pipeline_latents_each_step_and_final']
    close(found, expected, limit, f'{scheduler} {strength}')


@pytest.mark.torch
def test_live_distilled(distilled, reference, close, tolerances):
  """One call of the net at each step, and one program for all scales."""
  folder, ours = distilled
  programs = set()
  for scale in (1.0, 1.8, 8.0):
    theirs = reference(folder, 'LCMScheduler', itertools.count())
    settings, sampler = same_settings(theirs)
    expected = theirs(
      prompt=PROMPTS,
      negative_prompt=['a pig', ''],  # which is not heard
      height=SIZE[0],
      width=SIZE[1],
      num_inference_steps=4,
      guidance_scale=scale,
      output_type='latent',
    ).images
    _, found = generation.generate(
      dataclasses.replace(ours, scheduler=settings),
      PROMPTS,
      steps=4,
      sampler=sampler,
      guidance_scale=scale,
    )
    expected = np.moveaxis(expected.numpy(), 1, -1)
    limit = tolerances['pipeline_latents_each_step_and_final']
    close(found, expected, limit, f'guidance scale {scale}')
    programs.add(denoising_loop.take_steps._cache_size())
  assert len(programs) == 1


def test_what_is_under_the_mask_is_forgotten(inpainting, pictures):
  """And what is not is only told, by the seed's own draw."""
  _, ours = inpainting
  image, mask = pictures

  def sample(image):
    return generation.generate(
      ours, PROMPTS, image=image, mask=mask, steps=5, strength=1.0
    )[1]

  under, rest = image.copy(), image.copy()
  under[mask >= 0.5] = 0
  rest[mask < 0.5] = 0
  plain = sample(image)
  assert (sample(under) == plain).all()
  assert np.abs(sample(rest) - plain).max() > 1e-3 * np.abs(plain).max()


def test_a_refiner_keeps_what_the_mask_leaves(inpainting, pictures):
  """It does not see the mask, so the kept part is put back for it."""
  _, ours = inpainting
  image, mask = pictures
  _, found = generation.generate(
    *(ours, PROMPTS),
    image=image,
    mask=mask,
    steps=5,
    refiner=pipelines.load(TINY / 'refiner'),
    refiner_start=0.5,
  )
  rows = vae_batches.encode_all(
    ours, image, jax.vmap(jax.random.key)(np.arange(2))
  )
  kept = mask[:, ::8, ::8] < 0.5
  assert kept.any() and np.abs((found - rows)[kept]).max() < 1e-5


def test_the_distilled_hear_their_scale(distilled):
  _, ours = distilled

  def sample(scale, **options):
    return generation.generate(
      ours, PROMPTS, steps=4, sampler='lcm', guidance_scale=scale, **options
    )[1]

  plain = sample(8.0)
  assert (sample(8.0, negative_prompts=['a pig', '']) == plain).all()
  for other in (1.0, 4.0):
    assert np.abs(sample(other) - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize('left_out', ['image', 'mask'])
def test_a_net_without_what_it_sees(inpainting, pictures, left_out):
  _, ours = inpainting
  given = dict(zip(('image', 'mask'), (x[0] for x in pictures)))
  del given[left_out]
  message = 'takes 9 channels, .* pass image and mask'
  with pytest.raises(ValueError, match=message):
    generation.generate(ours, ['a'], **given)


def test_nets_of_yet_another_kind(inpainting):
  _, ours = inpainting
  unet = dataclasses.replace(ours.model.unet, in_channels=8)
  model = dataclasses.replace(ours.model, unet=unet)
  with pytest.raises(ValueError, match='8 channels .* must take 4, or 9 for'):
    generation.generate(dataclasses.replace(ours, model=model), ['a'])
