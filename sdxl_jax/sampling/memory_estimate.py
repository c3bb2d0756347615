"""Estimates the device memory that the programs of sampling take.

Beside parameters, a program holds at its peak what one of its blocks takes and
what waits for later blocks: the skips of the UNet. Both are sums of arrays with
known shapes. How many of them a block holds at once was read from programs that
were compiled; tests compare the sums with the compiler's own figures.
"""

import math

import jax.numpy as jnp

from sdxl_jax.models import attention, controlnet, sdxl, unet, vae

# Padding, fragments and scratch memory of kernels, which no shape has.
MARGIN = 1.25
# Of code, and of small arrays.
FIXED = 2**27
# Of parameters in other layouts on a TPU. Besides parameters, a v5e's compiler
# allots 1.1 GiB to steps at 1024 px in bfloat16, 1.0 to the refiner's, and 1.2
# to decoding: up to 0.6 GiB more than their arrays.
TPU_COPIES = 2**30
TEXT = 2**28  # of the text encoders: their arrays have 77 rows a prompt
BORDER = 32  # px by which a tile with its margins is larger; see tiled_decoding


def steps(
  model: sdxl.SDXL,
  rows: int,
  size: tuple[int, int],
  words: int,
  platform: str,
) -> int:
  """Returns the bytes that denoising steps take on one device.

  Args:
    model: whose UNet runs.
    rows: images on a device, times the branches of guidance.
    size: (height, width) in latents.
    words: rows of the context, 77 for each chunk of a prompt.
    platform: 'gpu', 'tpu' or 'cpu'.
  """
  config = model.unet
  count = jnp.dtype(config.dtype).itemsize * rows
  walk = UNetWalk(config, rows, size, platform)
  walk.down()
  walk.mid()
  walk.up()
  context = count * words * context_width(config)
  kernels = walk.kernels
  # ControlNets run before the UNet, through which their outputs wait.
  peak, waiting = max(walk.blocks), 0
  for net in model.controlnets:
    part = UNetWalk(net, rows, size, platform)
    part.down()
    part.mid()
    peak = max(peak, *part.blocks)
    waiting += sum(part.waiting) + part.waiting[-1]
    # Beside them, features of the image, and keys and values of its own.
    waiting += part.waiting[0] + count * words * context_width(net)
    kernels += part.kernels
  # cuDNN has kernels in another order, copied once before the first step.
  kernels *= jnp.dtype(config.dtype).itemsize
  copies = {'gpu': kernels, 'tpu': TPU_COPIES}.get(platform, 0)
  return with_margin(peak + waiting + context) + copies


