"""Claim (d), section 2.5: a second model for the last steps is better.

  python -m sdxl_jax.train --config configs/claims/refiner.py --workdir DIR \
    --config.init_from=BASE

BASE is a run of configs/claims/size_conditioning.py:size_cond, whose images are
small and large. The refiner is trained on the last 200 timesteps, from random
parameters, and on the large images alone, as the paper's is specialised on
images of high quality; these have noise with a score that measures it.
"""

from configs import tiny
from configs.claims import size_conditioning, small


def get_config():
  config = size_conditioning.get_config('size_cond')
  config.unlock()
  config.data.filters.min_side = small.SIDE
  config.data.scenes.scored = True
  config.trained = config.from_scratch = ('unet',)
  config.refiner = True
  config.uncond = 'empty'
  config.loss.timestep_range = (0, 200)
  config.text_encoder = None
  config.unet.context_dim = tiny.get_config('refiner').unet.context_dim
  config.unet.vector_dim = tiny.get_config('refiner').unet.vector_dim
  return config.lock()
