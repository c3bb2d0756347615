"""Claim (c), section 2.3: train on many aspects for images of many aspects.

  python -m sdxl_jax.train --config configs/claims/multi_aspect.py:multi \
    --workdir DIR

Arms:
  square  all images are cropped to squares
  multi   to the nearest of three buckets of about the same area

Both have SDXL's conditions, as large a batch and as many steps; both then
sample wide and tall images.
"""

from configs.claims import small

ARMS = ('square', 'multi')
TALL, WIDE = (48, 20), (20, 48)  # (height, width) in px
ASPECTS = tuple(
  aspect * change
  for aspect in (20 / 48, 1.0, 48 / 20)
  for change in (0.94, 0.97, 1.0)
)


def get_config(arm='multi'):
  """Returns the config of one of ARMS."""
  if arm not in ARMS:
    raise ValueError(f'{arm!r} is no arm; choose one of {ARMS}')
  config = small.get_config()
  config.unlock()
  small.show_less(config)
  config.data.scenes.aspects = ASPECTS
  # No image is smaller than its bucket, of the widest neither.
  config.data.scenes.scales = (1.7, 3.0)
  if arm == 'multi':
    config.data.buckets = ((small.SIDE, small.SIDE), TALL, WIDE)
  return config.lock()
