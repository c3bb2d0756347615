"""Stage 0 for tests: a small autoencoder, without LPIPS."""

from tests.support import tiny_config


def get_config():
  config = tiny_config.get_config()
  config.unlock()
  config.task = 'autoencoder'
  config.trained = config.from_scratch = ('vae', 'discriminator')
  config.data.buckets = ((32, 32),)
  config.autoencoder.perceptual_weight = 0.0
  config.autoencoder.adversary_start = 2
  config.autoencoder.adversary_features = 8
  config.optimizer.clip_norm = float('inf')
  config.samples.every = 4
  config.vae = dict(
    kind='kl',
    in_channels=3,
    latent_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    scaling_factor=1.0,
    dtype='float32',
    param_dtype='float32',
    attention='xla',
    remat='none',
  )
  return config.lock()