class UNetWalk:
  """Passes the blocks of a UNet in their order.

  Attributes:
    blocks: bytes held in each block passed, with the skips that wait.
    kernels: numbers in the kernels of all convolutions passed.
  """

  def __init__(
    self,
    config: unet.UNetConfig,
    rows: int,
    size: tuple[int, int],
    platform: str,
  ) -> None:
    self.config, self.rows, self.platform = config, rows, platform
    self.count = jnp.dtype(config.dtype).itemsize * rows
    self.pixels = [
      math.prod(-(-side // 2**i) for side in size)
      for i in range(len(config.block_out_channels))
    ]
    self.width = config.block_out_channels[0]
    self.waiting = [self.count * self.pixels[0] * self.width]
    self.blocks, self.kernels = [], 0

  def down(self) -> None:
    """Passes the levels on the way down, whose outputs wait from then on."""
    last = len(self.pixels) - 1
    for level, width in enumerate(self.config.block_out_channels):
      for depth in self.config.depths(level, up=False):
        self.block(level, self.width, width, depth)
        self.waiting.append(self.count * self.pixels[level] * width)
      if level < last:
        self.kernels += 9 * width**2
        self.waiting.append(self.count * self.pixels[level + 1] * width)

  def mid(self) -> None:
    """Passes the mid block."""
    depth = self.config.mid_transformer_depth
    if depth is not None:
      self.block(len(self.pixels) - 1, self.width, self.width, depth)
      if depth:  # a second residual block
        self.kernels += 18 * self.width**2

  def up(self) -> None:
    """Passes the levels on the way up, each block of which takes a skip."""
    for level in reversed(range(len(self.pixels))):
      width = self.config.block_out_channels[level]
      for depth in self.config.depths(level, up=True):
        skip = self.waiting.pop() // (self.count * self.pixels[level])
        self.block(level, self.width + skip, width, depth, copies=3)
      if level:
        self.kernels += 9 * width**2
        # The small array, and the large one before and after a convolution.
        arrays = self.pixels[level] + 2 * self.pixels[level - 1]
        self.hold(self.count * arrays * width)

  def block(
    self, level: int, before: int, after: int, depth: int, copies: int = 2
  ) -> None:
    """Passes a residual block, and transformer blocks if there are any.

    Args:
      level: of its resolution.
      before: channels of its input.
      after: its channels.
      depth: transformer blocks.
      copies: of its input: itself and its norm; the parts that it was joined of
        count as a third.
    """
    pixels = self.pixels[level]
    self.hold(self.count * pixels * (copies * before + 3 * after))
    self.kernels += (9 * after + 9 * before + before) * after
    self.width = after
    if depth:
      heads = self.config.num_heads[level]
      shape = self.rows, pixels, after
      self.hold(attend(self.config, *shape, heads, self.platform))
      # GEGLU has arrays of 8 and of 4 times the width, and its input and norm.
      self.hold(14 * self.count * pixels * after)

  def hold(self, count: int) -> None:
    """Notes the bytes of a block."""
    self.blocks.append(sum(self.waiting) + count)


def context_width(config: unet.UNetConfig) -> int:
  """Returns the numbers of a context's row and of all its keys and values."""
  has_up = not isinstance(config, controlnet.ControlNetConfig)
  total = config.context_dim
  for i, width in enumerate(config.block_out_channels):
    depths = config.depths(i, up=False)
    if has_up:
      depths += config.depths(i, up=True)
    total += 2 * width * sum(depths)
  depth = config.mid_transformer_depth or 0
  return total + 2 * config.block_out_channels[-1] * depth


def attend(
  config: unet.UNetConfig | vae.VAEConfig,
  rows: int,
  pixels: int,
  width: int,
  heads: int,
  platform: str,
) -> int:
  """Returns the bytes of a block's self-attention."""
  itemsize = jnp.dtype(config.dtype).itemsize
  weights = attention.weights_held(
    rows, pixels, heads, config.dtype, config.attention, platform
  )
  # Logits are float32, and their softmax has the type of the net. Beside them
  # are the input, its norm, queries, keys, values and the output.
  return weights * (4 + itemsize) + 6 * itemsize * rows * pixels * width


def decoding(
  model: sdxl.SDXL, size: tuple[int, int], tile: int | None, platform: str
) -> int:
  """Returns the bytes that decoding one image takes.

  Args:
    model: whose autoencoder runs.
    size: (height, width) in latents.
    tile: px, see tiled_decoding.decode; None: without tiles.
    platform: 'gpu', 'tpu' or 'cpu'.
  """
  config = model.vae
  image = 4 * config.in_channels * math.prod(size) * config.downscale**2
  if not isinstance(config, vae.VAEConfig):
    # Patches take no arrays but the image's; a TinyVAE, a few of its width.
    width = getattr(config, 'features', config.in_channels)
    return with_margin(image + 4 * image * width // config.in_channels)
  pixels, width = math.prod(size), config.block_out_channels[-1]
  mid = attend(config, 1, pixels, width, 1, platform)
  if tile is None:
    blocks = blocks_of(config, pixels)
    return with_margin(max(mid, *blocks) + image)
  # Arrays before and after a part wait in full while its tiles are computed.
  inside = blocks_of(config, pixels, (tile + BORDER) ** 2)
  return with_margin(max(mid, stored(config, pixels) + max(inside)) + image)


def encoding(model: sdxl.SDXL, size: tuple[int, int], platform: str) -> int:
  """Returns the bytes that encoding one image takes; see `decoding`."""
  # The encoder has the decoder's levels in reverse, with fewer channels.
  return decoding(model, size, None, platform)


def blocks_of(
  config: vae.VAEConfig, pixels: int, most: float = math.inf
) -> list[int]:
  """Returns the bytes of the blocks of the decoder.

  Args:
    config: of the autoencoder.
    pixels: of the latents.
    most: pixels of a tile, at every resolution.
  """
  itemsize, before = jnp.dtype(config.dtype).itemsize, None
  found = []
  for i, after in enumerate(config.block_out_channels[::-1]):
    area = itemsize * min(pixels * 4**i, most)
    if i:  # a quarter of the pixels, then twice all of them
      found.append(area * 9 * before // 4)
    found.append(area * (2 * (before or after) + after))
    before = after
  return found


def stored(config: vae.VAEConfig, pixels: int) -> int:
  """Returns the bytes of the arrays before and after a part of the decoder.

  Args:
    config: of the autoencoder.
    pixels: of the latents.
  """
  channels = config.block_out_channels[::-1]
  arrays = [pixels * 4**i * width for i, width in enumerate(channels)]
  # A part of the last level has the image as output.
  most = max(2 * max(arrays[:-1]), arrays[-2])
  return jnp.dtype(config.dtype).itemsize * most


def with_margin(count: int) -> int:
  """Returns the bytes of a program of which `count` are known."""
  return int(MARGIN * count) + FIXED
