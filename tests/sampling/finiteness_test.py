"""NaN and infinity: nothing is returned, and the error names where it began."""

import dataclasses

import jax
import numpy as np
import pytest

from sdxl_jax.sampling import finiteness, generation, pipelines
from tests.support import golden_sets

# One program for most of these tests.
SMALL = dict(size=(64, 64), steps=4)


@pytest.fixture(scope='module')
def base():
  return pipelines.load(golden_sets.SETS[0] / 'tiny' / 'base')


def spoiled(pipeline, net, value=np.nan, path=''):
  """The pipeline with one parameter of a net that has another value."""

  def spoil(keys, x):
    name = jax.tree_util.keystr(keys, simple=True, separator='/')
    if spoil.done or path not in name:
      return x
    spoil.done = True
    return x.at[(0,) * x.ndim].set(value)

  spoil.done = False
  params = jax.tree_util.tree_map_with_path(spoil, pipeline.params[net])
  assert spoil.done
  return dataclasses.replace(pipeline, params=pipeline.params | {net: params})


def sample(pipeline, **options):
  return generation.generate(pipeline, ['a'], **SMALL, **options)


def test_a_nan_in_the_unet(base):
  message = 'image 1 of 1 .* began in step 1 of 4, in the UNet: check the wei'
  with pytest.raises(finiteness.NonFiniteError, match=message):
    sample(spoiled(base, 'unet'))


def test_a_nan_in_a_text_encoder(base):
  with pytest.raises(ValueError, match='from the text encoders: check the wei'):
    sample(spoiled(base, 'text_encoder', path='layer_norm1'))


def test_a_nan_in_the_text_of_a_later_step(base):
  (expert,), segments, initial = experts(base)
  later = jax.tree.map(lambda x: x * np.nan, expert.stages[0][1])
  expert = expert._replace(stages=[*expert.stages, (2, later)])
  line = finiteness.find_begin([expert], segments, initial)
  assert line.startswith('They came from the text encoders: check the wei')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_the_decoder_alone(base, value):
  """Infinity, clipped, would be white or black."""
  message = 'from the decoder .* latents are finite: pass another one with --v'
  broken = spoiled(base, 'vae', value, 'decoder/conv_out/bias')
  with pytest.raises(finiteness.NonFiniteError, match=message):
    sample(broken)
  # An image stays as it is to the last bit where all is finite.
  assert np.isfinite(sample(base)[0]).all()


def test_the_encoder(base):
  message = 'from the encoder of the autoencoder: pass another one with --vae'
  with pytest.raises(finiteness.NonFiniteError, match=message):
    sample(
      spoiled(base, 'vae', path='encoder/conv_in'),
      image=np.zeros((64, 64, 3)),
      strength=1.0,
    )


def test_a_step_in_the_middle(base):
  """Guidance so strong that the latents are too large for the net."""
  message = r'image 1 of 1 .* began in step [234] of 4, .* --guidance_scale'
  with pytest.raises(finiteness.NonFiniteError, match=message):
    sample(base, guidance_scale=1e37)


def test_a_preview(base):
  """It fails at the step, before all of the others are taken."""
  seen = []

  def watch(done, total, preview):
    seen.append(done)
    preview()

  message = 'a preview has .* The latents of step 1, or of one before'
  with pytest.raises(finiteness.NonFiniteError, match=message):
    sample(spoiled(base, 'unet'), watch=watch)
  assert seen == [1]


def test_only_images_with_it_are_named(base):
  latents = np.zeros((3, 8, 8, 4), np.float32)
  image = np.zeros((3, 64, 64, 3), np.float32)
  image[1, 5, 5, 0] = np.nan
  with pytest.raises(finiteness.NonFiniteError, match='image 2 of 3 has .* of'):
    finiteness.check_samples(*experts(base), (image, latents))
  image[1, 5, 5, 0] = 0
  finiteness.check_samples(*experts(base), (image, latents))


def experts(base):
  """What generate passes for one image whose latents are finite."""
  made, check = [], finiteness.check_samples
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(finiteness, 'check_samples', lambda *x: made.append(x[:-1]))
    sample(base)
  assert finiteness.check_samples is check
  return made[0]


@pytest.mark.parametrize('name', ['image', 'latents', 'mask', 'init_noise'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_inputs_are_checked_first(base, name, value, monkeypatch):
  monkeypatch.setattr(generation, 'make_schedule', None)
  shape = dict(image=(64, 64, 3), mask=(64, 64)).get(name, (8, 8, 4))
  array = np.zeros(shape)
  array[0, 0] = value
  given = {name: array}
  if name == 'mask':
    given['image'] = np.zeros((64, 64, 3))
  with pytest.raises(ValueError, match=f'{name} has . values that are not'):
    sample(base, **given)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(guidance_scale=np.nan), 'guidance_scale is nan; it must be a finite'),
    (dict(guidance_rescale=np.inf), 'guidance_rescale is inf'),
    (dict(mask_threshold=0.0), 'mask_threshold is 0.0; it must be above 0'),
    (dict(mask_threshold=1.1), 'mask_threshold is 1.1'),
    (dict(image=np.full((64, 64, 3), 255)), 'up to 255; pixels are from -1 to'),
    (dict(image='a.png'), 'image is no array of numbers'),
    (dict(mask=np.full((64, 64), 255)), 'mask has values from 255 to 255'),
    (dict(mask=np.full((64, 64), 0.4)), 'nowhere at or above mask_threshold'),
    (dict(seeds=[-2]), r'seeds\[0\] is -2; it must be a whole number from 0'),
    (dict(seeds=[2**64]), r'seeds\[0\] is 18446744073709551616'),
    (dict(seeds=[1.5]), r'seeds\[0\] is 1.5'),
  ],
)
def test_values_that_cannot_be_right(base, options, message, monkeypatch):
  monkeypatch.setattr(generation, 'make_schedule', None)
  image = np.zeros((64, 64, 3))
  with pytest.raises(ValueError, match=message):
    sample(base, **(dict(image=image) | options))


def test_seeds_of_64_bits(base):
  """Each has an image of its own, up to the largest."""
  first, *others = (
    sample(base, seeds=[seed])[1] for seed in (1, 2**32 + 1, 2**64 - 1)
  )
  for other in others:
    assert np.abs(other - first).max() > 0.1


def test_thin_lines_are_repainted(base):
  mask = np.zeros((64, 64), np.float32)
  mask[33:37, 9:60] = 1  # between the corners of the cells
  latents = np.random.default_rng(1).normal(size=(8, 8, 4)).astype(np.float32)
  _, found = sample(base, latents=latents, mask=mask)
  changed = np.abs(found[0] - latents).max(-1) > 1e-3
  expected = np.zeros((8, 8), bool)
  expected[4, 1:8] = True
  np.testing.assert_array_equal(changed, expected)
