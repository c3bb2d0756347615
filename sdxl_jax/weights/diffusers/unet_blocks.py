"""Translates the blocks of a UNet between its config.json and a UNetConfig.

diffusers lists the transformers of the way up from the lowest resolution on,
and we list those of both ways by level. Pruned nets (SSD-1B, Segmind Vega,
KOALA) have other depths on the way up, blocks of their own depth, one residual
block in place of the mid block, or none.
"""

from collections.abc import Sequence
from typing import Any

from sdxl_jax.models import unet

Json = dict[str, Any]
DOWN = {False: 'DownBlock2D', True: 'CrossAttnDownBlock2D'}
UP = {False: 'UpBlock2D', True: 'CrossAttnUpBlock2D'}
MID_ATTENTION, MID_RESNET = 'UNetMidBlock2DCrossAttn', 'UNetMidBlock2D'
MOST = 99  # blocks of any kind in a row
MIDS = MID_ATTENTION, MID_RESNET, None


def per_level(value: Any, levels: int) -> tuple:
  """Repeats an option that has one value for all levels."""
  return tuple(value) if isinstance(value, list) else (value,) * levels


def read(published: Json, location: str) -> Json:
  """Reads the fields of a UNetConfig that describe its blocks.

  Raises:
    ValueError: for blocks that are not implemented, or too few depths.
  """
  levels = len(published['block_out_channels'])
  mid = published.get('mid_block_type', MID_ATTENTION)
  if mid not in MIDS:
    raise ValueError(
      f'{location}: mid_block_type is {mid!r}, but only {MIDS} are '
      'implemented: the net is another one, or the file was edited'
    )
  layers = per_level(published['layers_per_block'], levels)
  check_counts('layers_per_block', layers, levels, location)
  layers_down = published['transformer_layers_per_block']
  layers_up = published.get('reverse_transformer_layers_per_block')
  depths = per_level(layers_down, levels)
  up = depths if layers_up is None else per_level(layers_up, levels)[::-1]
  for name, values in (
    ('transformer_layers_per_block', depths),
    ('reverse_transformer_layers_per_block', up),
    ('down_block_types', published['down_block_types']),
    ('up_block_types', published['up_block_types']),
  ):
    if len(values) != levels:
      raise ValueError(
        f'{location}: {name} is {list(values)}, and block_out_channels has '
        f'{levels} levels: re-download the file'
      )
  # A level without attention has a depth, too, which does not count.
  down_depths = [
    read_depth(depth, layers[i], location) if block == DOWN[True] else 0
    for i, (depth, block) in enumerate(
      zip(depths, published['down_block_types'])
    )
  ]
  up_depths = [
    read_depth(depth, layers[i] + 1, location) if block == UP[True] else 0
    for i, (depth, block) in enumerate(
      zip(up, published['up_block_types'][::-1])
    )
  ]
  # The mid block has the first depth of the last level.
  last = depths[-1][0] if isinstance(depths[-1], list) else depths[-1]
  return {
    'layers_per_block': unet.shorten(layers),
    'transformer_depth': tuple(down_depths),
    'up_transformer_depth': unet.shorten_up(down_depths, up_depths),
    'mid_transformer_depth': {MID_ATTENTION: last, MID_RESNET: 0}.get(mid),
  }


def read_depth(depth: Any, blocks: int, location: str) -> unet.Depth:
  """Reads the depths of the transformers of one level.

  Raises:
    ValueError: unless there is one for each block.
  """
  depths = depth if isinstance(depth, list) else [depth] * blocks
  # diffusers ignores what it has too many of.
  check_counts('transformer_layers_per_block', depths, blocks, location)
  return unet.shorten(depths[:blocks])


def check_counts(
  name: str, values: Sequence[Any], count: int, location: str
) -> None:
  """Raises ValueError for counts that are too few, or no counts."""
  fits = len(values) >= count and all(
    type(value) is int and 1 <= value <= MOST for value in values
  )
  if not fits:
    raise ValueError(
      f'{location} has an invalid value ({name} has {list(values)} where '
      f'{count} numbers from 1 to {MOST} are needed): re-download the file'
    )


def write(config: unet.UNetConfig) -> Json:
  """Returns the entries of config.json that describe a UNet's blocks.

  Raises:
    ValueError: for a mid block that diffusers cannot describe.
  """
  levels = range(len(config.block_out_channels))
  layers = [config.layers(level) for level in levels]
  down = [config.depths(level, up=False) for level in levels]
  up = [config.depths(level, up=True) for level in levels]
  has_lists = any(len(set(depths)) > 1 for depths in down)
  is_mirrored = config.up_transformer_depth is None and not has_lists
  mid = config.mid_transformer_depth
  entries = [write_depth(depths) for depths in down]
  # diffusers gives the mid block the first depth of the last level.
  if mid and not down[-1][0]:
    entries[-1] = mid
  elif mid and down[-1][0] != mid:
    raise ValueError(
      f'mid_transformer_depth {mid} differs from the last level, '
      f'{down[-1][0]}, which cannot be expressed in a diffusers config.json'
    )
  if any(len({depth > 0 for depth in depths}) > 1 for depths in down + up):
    raise ValueError(
      'a level of the UNet has attention after some of its blocks only, which '
      'cannot be expressed in a diffusers config.json'
    )
  mids = {None: None, 0: MID_RESNET}
  return {
    'layers_per_block': layers if len(set(layers)) > 1 else layers[0],
    'down_block_types': [DOWN[depths[0] > 0] for depths in down],
    'mid_block_type': mids.get(mid, MID_ATTENTION),
    'up_block_types': [UP[depths[0] > 0] for depths in up[::-1]],
    'transformer_layers_per_block': entries,
    # diffusers wants it wherever blocks of a level differ.
    'reverse_transformer_layers_per_block': None
    if is_mirrored
    else [write_depth(depths) for depths in up[::-1]],
  }


def write_depth(depths: tuple[int, ...]) -> Any:
  """Returns the entry of one level; 1 stands where there is no attention."""
  if not depths[0]:
    return 1
  return depths[0] if len(set(depths)) == 1 else list(depths)
