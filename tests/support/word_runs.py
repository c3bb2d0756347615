"""Runs that learn words, on a few images without captions."""

import numpy as np

from sdxl_jax.data import images
from tests.support import random_bases, tiny_config

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
  """Saves a workdir with a base of that config."""
  return random_bases.save(folder, base_config())


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
