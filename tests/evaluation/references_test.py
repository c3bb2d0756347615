"""Features of a reference are kept, and computed anew where they must be."""

import os

import jax
import numpy as np
import pytest

from sdxl_jax.evaluation import features, preprocessing, references
from tests.support import random_images, tiny_clip


@pytest.fixture
def extractor():
  loaded = features.LoadedCLIP(
    'tiny', tiny_clip.PAIR, tiny_clip.PAIR.init(jax.random.key(0)), 'weights 1'
  )
  return features.make_clip(loaded, preprocessing.clip_crop)


@pytest.fixture
def computed(monkeypatch):
  """The number of images that each call computes features of."""
  counts = []
  compute_all = features.compute_all

  def count(extractors, images, *args):
    counts.append(len(images))
    return compute_all(extractors, images, *args)

  monkeypatch.setattr(features, 'compute_all', count)
  return counts


def test_computed_once(extractor, computed, tmp_path):
  images = random_images.write(tmp_path / 'images', [(60, 60)] * 3)
  kept, said = tmp_path / 'kept', []

  def compute(extractor=extractor, images=images):
    return references.compute_kept(
      {'x': extractor}, images, kept, batch_size=1, say=said.append
    )['x']

  first = compute()
  assert computed == [3] and not said
  np.testing.assert_array_equal(compute(), first)
  assert computed == [3] and str(kept) in said[0]
  # Other weights, another way to resize, another image, one fewer.
  other = features.dataclasses.replace(extractor, source='weights 2')
  compute(other)
  compute(features.dataclasses.replace(extractor, name='tiny cmmd_crop'))
  os.utime(images[1], ns=(1, 1))
  compute()
  compute(images=images[:2])
  assert computed == [3, 3, 3, 3, 2]


def test_a_broken_file_is_replaced(extractor, computed, tmp_path):
  images = random_images.write(tmp_path / 'images', [(60, 60)] * 3)
  kept = tmp_path / 'kept'
  for _ in range(2):
    found = references.compute_kept({'x': extractor}, images, kept)['x']
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:100])
  assert computed == [3, 3] and found.shape == (3, 32)
  np.savez(file, features=found[:1])  # of a third of the images
  again = references.compute_kept({'x': extractor}, images, kept)['x']
  np.testing.assert_array_equal(again, found)


def test_where_features_are_kept(monkeypatch, tmp_path):
  monkeypatch.setenv('SDXL_JAX_METRICS', str(tmp_path))
  assert references.default_folder() == tmp_path / 'features'
  monkeypatch.delenv('SDXL_JAX_METRICS')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'c'))
  expected = tmp_path / 'c' / 'sdxl_jax' / 'metrics' / 'features'
  assert references.default_folder() == expected
