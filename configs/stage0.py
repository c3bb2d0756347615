"""Stage 0: the autoencoder, from scratch, at 256 x 256.

  python -m sdxl_jax.train --config configs/stage0.py --workdir DIR/stage0 \
    --config.data.folder.path=IMAGES

To continue from published weights, add --config.init_from=SDXL
--config.from_scratch=discriminator. Add
--config.autoencoder.decoder_only=True to keep the latents, so that UNets
trained on them can use the result.

From the paper (section 2.4): the architecture of Stable Diffusion's
autoencoder, a batch of 256, and an EMA of the weights. Our choice, since the
paper does not specify it: the losses and weights of latent diffusion
(config.autoencoder), with a trained log-variance as in its successor; AdamW
without decay at 1e-4, betas 0.5 and 0.9; bfloat16.

Planned with sdxl_jax.plan, 3.8 TFLOP per image; seconds are estimates for the
gradients of a step:

  machine  images/device  GiB/device    seconds  MFU
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
  # Autoencoders are trained on images alone.
  config.data.folder.captions = False
  config.data.webdataset.caption = ''
  config.data.parquet.caption = ''
  config.data.tfds.caption = ''

  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 1000
  config.optimizer.b1 = 0.5
  config.optimizer.b2 = 0.9
  config.optimizer.weight_decay = 0.0
  # No clipping: the loss is a sum over pixels, whose gradient norm depends on
  # the size of the images.
  config.optimizer.clip_norm = float('inf')

  # Parameters are float32, and so are losses and LPIPS.
  config.vae.dtype = 'bfloat16'

  return config.lock()
