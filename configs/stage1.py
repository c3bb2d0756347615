"""Stage 1: the base UNet from scratch, at 256 x 256.

  python -m sdxl_jax.train --config configs/stage1.py --workdir DIR/stage1 \
    --config.init_from=SDXL --config.data.folder.path=IMAGES

SDXL is a diffusers folder with the frozen autoencoder and text encoders.

From the paper (section 2.5): 600,000 steps, batch 2048, conditioning on sizes
and crop. Our choice, since the paper does not specify it: AdamW at 1e-4 after
10,000 steps of warm-up, EMA 0.9999, text dropped from a tenth of the images,
bfloat16 compute with float32 parameters.

Planned with sdxl_jax.plan for h100x8x8, 32 images per GPU: 4.0 of 59.3 GiB, 1.6
TFLOP per image (1.9 with rematerialisation), 0.14 s for the gradients of a step
(estimate), MFU 36 %.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.unlock()

  config.total_steps = 600_000
  config.global_batch_size = 2048
  config.from_scratch = ('unet',)
  config.data.buckets = ((256, 256),)
  config.samples.size = (256, 256)

  # All devices share one copy of parameters, moments and EMA: 41 GB in float32.
  config.mesh.data = 1
  config.mesh.fsdp = -1

  # Frozen nets compute in bfloat16, and are stored in the same precision.
  config.text_encoder.param_dtype = 'bfloat16'
  config.text_encoder_2.param_dtype = 'bfloat16'
  return config.lock()
