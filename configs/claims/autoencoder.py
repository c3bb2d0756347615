"""Claim (e), Table 3: a large batch and an EMA reconstruct best (section 2.4).

  python -m sdxl_jax.train --config configs/claims/autoencoder.py:large_batch \
    --workdir DIR

Arms:
  small_batch  2 images per step, eight times as many steps
  large_batch  16 images per step

Both see the same number of images. The checkpoint of small_batch after as many
steps as large_batch has stays too, so that both ways to compare them can be
measured; each with its last parameters and with their EMA. Latents have 4
channels at a quarter of the side; losses are L1, LPIPS and KL, without
discriminator, which 300 steps would not train.
"""

from configs import tiny
from configs.claims import small

ARMS = ('small_batch', 'large_batch')
SMALL, LARGE = 2, 16  # images per step; the paper's are 9 and 256
STEPS = 300  # of the large batch
NEVER = 1_000_000  # a step beyond the end


def get_config(arm='large_batch'):
  """Returns the config of one of ARMS."""
  if arm not in ARMS:
    raise ValueError(f'{arm!r} is no arm; choose one of {ARMS}')
  config = tiny.get_config('stage0')
  config.unlock()
  config.data.buckets = ((small.SIDE, small.SIDE),)
  config.data.scenes.resolution = small.SIDE
  config.data.scenes.held_out = 0.0
  config.data.scenes.aspects = (1.0,)
  config.data.scenes.scales = (1.0, 3.0)
  config.data.scenes.jitter = 1.0
  config.vae.latent_channels = 4
  config.vae.block_out_channels = (16, 32, 32)
  config.autoencoder.adversary_start = NEVER
  config.autoencoder.measure_latents = 0
  config.vae.scaling_factor = 1.0  # no UNet is trained on these latents
  config.optimizer.schedule = 'constant'
  config.optimizer.ema_decay = 0.99
  config.log_every = 50
  config.log_with = ()
  config.checkpoint.every = config.checkpoint.keep_every = STEPS
  config.checkpoint.max_to_keep = 1
  config.samples.every = 0
  config.validation.every = 0
  config.global_batch_size = LARGE
  config.total_steps = STEPS
  if arm == 'small_batch':
    config.global_batch_size = SMALL
    config.total_steps = STEPS * LARGE // SMALL
  return config.lock()
