"""Vectors of sizes, crop and score."""

import json

import numpy as np
import pytest

from sdxl_jax.models import micro_conditioning, unet

POOLED = np.linspace(-1, 1, 2 * 1280, dtype=np.float32).reshape(2, 1280)
ORIGINAL = np.array([[768, 1025], [4095, 1]], np.int32)
CROP = np.array([[0, 17], [300, 0]], np.int32)
TARGET = np.array([[1024, 1024], [512, 2048]], np.int32)


def sinusoid(scalar, width):
  """One scalar, spelled out in float64."""
  half = width // 2
  angles = [scalar * 10000.0 ** (-i / half) for i in range(half)]
  return np.concatenate([np.cos(angles), np.sin(angles)])


def expected(pooled, scalars, width):
  sinusoids = [sinusoid(s, width) for s in scalars]
  return np.concatenate([pooled, *sinusoids])


@pytest.mark.parametrize('width', [8, 256])
def test_base_vector(width):
  vector = micro_conditioning.base_vector(POOLED, ORIGINAL, CROP, TARGET, width)
  assert vector.shape == (2, 1280 + 6 * width) and vector.dtype == np.float32
  for row, *scalars in zip(range(2), ORIGINAL, CROP, TARGET):
    target = expected(POOLED[row], np.concatenate(scalars), width)
    # Float32 angles up to 4096 are good to 4096 * 2^-24, a few times over.
    np.testing.assert_allclose(vector[row], target, atol=1e-3)


def test_refiner_vector():
  score = np.array([6.0, 2.5], np.float32)
  vector = micro_conditioning.refiner_vector(POOLED, ORIGINAL, CROP, score)
  for row in range(2):
    scalars = [*ORIGINAL[row], *CROP[row], score[row]]
    target = expected(POOLED[row], scalars, 256)
    np.testing.assert_allclose(vector[row], target, atol=1e-3)


def test_widths_are_those_of_the_nets():
  score = np.array([6.0, 2.5], np.float32)
  base = micro_conditioning.base_vector(POOLED, ORIGINAL, CROP, TARGET)
  refiner = micro_conditioning.refiner_vector(POOLED, ORIGINAL, CROP, score)
  assert base.shape[1] == unet.BASE.vector_dim
  assert refiner.shape[1] == unet.REFINER.vector_dim


def test_order_is_that_of_the_pipelines(golden):
  folder = golden / 'pipeline'
  runs = json.loads((folder / 'index.json').read_text())
  runs = {n: run['call']['kwargs'] for n, run in runs.items()}
  keys = 'original_size', 'crops_coords_top_left', 'target_size'
  runs = {
    n: kwargs
    for n, kwargs in runs.items()
    if kwargs.keys() >= set(keys) and (folder / f'{n}.npz').exists()
  }
  assert runs
  for name, kwargs in runs.items():
    arrays = np.load(folder / f'{name}.npz')
    pooled, ids = arrays['unet0/text_embeds'], arrays['unet0/time_ids']
    sizes = (np.array([kwargs[key]], np.int32) for key in keys)
    vector = micro_conditioning.base_vector(pooled[-1:], *sizes, 8)
    np.testing.assert_allclose(
      vector[0], expected(pooled[-1], ids[-1], 8), atol=1e-3
    )
