"""Claim (b), section 2.2 and figure 5: with the crop as condition, none is cut.

  python -m sdxl_jax.train --workdir DIR \
    --config configs/claims/crop_conditioning.py:crop_cond

Arms:
  nocond     random crops to squares, without the crop position as a condition
  crop_cond  the same, and each crop's top left corner is a condition

One object in the middle of each image, of aspect 1:2, 1:1 or 2:1: random crops
to a square cut it off in about half of them. The size is constant in both arms,
since the aspect of a size would tell whether there was a crop at all. Samples
of both are at (0, 0), as the paper's.
"""

from configs.claims import small

ARMS = ('nocond', 'crop_cond')
ASPECTS = (1 / 2, 1.0, 2.0)  # height / width
STEPS = 2 * small.STEPS  # after as many as the others have, both are blurred


def get_config(arm='crop_cond'):
  """Returns the config of one of ARMS."""
  if arm not in ARMS:
    raise ValueError(f'{arm!r} is no arm; choose one of {ARMS}')
  config = small.get_config()
  config.unlock()
  config.total_steps = STEPS
  config.checkpoint.every = small.STEPS
  small.show_less(config)
  config.data.scenes.aspects = ASPECTS
  config.data.scenes.max_objects = 1
  # No image is smaller than its square, of the widest neither.
  config.data.scenes.scales = (1.5, 3.0)
  config.data.fixed_original_size = (small.SIDE, small.SIDE)
  if arm == 'nocond':
    config.data.fixed_crop_top_left = (0, 0)
  return config.lock()
