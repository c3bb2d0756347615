"""Tiled decoding against decoding at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import attention, group_statistics, tiled_decoding, vae
from tests.support import random_params

CONFIG = vae.VAEConfig(
  block_out_channels=(8, 16, 16),
  layers_per_block=1,
  norm_num_groups=4,
  scaling_factor=0.5,
  latents_mean=(0.1, -0.2, 0.3, 0.0),
  latents_std=(1.0, 2.0, 0.5, 1.0),
)
# At none of the three resolutions a multiple of the tiles below.
SIZE = (9, 27)
LIMIT = 1e-5  # of the largest value: float32's rounding


def whole(params, x, config=CONFIG):
  return vae.VAE(config).apply({'params': params}, x, method='decode')


def tiled(tile, config=CONFIG):
  return functools.partial(tiled_decoding.decode, config, tile=tile)


@pytest.fixture(scope='module')
def params(jit):
  image = jnp.zeros((1, 16, 16, 3))
  fresh = jit(vae.VAE(CONFIG).init)(jax.random.key(0), image)['params']
  return random_params.draw(fresh)


@pytest.fixture(scope='module')
def latents():
  """Latents of two images, flat on the left and busy on the right."""
  x = np.random.default_rng(1).normal(size=(2, *SIZE, 4)).astype(np.float32)
  contrast = np.linspace(0.1, 3, SIZE[1], dtype=np.float32)[:, None]
  return x * contrast + contrast


@pytest.fixture(scope='module')
def expected(jit, params, latents):
  return np.asarray(jit(whole)(params, latents))


@pytest.mark.parametrize('tile', [8, 32])
def test_tiles_make_the_whole(tile, close, jit, params, latents, expected):
  """All errors are rounding, and edges of tiles have no more than the rest."""
  out = jit(tiled(tile))(params, latents)
  close(out, expected, LIMIT)
  error = np.abs(out - expected).mean((0, 1, 3))
  place = np.arange(error.size) % tile
  at_edges = (place == 0) | (place == tile - 1)
  assert error[at_edges].mean() < 2 * error[~at_edges].mean()


def test_statistics_of_one_tile_are_others(jit, params, latents, expected):
  """What tiles apart would make, which the limit does not let pass."""
  alone = jit(whole)(params, latents[:, :, :14])
  error = np.abs(alone - expected[:, :, :56])[:, :, :14]  # far from the cut
  assert error.max() > 1000 * LIMIT * np.abs(expected).max()


def test_margins(close, jit, params, latents):
  """Each part's is wide enough, and none wider than it needs."""
  x = jit(functools.partial(tiled_decoding.decode_to_mid, CONFIG))(
    params, latents
  )
  for part in tiled_decoding.make_parts(CONFIG, params['decoder']):
    narrow = dataclasses.replace(part, reach=part.reach - part.scale)
    wide_enough, too_narrow = (
      jit(functools.partial(tiled_decoding.apply_in_tiles, p, tile=8))(x)
      for p in (part, narrow)
    )
    x = jit(part.apply)(x)
    close(wide_enough, x, LIMIT)
    assert np.abs(too_narrow - x).max() > 100 * LIMIT * np.abs(x).max()


def test_an_image_of_one_tile(jit, params, latents, expected):
  """Equal to decoding at once, bit for bit."""
  out = jit(tiled(4 * max(SIZE)))(params, latents)
  np.testing.assert_array_equal(out, expected)


def test_bfloat16(jit, params, latents, expected):
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  out = jit(tiled(16, config))(params, latents)
  plain = jit(functools.partial(whole, config=config))(params, latents)
  assert out.dtype == jnp.float32
  # No further from float32 than bfloat16 at once.
  error, usual = (np.abs(x - expected).mean() for x in (out, plain))
  assert error < 1.2 * usual


def test_memory(params, monkeypatch):
  """Much less than decoding at once, with attention in chunks in both."""
  limits = attention.ChunkLimits(2**16, 2**16)
  monkeypatch.setattr(attention, 'CPU_LIMITS', limits)
  params, x = jax.eval_shape(lambda: (params, jnp.zeros((1, 64, 64, 4))))

  def peak(f):
    return (
      jax.jit(f).lower(params, x).compile().memory_analysis().temp_size_in_bytes
    )

  assert peak(tiled(64)) < peak(whole) / 4


def test_variance_of_large_means():
  """Tiles' statistics are merged without loss, and pixels outside ignored."""
  x = np.random.default_rng(0).normal(1e4, 1, (3, 2, 4, 6, 8))
  x += 10 * np.arange(3)[:, None, None, None, None]
  inside = np.arange(6) < 5
  x[..., ~inside, :] = 0
  measured = [
    group_statistics.measure(jnp.float32(tile), 2, np.tile(inside, (4, 1)))
    for tile in x
  ]
  mean, variance = group_statistics.merge(*map(jnp.stack, zip(*measured)))
  groups = np.float32(x)[..., :5, :].reshape(3, 2, 4, 5, 2, 4).astype(float)
  np.testing.assert_allclose(mean, groups.mean((0, 2, 3, 5)), rtol=1e-6)
  np.testing.assert_allclose(variance, groups.var((0, 2, 3, 5)), rtol=1e-3)


@pytest.mark.parametrize('tile', [0, -2, 31])
def test_bad_tiles(tile, params):
  with pytest.raises(ValueError, match=f'tile is {tile} px; .* even'):
    tiled_decoding.decode(CONFIG, params, jnp.zeros((1, 8, 8, 4)), tile)


def test_patches_need_no_tiles():
  config = vae.PatchConfig()
  x = np.random.default_rng(0).normal(size=(1, 4, 6, 48)).astype(np.float32)
  expected = vae.PatchVAE(config).apply({}, x, method='decode')
  np.testing.assert_array_equal(
    tiled_decoding.decode(config, {}, x, 8), expected
  )
