"""What the claims in miniature share: the SDXL of configs/tiny.py, on 32 px.

Squares of 32 px, so that a run takes minutes on two cores, of all combinations
of objects and backgrounds. The other configs of this folder set what their arms
change; each arm is a run of its own, as

  python -m sdxl_jax.train --config configs/claims/size_conditioning.py:nocond \
    --workdir DIR

and all of them, with what is measured, by tests/benchmarks/claims.py.
"""

from configs import tiny

SIDE = 32  # px, of square images
STEPS = 700


def get_config():
  config = tiny.get_config()
  config.unlock()
  config.total_steps = STEPS
  config.global_batch_size = 16

  config.data.buckets = ((SIDE, SIDE),)
  config.data.scenes.resolution = SIDE
  config.data.scenes.held_out = 0.0
  config.data.scenes.aspects = (1.0,)

  config.optimizer.ema_decay = 0.98
  config.log_every = 50
  config.log_with = ()
  config.checkpoint.every = 350
  config.checkpoint.max_to_keep = 1
  # The runner of all claims samples and measures when a run is done.
  config.samples.every = 0
  config.samples.prompts = tiny.PROMPTS
  config.samples.size = (SIDE, SIDE)
  config.validation.every = 0
  return config.lock()


def show_less(config):
  """Leaves few objects and backgrounds, where objects are in many places.

  Of nine objects in random crops so short a run learned only blobs in the
  middle, whether it knew of the crop or not.
  """
  config.data.scenes.objects = 4
  config.data.scenes.colours = 5
