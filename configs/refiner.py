"""The refiner: a second UNet for the 200 timesteps of least noise.

  python -m sdxl_jax.train --config configs/refiner.py --workdir DIR/refiner \
    --config.init_from=SDXL --config.data.folder.path=IMAGES

SDXL is the source of the frozen autoencoder and bigG: the base's folder or
stage 3's workdir. Each of IMAGES needs an `aesthetic_score` (metadata.jsonl).

From the paper (section 2.5): same latents, timesteps 0 to 199 only, images of
high quality and resolution. The net is the published refiner's. Our choice:
steps, batch, and the buckets and offset noise of stage 3.

Planned with sdxl_jax.plan for h100x8, where square, widest and tallest bucket
need the same: 27.0 of 59.3 GiB, 26.8 TFLOP per image (32.0 with
rematerialisation), 0.80 s for the gradients of a step (estimate), MFU 27 %.
"""

from configs import stage3


def get_config():
  config = stage3.get_config()
  config.unlock()

  config.refiner = True
  config.from_scratch = ('unet',)
  config.uncond = 'empty'
  config.loss.timestep_range = (0, 200)
  config.samples.every = 0  # the refiner cannot generate by itself

  config.unet.block_out_channels = (384, 768, 1536, 1536)
  config.unet.transformer_depth = (0, 4, 4, 0)
  config.unet.mid_transformer_depth = 4
  config.unet.num_heads = (6, 12, 24, 24)
  config.unet.context_dim = 1280
  config.unet.vector_dim = 2560
  config.text_encoder = None
  return config.lock()
