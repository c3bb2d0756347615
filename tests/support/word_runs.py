"""Runs that learn words, on a few images without captions."""

import jax
import numpy as np

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.data import images
from sdxl_jax.models import from_config
from sdxl_jax.training import tasks
from tests.support import tiny_config

WORDS = {
  'toy': dict(token_string='<toy>', init_word='fox', num_vectors_per_token=2),
  'style': dict(
    token_string='<style>', init_word='red', num_vectors_per_token=1
  ),
}
LORA = {'linear': dict(layers=r'unet/.*/to_[qkv]', rank=2, alpha=4.0)}
TEMPLATES = ('a photo of <toy> in <style>', 'a <style> painting of <toy>')


def base_config():
  """Returns the tiny config with text encoders of different widths."""
  config = tiny_config.get_config()
  config.unlock()
  config.text_encoder_2.hidden_size = 12
  config.unet.context_dim = 8 + 12
  return config


def save_base(folder):
  """Saves a workdir with a base model: random, and never trained."""
  config = base_config()
  task = tasks.make_task(config, from_config.make_model(config))
  state = jax.jit(task.init)(jax.random.key(0))
  # Layers that begin with zeros would hide what is before them.
  state = jax.tree.map(lambda x: x + 0.05 if x.ndim else x, state)
  checkpoints = orbax_checkpoint.Checkpoints(folder)
  checkpoints.save(1, state, {'batches': 0}, config.to_dict())
  checkpoints.close()
  return folder


def save_images(folder):
  """Saves images without captions."""
  rng = np.random.default_rng(0)
  for i in range(6):
    image = rng.integers(0, 256, (16, 24, 3), np.uint8)
    images.save(folder / f'{i}.png', image)
  return folder


def get_config(base, folder, **changes):
  """Returns a config for a few steps of words, beside factors."""
  config = base_config()
  config.update(
    init_from=str(base),
    trained=('words', 'lora'),
    words=WORDS,
    lora=LORA,
    caption_dropout=0.0,
  )
  config.data.update(
    source='folder',
    buckets=((16, 24),),
    index_workers=0,
    templates=TEMPLATES,
    folder=dict(path=str(folder), captions=False),
  )
  config.total_steps, config.log_every = 40, 10
  config.checkpoint.every = 20
  config.optimizer.learning_rate = 0.05
  config.samples.update(
    every=40, size=(16, 24), steps=2, prompts=('a <toy> in <style>', 'a fox')
  )
  config.update(changes)
  return config.lock()
