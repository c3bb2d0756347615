"""Tests that a cache follows its images and captions, and costs no more."""

import os

import numpy as np
import pytest

from sdxl_jax.data import precompute_writer
from sdxl_jax.data.sources import index, kinds, precomputed
from tests.support import caches, datasets

SIZES = ((40, 60), (60, 40), (36, 90), (32, 48), (80, 48), (50, 50), (48, 72))


def write(folder, i, text=None, number=None):
  """Writes record i of a folder, its caption beside it."""
  folder.mkdir(exist_ok=True)
  size, name = SIZES[i % len(SIZES)], f'{i:04d}'
  image = datasets.ramp(*size, number=i % 20 if number is None else number)
  (folder / f'{name}.png').write_bytes(datasets.encode(image))
  (folder / f'{name}.txt').write_text(text or f'picture {i}')


def remove(folder, i):
  for suffix in ('png', 'txt'):
    (folder / f'{i:04d}.{suffix}').unlink()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache of 24 images.

  Returns its folder, that of the images, and a function that makes a cache.
  """
  images = tmp_path / 'images'
  for i in range(24):
    write(images, i)
  config = caches.config_of(images)

  def make(folder, **options):
    return caches.make(monkeypatch, config, folder, **options)

  make(tmp_path / 'cache')
  return tmp_path / 'cache', images, make


def edit_caption(images):
  write(images, 3, 'another caption')


def edit_image(images):
  write(images, 3, number=19)


def edit_all(images):
  write(images, 0, 'another caption')
  write(images, 10, number=19)
  remove(images, 5)
  for i in (24, 25):
    write(images, i)
  os.rename(images / '0002.png', images / '00022.png')
  os.rename(images / '0002.txt', images / '00022.txt')


@pytest.mark.parametrize(
  'edit, counts, made',
  [
    (edit_caption, '23 kept, 1 changed, 0 removed, 0 added', 1),
    (edit_image, '23 kept, 1 changed, 0 removed, 0 added', 1),
    (
      lambda images: remove(images, 3),
      '23 kept, 0 changed, 1 removed, 0 added',
      0,
    ),
    (
      lambda images: write(images, 99),
      '24 kept, 0 changed, 0 removed, 1 added',
      1,
    ),
    (edit_all, '20 kept, 2 changed, 2 removed, 3 added', 5),
  ],
  ids=['caption', 'image', 'removed', 'added', 'all'],
)
def test_an_update_computes_what_changed(cache, tmp_path, edit, counts, made):
  """And gives the bytes of a cache that is computed at once."""
  folder, images, make = cache
  edit(images)
  lines, count = make(folder)
  assert f'{folder} is brought up to date: {counts}' in lines
  assert count == made
  make(tmp_path / 'fresh')
  assert caches.contents(folder) == caches.contents(tmp_path / 'fresh')
  assert make(folder) == ([lines[0], f'{folder} is finished'], 0)
