"""Loading: in which types nets compute, and where their parameters lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax import train
from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import generation, pipelines, vae_batches
from tests.support import golden_sets, tiny_config

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
REFINER = golden_sets.SETS[0] / 'tiny' / 'refiner'


def draw(base, refiner=None, count=1):
  settings = dict(size=(64, 64), steps=4, refiner=refiner)
  return generation.generate(base, ['a'] * count, **settings)


def kinds(params):
  return {x.sharding.memory_kind for x in jax.tree.leaves(params)}


def dtypes(params):
  return {x.dtype.name for x in jax.tree.leaves(params)}


def test_half_the_bits_and_a_whole_autoencoder():
  pipeline = pipelines.load(BASE, 'bfloat16')
  half = 'unet', 'text_encoder', 'text_encoder_2'
  found = {name: dtypes(params) for name, params in pipeline.params.items()}
  assert found == {'vae': {'float32'}} | {name: {'bfloat16'} for name in half}
  _, latents = draw(pipeline)
  _, exact = draw(pipelines.load(BASE))
  assert 0 < np.abs(latents - exact).max() < 0.1 * np.abs(exact).max()


def test_an_autoencoder_of_another_type():
  latents = np.random.default_rng(0).normal(size=(1, 8, 8, 4))
  latents = jnp.asarray(latents, jnp.float32)
  whole, half = (
    vae_batches.decode_all(pipelines.load(BASE, vae_dtype=dtype), latents)
    for dtype in ('float32', 'bfloat16')
  )
  assert 0 < np.abs(whole - half).max() < 0.1


def test_an_autoencoder_in_float16():
  """Only one that is named, since SDXL's own overflows."""
  latents = np.random.default_rng(0).normal(size=(1, 8, 8, 4))
  latents = jnp.asarray(latents, jnp.float32)
  with pytest.raises(ValueError, match='float16 overflows'):
    pipelines.load(BASE, vae_dtype='float16')
  whole = pipelines.load(BASE)
  half = pipelines.load(BASE, vae_dtype='float16', vae=BASE / 'vae')
  assert dtypes(half.params['vae']) == {'float16'}
  images = [vae_batches.decode_all(x, latents) for x in (whole, half)]
  assert 0 < np.abs(images[1] - images[0]).max() < 0.0125
  tiles = vae_batches.decode_all(half, latents, tile=32)
  assert np.abs(tiles - images[0]).max() < 0.0125


@pytest.mark.slow
@pytest.mark.parametrize('shared', [False, True])
def test_offloaded_nets_draw_the_same(shared):
  """Their parameters stay in the host's memory, before and after."""
  mesh = device_mesh.make_mesh() if shared else None
  folders, drawn = (BASE,) if shared else (BASE, REFINER), []
  for where in ('device', 'pinned_host'):
    offload = where == 'pinned_host'
    experts = [pipelines.load(f, mesh=mesh, offload=offload) for f in folders]
    drawn.append(draw(*experts, count=4 if shared else 1))
    assert {where} == kinds([expert.params for expert in experts])
    assert {'device'} == kinds(experts[0].on_device('unet', 'vae'))
  for one, other in zip(*drawn):
    assert (one == other).all()


@pytest.mark.slow
def test_an_offloaded_workdir(tmp_path):
  config = tiny_config.get_config()
  config.total_steps = 2
  config.samples.every = 0
  train.train(config, tmp_path)
  plain, offloaded = (
    pipelines.load(tmp_path, 'bfloat16', offload=offload).params
    for offload in (False, True)
  )
  assert (kinds(plain), kinds(offloaded)) == ({'device'}, {'pinned_host'})
  assert dtypes(offloaded) == dtypes(plain) == {'bfloat16'}
  for one, other in zip(*map(jax.tree.leaves, (plain, offloaded))):
    assert (np.asarray(one) == np.asarray(other)).all()
