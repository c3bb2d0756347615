"""Runs of all kinds of adapters: resumed, written to files, and read again."""

import shutil

import jax
import numpy as np
import pytest

from sdxl_jax import train
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.sampling import pipelines
from sdxl_jax.weights.lora import lora_file, published_parts
from tests.support import conversions, published_config

GROUPS = {
  'dora': dict(layers=r'unet/.*/attn1/to_[qkv]', rank=2, dora_wd=True),
  'loha': dict(layers=r'unet/.*/attn2/to_[qkv]', rank=2, algo='loha'),
  'lokr': dict(layers=r'unet/.*/(net_2|conv2)', rank=1, algo='lokr'),
  'full': dict(layers=r'unet/.*/proj_in', rank=1, algo='full'),
  'text': dict(layers=r'text_encoder/.*/fc1', rank=1, algo='lokr', factor=2),
}


def get_config(base):
  """Returns a config for a few large steps of all kinds."""
  config = published_config.get_config()
  config.unlock()
  groups = {name: group | {'alpha': 2.0} for name, group in GROUPS.items()}
  config.update(init_from=str(base), trained=('lora',), lora=groups)
  config.total_steps = 3
  config.checkpoint.update(every=1, max_to_keep=3)
  config.samples.every = 0
  config.optimizer.learning_rate = 0.05
  config.optimizer.warmup_steps = 0
  return config.lock()


def trained(folder, config, average='none'):
  """The changes that a run trained."""
  folder = orbax_checkpoint.find(folder)
  return loading.load_trained_lora(folder, config, average=average)


def parts(made):
  """{(net, tensor, part): array} of changes."""
  return {
    (*key, part): array
    for key, delta in made.changes().items()
    for part, array in published_parts.parts_of(delta).items()
  }


@pytest.mark.slow
def test_a_run_of_all_kinds(golden, tmp_path, close):
  base = golden / 'tiny' / 'base'
  config = get_config(base)
  assert train.train(config, tmp_path / 'whole') == 3
  # From the first step on again: the same numbers.
  shutil.copytree(tmp_path / 'whole', tmp_path / 'again')
  for step in '2', '3':
    shutil.rmtree(tmp_path / 'again' / 'checkpoints' / step)
  assert train.train(config, tmp_path / 'again') == 3
  made, again = (trained(tmp_path / n, config) for n in ('whole', 'again'))
  expected = parts(made)
  jax.tree.map(np.testing.assert_array_equal, parts(again), expected)
  first = parts(trained(tmp_path / 'whole' / 'checkpoints' / '1', config))
  for key, array in expected.items():
    assert key[-1] == 'alpha' or not np.array_equal(first[key], array), key
  # The file has the same numbers, and makes the same model of the base.
  path = tmp_path / 'mine.safetensors'
  conversions.run_lora(tmp_path / 'whole', path, average='none')
  loaded = pipelines.load(tmp_path / 'whole', average='none').params
  from_file = pipelines.load(base, loras=[str(path)]).params
  jax.tree.map(lambda a, b: close(a, b, 1e-6), from_file, loaded)
  read = lora_file.load(path, loaded)
  jax.tree.map(np.testing.assert_array_equal, parts(read), expected)
  metadata = read.metadata
  assert metadata['ss_network_module'] == 'lycoris.kohya'
  assert (metadata['ss_steps'], metadata['ss_seed']) == ('3', '0')
  assert metadata['ss_sd_model_name'] == 'base'
