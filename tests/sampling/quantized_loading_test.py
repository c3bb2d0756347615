"""Weights that are loaded with kernels in 8 bits."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.models import stored_kernels
from sdxl_jax.sampling import generation, offload_choice, pipelines
from sdxl_jax.weights import quantization
from sdxl_jax.weights.lora import lora_file, merge
from tests.support import golden_sets

TINY = golden_sets.SETS[0] / 'tiny'
LORA = f'{TINY / "lora" / "kohya.safetensors"}:0.7'
NETS = 'unet', 'text_encoder', 'text_encoder_2'


@pytest.fixture(scope='module')
def plain():
  return pipelines.load(TINY / 'base')


@pytest.fixture(scope='module')
def stored():
  return pipelines.load(TINY / 'base', weights_dtype='int8')


def flat(pipeline, net):
  return traverse_util.flatten_dict(pipeline.params[net], sep='/')


def check_quantised(found, expected):
  """Fails unless kernels are those of the expected, and all else is equal."""
  quantised = 0
  for net in NETS:
    ours, theirs = flat(found, net), flat(expected, net)
    for path, x in theirs.items():
      layer, _, leaf = path.rpartition('/')
      scale = ours.get(f'{layer}/{stored_kernels.SCALE}')
      if leaf != 'kernel' or scale is None:
        np.testing.assert_array_equal(ours[path], x)
        continue
      quantised += x.size
      expected_pair = quantization.quantize(np.asarray(x), ours[path], scale)
      np.testing.assert_allclose(scale, expected_pair[1], rtol=1e-5)
      # Rounded to another step where the sum of a merge is rounded otherwise.
      steps = np.int32(ours[path]) - np.int32(expected_pair[0])
      assert np.abs(steps).max() <= 1 and (steps != 0).mean() < 1e-3
  return quantised


def test_published_weights(plain, stored):
  quantised = check_quantised(stored, plain)
  total = sum(x.size for net in NETS for x in flat(plain, net).values())
  assert quantised > 0.5 * total
  # The first and the last layer, and the embeddings, stay.
  unet = flat(stored, 'unet')
  for layer in ('conv_in', 'conv_out', 'time_embedding/linear_1'):
    assert unet[f'{layer}/kernel'].dtype == np.float32
  assert flat(stored, 'vae').keys() == flat(plain, 'vae').keys()


def test_the_bytes_by_which_nets_are_placed(plain, stored):
  for name in NETS:
    count = sum(x.nbytes for x in flat(stored, name).values())
    assert offload_choice.count_bytes(stored.model.configs[name]) == count
    # Of the tiny text encoders, most is their vocabulary.
    if name == 'unet':
      assert count < sum(x.nbytes for x in flat(plain, name).values()) / 3


def test_loras_are_merged_before(plain, stored):
  merged = pipelines.load(TINY / 'base', loras=[LORA])
  found = pipelines.load(TINY / 'base', loras=[LORA], weights_dtype='int8')
  check_quantised(found, merged)
  assert found.notes == merged.notes
  loras = lora_file.load_all(stored.params, [LORA])
  for change in (merge.merge, merge.with_copies):
    with pytest.raises(
      ValueError, match='of unet are stored in 8 bits.*--lora'
    ):
      change(stored.params, loras)


@pytest.mark.slow
def test_in_host_memory(stored):
  found = pipelines.load(TINY / 'base', weights_dtype='int8', offload=['unet'])
  for path, x in flat(found, 'unet').items():
    assert x.sharding.memory_kind == 'pinned_host'
    np.testing.assert_array_equal(x, flat(stored, 'unet')[path])


@pytest.mark.slow
def test_a_run():
  run = golden_sets.SETS[0].parent / 'compat' / 'run'
  found = pipelines.load(run, weights_dtype='int8')
  assert check_quantised(found, pipelines.load(run)) > 0
  # The autoencoder, and what is not quantised, are on the device.
  for x in jax.tree.leaves(found.params):
    assert x.sharding.memory_kind != 'pinned_host'


def test_an_unknown_type():
  with pytest.raises(ValueError, match="weights_dtype is 'int4'; pass int8 or"):
    pipelines.load(TINY / 'base', weights_dtype='int4')


@pytest.mark.slow
@pytest.mark.parametrize('dtype', list(stored_kernels.LARGEST))
def test_images_are_nearly_the_same(plain, dtype):
  """By guidance, which multiplies the error of random weights, they differ."""
  chosen = dict(size=(64, 64), steps=4, guidance_scale=1.0)
  found = pipelines.load(TINY / 'base', weights_dtype=dtype)
  _, expected = generation.generate(plain, ['a fox'], **chosen)
  _, latents = generation.generate(found, ['a fox'], **chosen)
  error = np.sqrt(((latents - expected) ** 2).mean() / (expected**2).mean())
  assert 1e-4 < error < {'int8': 0.05, 'float8_e4m3fn': 0.15}[dtype]
  jax.clear_caches()
