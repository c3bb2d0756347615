"""Loading a workdir builds no part of training."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np

from sdxl_jax.checkpoints import loading
from sdxl_jax.ema import transform
from sdxl_jax.models import from_config
from tests.support import random_runs, tiny_config

ROOT = pathlib.Path(__file__).parents[2]
LORA = {'linear': dict(layers=r'unet/.*/to_[qkv]', rank=2, alpha=4.0)}
# Loads a workdir in a fresh process and prints which modules were imported.
CODE = """
import json, sys
from sdxl_jax.sampling import pipelines
pipeline = pipelines.load(sys.argv[1])
print(json.dumps([sorted(pipeline.params), sorted(sys.modules)]))
"""


def test_no_module_of_training_is_imported(tmp_path):
  """For a run of all nets, and for a run of low-rank factors on top of it."""
  random_runs.save(tiny_config.get_config(), tmp_path / 'base')
  config = tiny_config.get_config().unlock()
  config.update(init_from=str(tmp_path / 'base'), trained=('lora',), lora=LORA)
  random_runs.save(config.lock(), tmp_path / 'lora')
  done = subprocess.run(
    [sys.executable, '-c', CODE, tmp_path / 'lora'],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  nets, modules = json.loads(done.stdout)
  assert nets == ['text_encoder', 'text_encoder_2', 'unet']
  assert 'sdxl_jax.checkpoints.run_params' in modules
  assert not [m for m in modules if m.startswith('sdxl_jax.training')]
  assert 'sdxl_jax.models.discriminator' in modules  # a config, no net


def test_offloaded_nets(tmp_path):
  """They lie in the memory from which devices fetch, in their own dtype."""
  config = tiny_config.get_config()
  state = random_runs.save(config, tmp_path)
  nets = from_config.make_model(config).replace(param_dtype='bfloat16')
  params = loading.load_params(tmp_path, nets, ['unet'], memory='pinned_host')
  average = transform.ema_params(state.opt_state)['unet']
  for x, expected in zip(
    jax.tree.leaves(params['unet']), jax.tree.leaves(average)
  ):
    assert x.sharding.memory_kind == 'pinned_host'
    assert x.dtype == 'bfloat16'
    np.testing.assert_array_equal(x, expected.astype('bfloat16'))
