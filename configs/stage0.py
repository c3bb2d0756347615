"""Stage 0: the autoencoder, from scratch, at 256 x 256.

  python -m sdxl_jax.train --config configs/stage0.py --workdir DIR/stage0 \
    --config.data.folder.path=PICTURES

To go on from published weights, add --config.init_from=SDXL
--config.from_scratch=discriminator; so that UNets trained on their latents can
use the result, also --config.autoencoder.decoder_only=True.

The paper's (section 2.4): the architecture of Stable Diffusion's, a batch of
256, and an EMA of the weights. Ours, since it does not say: the losses and
weights of latent diffusion (config.autoencoder), with the log-variance learned
as in its successor; AdamW without decay at 1e-4, betas 0.5 and 0.9; bfloat16.

Planned with sdxl_jax.plan, 3.8 TFLOP per picture; seconds are estimates of the
gradients of a step:

  machine  pictures each  GiB of each   seconds  MFU
  h100x8   32             31.0 of 59.3  0.17     70 %
  v5e:4x4  16             11.8 of 15.8  0.43     70 %
"""

from configs import default


def get_config():
  config = default.get_config()
  config.unlock()

  config.task = 'autoencoder'
  config.trained = ('vae', 'discriminator')
  config.from_scratch = ('vae', 'discriminator')
  config.total_steps = 250_000
  config.global_batch_size = 256
  config.autoencoder.measure_latents = 4096
  config.data.buckets = ((256, 256),)
  config.data.flip_probability = 0.5
  # It learns from pictures alone.
  config.data.folder.captions = False
  config.data.webdataset.caption = ''
  config.data.parquet.caption = ''
  config.data.tfds.caption = ''

  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 1000
  config.optimizer.b1 = 0.5
  config.optimizer.b2 = 0.9
  config.optimizer.weight_decay = 0.0
  # The loss is a sum over pixels: its gradient has no natural size.
  config.optimizer.clip_norm = float('inf')

  # Over float32 parameters; losses and LPIPS are float32.
  config.vae.dtype = 'bfloat16'

  return config.lock()
