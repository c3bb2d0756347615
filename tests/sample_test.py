"""Whole pictures: recorded runs of diffusers, and what users do wrong."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sdxl_jax import pipelines, sample
from sdxl_jax.diffusion import samplers, scheduler_config
from tests import golden_sets

INDEX = {
  (folder, name): run
  for folder in golden_sets.SETS
  for name, run in json.loads(
    (folder / 'pipeline' / 'index.json').read_text()
  ).items()
  if name.startswith('t2i_')
  and run['scheduler']['_class_name'] in scheduler_config.SAMPLERS
}


@pytest.fixture(scope='module')
def loaded():
  return {f: pipelines.load(f / 'tiny' / 'base') for f in golden_sets.SETS}


@pytest.fixture(scope='module')
def refiners():
  return {f: pipelines.load(f / 'tiny' / 'refiner') for f in golden_sets.SETS}


def arguments(call):
  """Arguments of the diffusers call as ours."""
  kwargs = dict(call['kwargs'])
  each = kwargs.get('num_images_per_prompt', 1)

  def listed(value):
    if value is None:
      return None
    value = value if isinstance(value, list) else [value]
    return [v for v in value for _ in range(each)]

  negative = {
    ours: kwargs.get(f'negative_{theirs}')
    for ours, theirs in (
      ('original_size', 'original_size'),
      ('crop_top_left', 'crops_coords_top_left'),
      ('target_size', 'target_size'),
    )
  }
  return dict(
    prompts=listed(kwargs['prompt']),
    negative_prompts=listed(kwargs.get('negative_prompt')),
    prompts_2=listed(kwargs.get('prompt_2')),
    negative_prompts_2=listed(kwargs.get('negative_prompt_2')),
    size=call['hw'],
    steps=call['steps'],
    guidance_scale=call['gs'],
    guidance_rescale=call['gr'],
    original_size=kwargs.get('original_size'),
    crop_top_left=kwargs.get('crops_coords_top_left', (0, 0)),
    target_size=kwargs.get('target_size'),
    negative_sizes={k: v for k, v in negative.items() if v is not None},
    clip_skip=kwargs.get('clip_skip') or 0,
  )


@pytest.mark.parametrize('case', INDEX, ids=lambda c: f'{c[0].name}-{c[1]}')
def test_recorded_run(case, loaded, close, tolerances, monkeypatch):
  folder, name = case
  run = INDEX[case]
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  nhwc = lambda x: np.moveaxis(x, -3, -1)
  sampler = scheduler_config.SAMPLERS[run['scheduler']['_class_name']]
  noise = [nhwc(arrays[k]) for k in sorted(arrays.files) if 'noise/' in k]
  if noise:
    replay = samplers.sample

    def recorded(*args, keys, **kwargs):
      del keys
      return replay(*args, noise=np.stack(noise), **kwargs)

    monkeypatch.setattr(samplers, 'sample', recorded)
  pipeline = dataclasses.replace(loaded[folder], scheduler=run['scheduler'])
  eta = run['call']['kwargs'].get('eta', 0)
  if eta:
    sampler_of = {'ddim': samplers.ancestral(eta)}
    monkeypatch.setattr(samplers, 'SAMPLERS', sampler_of)
  if noise:
    sample.denoise_latents.clear_cache()  # it holds the real sampler
  images, latents = sample.generate(
    pipeline,
    **arguments(run['call']),
    sampler=sampler,
    init_noise=nhwc(arrays['init_latents']),
  )
  if noise:
    sample.denoise_latents.clear_cache()  # it holds the recorded noise
  limit = tolerances['pipeline_latents_each_step_and_final']
  close(latents, nhwc(arrays['final_latents']), limit, name)
  u8 = np.rint((images + 1) * 127.5)
  difference = np.abs(u8 - arrays['image_u8']).max()
  assert difference <= tolerances['pipeline_image_u8_max_diff']


HANDOFFS = [
  (folder, name)
  for folder in golden_sets.SETS
  for name in json.loads((folder / 'pipeline' / 'index.json').read_text())
  if name.startswith('handoff_')
]


@pytest.mark.parametrize('case', HANDOFFS, ids=lambda c: f'{c[0].name}-{c[1]}')
def test_recorded_handover(case, loaded, refiners, close, tolerances):
  """Base to refiner, without new noise."""
  folder, name = case
  run = json.loads((folder / 'pipeline' / 'index.json').read_text())[name]
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  nhwc = lambda x: np.moveaxis(x, -3, -1)
  call, told = run['call'], run['call']['refiner_kwargs'] or {}
  config = run['base/scheduler']
  images, latents = sample.generate(
    dataclasses.replace(loaded[folder], scheduler=config),
    **arguments(call),
    sampler=scheduler_config.SAMPLERS[config['_class_name']],
    init_noise=nhwc(arrays['init_latents']),
    refiner=refiners[folder],
    refiner_start=call['cut'],
    aesthetic_score=told.get('aesthetic_score', 6.0),
    negative_aesthetic_score=told.get('negative_aesthetic_score', 2.5),
  )
  limit = tolerances['pipeline_latents_each_step_and_final']
  close(latents, nhwc(arrays['final_latents']), limit, name)
  u8 = np.rint((images + 1) * 127.5)
  difference = np.abs(u8 - arrays['image_u8']).max()
  assert difference <= tolerances['pipeline_image_u8_max_diff']


def test_a_refiner_that_does_not_fit(loaded, refiners):
  base, refiner = loaded[golden_sets.SETS[0]], refiners[golden_sets.SETS[0]]
  draw = lambda *both, **more: sample.generate(
    both[0], ['a'], size=(64, 64), steps=2, refiner=both[1], **more
  )
  with pytest.raises(ValueError, match='refiner must be a refiner'):
    draw(base, base)
  with pytest.raises(ValueError, match='refiner_start is 1.5; it must be from'):
    draw(base, refiner, refiner_start=1.5)
  vae = dataclasses.replace(base.nets.vae, scaling_factor=1.0)
  nets = dataclasses.replace(base.nets, vae=vae)
  with pytest.raises(ValueError, match='scaling_factor is 1.0 of the one'):
    draw(dataclasses.replace(base, nets=nets), refiner)


def test_bad_size_names_the_nearest(loaded):
  pipeline = next(iter(loaded.values()))
  with pytest.raises(ValueError, match='nearest such size is 64 x 96'):
    sample.generate(pipeline, ['a'], size=(60, 100), steps=1)


def test_folder_without_weights(tmp_path):
  with pytest.raises(FileNotFoundError, match='model_index.json'):
    pipelines.load(pathlib.Path(tmp_path))


def test_command(tmp_path):
  def run(weights, *more):
    command = (sys.executable, '-m', 'sdxl_jax.sample', '--prompt', 'a fox')
    return subprocess.run(
      [*command, '--weights', weights, *more], capture_output=True, text=True
    )

  # Flags first: weights may take minutes.
  wrong = run('nowhere', '--crop_top_left', '3')
  assert wrong.returncode == 1
  assert wrong.stderr.strip().endswith('two whole numbers in px, as 1024,1024')

  folder = tmp_path / 'new'
  right = run(
    golden_sets.SETS[0] / 'tiny' / 'base',
    *('--height', '64', '--width', '96', '--steps', '1', '--batch', '2'),
    *('--output', folder / 'fox.png'),
    *('--save_latents', folder / 'fox.npy'),
  )
  assert right.returncode == 0, right.stderr
  names = {path.name for path in folder.iterdir()}
  assert names == {'fox.png', 'fox-0.png', 'fox-1.png', 'fox.npy'}
  assert np.load(folder / 'fox.npy').shape[0] == 2
  with Image.open(folder / 'fox-1.png') as picture:
    assert picture.size == (96, 64)
