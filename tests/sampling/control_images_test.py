"""Reading control images: as diffusers does, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.sampling import (
  control_images,
  drawn_already,
  model_flags,
  request_checks,
  sample_request,
)
from sdxl_jax.sampling.located import Located
from sdxl_jax.sampling.sample_request import Request


@pytest.fixture
def edges(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'edges.png')
  return tmp_path / 'edges.png'


def test_an_image_of_the_size_is_taken_as_it_is(edges):
  found = control_images.read(edges, (40, 60))
  with Image.open(edges) as image:
    np.testing.assert_array_equal(found, np.float32(image) / 255)


@pytest.mark.torch
def test_resized_as_in_diffusers(edges):
  pytest.importorskip('torch')
  processors = pytest.importorskip('diffusers.image_processor')
  processor = processors.VaeImageProcessor(
    do_convert_rgb=True, do_normalize=False
  )
  with Image.open(edges) as image:
    expected = processor.preprocess(image, height=80, width=128).numpy()
  found = control_images.read(edges, (80, 128))
  np.testing.assert_array_equal(found, np.moveaxis(expected[0], 0, -1))


def test_grey_and_transparent_images(tmp_path):
  grey = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  Image.fromarray(grey).save(tmp_path / 'grey.png')
  found = control_images.read(tmp_path / 'grey.png', (8, 8))
  np.testing.assert_array_equal(
    found, np.float32(grey)[..., None].repeat(3, -1) / 255
  )
  pixels = np.full((8, 8, 4), 255, np.uint8)
  pixels[:, 4:, 3] = 0
  Image.fromarray(pixels).save(tmp_path / 'pose.png')
  found = control_images.read(tmp_path / 'pose.png', (8, 8))
  assert (found[:, :4] == 1).all() and (found[:, 4:] == 0).all()


def test_what_is_refused(edges, tmp_path):
  with pytest.raises(ValueError, match='edges.png is 60 x 40 px .* 64 x 64'):
    control_images.read(edges, (64, 64))
  (tmp_path / 'text.png').write_text('x')
  with pytest.raises(ValueError, match='text.png: not a readable image'):
    control_images.read(tmp_path / 'text.png', (64, 64))
  with pytest.raises(FileNotFoundError, match='none.png'):
    control_images.check([f'canny={tmp_path}/none.png'])


def test_requests_before_models_are_loaded(edges):
  def check(nets, *control):
    request = Request(prompt='a', control=tuple(map(str, control)))
    models = {'controlnet': nets}
    return request_checks.before_loading([Located('', request)], models)

  assert check(['a', 'b'], edges, f'canny={edges}') == []
  with pytest.raises(ValueError, match='ControlNets: 2, control images: 1'):
    check(['a', 'b'], edges)
  with pytest.raises(ValueError, match='ControlNets: 0, control images: 1'):
    check([], edges)
  with pytest.raises(FileNotFoundError, match='none'):
    check(['a'], 'none.png')


def test_settings_come_back_from_a_png():
  request = Request(
    prompt='a', control=('canny=edges.png', 'b.png'), guess_mode=True
  )
  models = {'weights': 'SDXL', 'controlnet': ['UNION:0.8:0:0.5', 'B']}
  text = sample_request.to_png_metadata(request, models, (64, 96, 3))
  fields, found = sample_request.from_png_metadata(
    text[sample_request.PNG_KEY], 'x.png'
  )
  assert found == models
  assert Request(**fields).control == request.control
  assert fields['guess_mode'] is True
  with pytest.raises(ValueError, match='control is .* a list of texts'):
    sample_request.check({'control': 'edges.png'}, 'line 1')


def test_files_of_older_versions_lack_the_settings():
  """They are there already where the new settings are not used."""
  request = Request(prompt='a')
  models = {n: o.default for n, o in model_flags.MODEL_OPTIONS.items()}
  text = sample_request.to_png_metadata(request, models, (8, 8, 3))
  saved = json.loads(text[sample_request.PNG_KEY])
  old = {n: x for n, x in saved.items() if n not in ('control', 'guess_mode')}
  wanted = {**saved, **models, 'control': (), 'guess_mode': False}
  kept = drawn_already.without_new(old, wanted)
  assert 'control' not in kept and 'guess_mode' not in kept
  kept = drawn_already.without_new(old, wanted | {'control': ('a.png',)})
  assert kept['control'] == ('a.png',)
