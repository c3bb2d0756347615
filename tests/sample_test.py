"""Whole pictures: recorded runs of diffusers, and what users do wrong."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sdxl_jax import pipelines, runs, sample
from sdxl_jax.diffusion import samplers, scheduler_config
from tests import golden_sets

RUNS = {
  (folder, name): run
  for folder in golden_sets.SETS
  for name, run in json.loads(
    (folder / 'pipeline' / 'index.json').read_text()
  ).items()
}


def cases(*kinds):
  """Recorded runs by the beginning of their names."""
  found = [case for case in RUNS if case[1].startswith(kinds)]
  name = lambda case: f'{case[0].name}-{case[1]}'
  return pytest.mark.parametrize('case', found, ids=name)


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


def nhwc(x):
  return np.moveaxis(x, -3, -1)


def check_drawn(drawn, arrays, close, tolerances, name):
  images, latents = drawn
  limit = tolerances['pipeline_latents_each_step_and_final']
  close(latents, nhwc(arrays['final_latents']), limit, name)
  u8 = np.rint((images + 1) * 127.5)
  difference = np.abs(u8 - arrays['image_u8']).max()
  assert difference <= tolerances['pipeline_image_u8_max_diff']


@cases('t2i_')
def test_recorded_run(case, loaded, close, tolerances, monkeypatch):
  run, (folder, name) = RUNS[case], case
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  noise = [nhwc(arrays[k]) for k in sorted(arrays.files) if 'noise/' in k]
  if noise:
    replay = samplers.advance

    def recorded(*args, keys, **kwargs):
      del keys
      return replay(*args, noise=np.stack(noise), **kwargs)

    monkeypatch.setattr(samplers, 'advance', recorded)
    runs.advance.clear_cache()  # it holds the real sampler
  drawn = sample.generate(
    dataclasses.replace(loaded[folder], scheduler=run['scheduler']),
    **arguments(run['call']),
    sampler=scheduler_config.sampler_of(run['scheduler']),
    eta=run['call']['kwargs'].get('eta'),
    init_noise=nhwc(arrays['init_latents']),
  )
  if noise:
    runs.advance.clear_cache()  # it holds the recorded noise
  check_drawn(drawn, arrays, close, tolerances, name)


@cases('img2img_', 'inpaint_')
def test_recorded_start_from_a_picture(
  case, loaded, refiners, close, tolerances, monkeypatch
):
  """The reference draws for the encoding first, then the noise laid on it."""
  run, (folder, name) = RUNS[case], case
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  call = run['call']
  pipelines = refiners if call['pipe'] == 'refiner' else loaded
  posterior = nhwc(arrays['noise/00'])
  rows = [row[None] for row in posterior]  # encoded one by one

  def recorded(keys, number, shape):
    is_encoding = isinstance(number, int) and number == runs.ENCODING
    return rows.pop(0) if is_encoding else np.zeros(shape, np.float32)

  monkeypatch.setattr(samplers, 'draw_noise', recorded)
  monkeypatch.setattr(runs, 'encode', runs.encode.__wrapped__)
  drawn = sample.generate(
    dataclasses.replace(pipelines[folder], scheduler=run['scheduler']),
    **arguments(call),
    sampler=scheduler_config.sampler_of(run['scheduler']),
    image=2 * nhwc(arrays['image']) - 1,
    mask=arrays['mask'][:, 0] if 'mask' in arrays else None,
    strength=call['kwargs']['strength'],
    init_noise=nhwc(arrays['noise/01']),
  )
  check_drawn(drawn, arrays, close, tolerances, name)


@cases('handoff_')
def test_recorded_handover(case, loaded, refiners, close, tolerances):
  """Base to refiner, without new noise."""
  run, (folder, name) = RUNS[case], case
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  call, told = run['call'], run['call']['refiner_kwargs'] or {}
  config = run['base/scheduler']
  drawn = sample.generate(
    dataclasses.replace(loaded[folder], scheduler=config),
    **arguments(call),
    sampler=scheduler_config.sampler_of(config),
    init_noise=nhwc(arrays['init_latents']),
    refiner=refiners[folder],
    refiner_start=call['cut'],
    aesthetic_score=told.get('aesthetic_score', 6.0),
    negative_aesthetic_score=told.get('negative_aesthetic_score', 2.5),
  )
  check_drawn(drawn, arrays, close, tolerances, name)


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
