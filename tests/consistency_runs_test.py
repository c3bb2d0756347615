"""A student of few steps: distilled from a base, resumed, sampled, exported."""

import shutil

import jax
import numpy as np
import pytest

from sdxl_jax import train
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.sampling import generation, pipelines
from tests.support import conversions, random_bases, tiny_config

pytestmark = pytest.mark.slow


def test_a_student(tmp_path, close):
  base = random_bases.save(tmp_path / 'base', tiny_config.get_config())
  config = tiny_config.get_config()
  config.unlock()
  config.update(init_from=str(base), trained=('lora',), caption_dropout=0.0)
  config.lora.unet = dict(layers=r'unet/.*/(to_[qkv]|conv2)', rank=2, alpha=2.0)
  config.distillation.method = 'lcm'
  config.loss.update(loss_type='huber', huber_schedule='constant', huber_c=1e-3)
  config.validation.every = 0
  config.data.buckets = ((16, 24),)
  config.samples.update(
    every=4, size=(16, 24), steps=2, prompts=('a fox',), sampler='lcm'
  )
  config.optimizer.learning_rate = 0.1
  run = tmp_path / 'run'
  assert train.train(config, run) == 4

  # Resumed from the middle, it is the same run.
  shutil.copytree(run, tmp_path / 'again')
  shutil.rmtree(tmp_path / 'again' / 'checkpoints' / '4')
  assert train.train(config, tmp_path / 'again') == 4
  a, b = (
    loading.load_trained_lora(orbax_checkpoint.find(f), config).factors
    for f in (run, tmp_path / 'again')
  )
  for key, factors in a.items():
    jax.tree.map(np.testing.assert_array_equal, factors, b[key])

  # The run samples as the base with the exported LoRA file does.
  path = tmp_path / 'lcm.safetensors'
  conversions.run_lora(run, path, 'kohya')
  few = dict(steps=2, size=(16, 24), guidance_scale=1.0, sampler='lcm')
  student, merged = (
    generation.generate(pipeline, ['a fox'], **few)[0]
    for pipeline in (
      pipelines.load(run),
      pipelines.load(base, loras=[str(path)]),
    )
  )
  close(merged, student, 1e-4)
  plain, _ = generation.generate(pipelines.load(base), ['a fox'], **few)
  assert np.abs(plain - student).max() > 0.01
