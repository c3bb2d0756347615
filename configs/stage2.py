"""Stage 2: from stage 1's result, at 512 x 512.

  python -m sdxl_jax.train --config configs/stage2.py --workdir DIR/stage2 \
    --config.init_from=DIR/stage1 --config.data.folder.path=IMAGES

From the paper (section 2.5): 200,000 steps. Our choice: stage 1's batch and
optimizer, since the paper does not mention a change.

Planned with sdxl_jax.plan for h100x8x8, 32 images per GPU: 13.1 of 59.3 GiB,
5.9 TFLOP per image (7.1 with rematerialisation), 0.43 s for the gradients of a
step (estimate), MFU 45 %.
"""

from configs import stage1


def get_config():
  config = stage1.get_config()
  config.unlock()

  config.total_steps = 200_000
  config.from_scratch = ()
  config.data.buckets = ((512, 512),)
  config.samples.size = (512, 512)
  return config.lock()
