"""Every config of configs/ with the nets of the tiny base: for the guides.

'stage3' or 'lora:prior' names the config that is made small.
"""

import importlib

from tests.support import published_config, tiny_config

NETS = ('unet', 'vae', 'text_encoder', 'text_encoder_2')


def get_config(name):
  stage, _, kind = name.partition(':')
  if stage == 'tiny':
    return tiny_config.get_config()
  module = importlib.import_module(f'configs.{stage}')
  config = module.get_config(kind) if kind else module.get_config()
  config.unlock()
  small = published_config.get_config()
  for net in NETS:
    config[net] = small[net]
  config.total_steps = 2
  config.global_batch_size = 4
  config.data.buckets = small.data.buckets
  config.data.num_threads = 1
  config.data.index_workers = 0
  config.autoencoder.perceptual_weight = 0.0  # LPIPS may not be installed
  config.samples.size = (32, 48)
  config.samples.every = 0
  return config.lock()
