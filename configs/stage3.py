"""Stage 3: multi-aspect training around 1024 x 1024, in 40 buckets.

  python -m sdxl_jax.train --config configs/stage3.py --workdir DIR/stage3 \
    --config.init_from=DIR/stage2 --config.data.folder.path=IMAGES

From the paper (sections 2.3, 2.5 and appendix I): the buckets, one per step,
in proportion to their images; conditioning on the bucket's size; offset noise
0.05. Our choice: steps and batch, which the paper does not specify.

Planned with sdxl_jax.plan, per device, for a batch of 64 images; square, widest
and tallest bucket need the same. One float32 copy of parameters, moments and
EMA is sharded over all devices.

  machine    GiB          TFLOP/image    s     MFU   with --config.
  v5p:2x2x2  38.6 of 95.7  25.6 (26.4)   1.32  34 %  unet.remat=dots
  v5e:4x4    11.8 of 15.8  25.6 (26.4)   2.33  22 %  unet.remat=dots
                                                     accumulation_steps=2
  h100x8     25.0 of 59.3  25.2 (30.1)   0.65  31 %

TFLOP in brackets: with rematerialisation. Seconds are estimates for the
gradients of a step; sdxl_jax.plan prints the method.
"""

from configs import stage2

# Appendix I, (height, width) in px. Not symmetric, as printed.
BUCKETS = (
  (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792),
  (576, 1728), (576, 1664), (640, 1600), (640, 1536), (704, 1472),
  (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216),
  (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024),
  (1024, 1024), (1024, 960), (1088, 960), (1088, 896), (1152, 896),
  (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704),
  (1472, 704), (1536, 640), (1600, 640), (1664, 576), (1728, 576),
  (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512),
)  # fmt: skip


def get_config():
  config = stage2.get_config()
  config.unlock()

  config.total_steps = 100_000
  config.global_batch_size = 64
  config.data.buckets = BUCKETS
  config.loss.offset_noise = 0.05
  config.samples.size = (1024, 1024)
  return config.lock()
