"""Tiled VAE decoding, for images too large to decode at once.

The result is that of decoding the whole image, up to the rounding of sums:

* Attention is at the size of the latents, and is computed over all of them.
* A tile has a margin as wide as the reach of its convolutions, which is cut
  off; at the border of the image it is padded with the same zeros as the whole.
* GroupNorms divide by statistics of the whole image. These are gathered from
  all tiles one norm after another, since each norm depends on the norms before
  it, and the layers before a norm are computed again for its statistics.

The decoder is split into parts, and only the arrays between parts are stored: a
part is one residual block, or the whole last level, whose arrays are the
largest. So the only array of the image's size is the image. At 2048 px in
float32, SDXL's decoder takes 2.1 GiB instead of 14, and about three times the
work.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from sdxl_jax.models import group_statistics, latent_scaling, layers, vae

Params = dict[str, Any]
Pixels = Float[ArrayLike, 'b h w c']


def decode(
  config: vae.AnyConfig,
  params: Params,
  x: Float[ArrayLike, 'b h w latents'],
  tile: int = 256,
) -> Float[ArrayLike, 'b height width image']:
  """Decodes scaled latents to an image, float32, like VAE.decode.

  Args:
    config: a PatchConfig or a TinyConfig is decoded at once, which takes
      little memory but the image's.
    params: of the autoencoder.
    x: scaled latents, the UNet's input.
    tile: side in px at every resolution, without margins; even. Resolutions at
      which the image is no larger are computed at once.
  """
  if tile < 2 or tile % 2:
    raise ValueError(f'tile is {tile} px; it must be even and at least 2')
  if not isinstance(config, vae.VAEConfig):
    return bind(vae.make_vae(config), params, 'decode')(x)
  # The global part at once, the convolutional parts in tiles.
  x = decode_to_mid(config, params, latent_scaling.unscale(config, x))
  for part in make_parts(config, params['decoder']):
    x = apply_in_tiles(part, x, tile)
  return x.astype(jnp.float32)


def decode_to_mid(
  config: vae.VAEConfig, params: Params, z: Float[ArrayLike, 'b h w latents']
) -> Float[Array, 'b h w c']:
  """Applies all layers up to the mid block, whose attention is global."""
  decoder, features = params['decoder'], config.block_out_channels[-1]
  post_quant = layers.conv(config, config.latent_channels, None, 1, padding=0)
  x = bind(post_quant, params['post_quant_conv'])(z)
  x = bind(layers.conv(config, features, None), decoder['conv_in'])(x)
  return bind(vae.MidBlock(config), decoder['mid_block'])(x)


def bind(
  module: nn.Module, params: Params, method: str | None = None
) -> Callable:
  """Returns the module, or a method of it, as a function of x."""
  return lambda x: module.apply({'params': params}, x, method=method)


@dataclasses.dataclass(frozen=True)
class Part:
  """Consecutive layers of the decoder, the first of which may double the size.

  Attributes:
    steps: the layers.
    scale: output px per input px along a side, 1 or 2.
    reach: radius in output px of the part's receptive field.
    norms: number of GroupNorms.
  """

  steps: tuple[Callable, ...]
  scale: int
  reach: int
  norms: int

  def apply(self, x: Pixels) -> Float[Array, 'b height width features']:
    """Applies the layers without tiles."""
    for step in self.steps:
      x = step(x)
    return x


def make_parts(config: vae.VAEConfig, decoder: Params) -> list[Part]:
  """Splits the decoder after the mid block; `decoder` holds its parameters."""
  parts, up = [], ()
  last = len(config.block_out_channels) - 1
  for i, features in enumerate(config.block_out_channels[::-1]):
    params = decoder[f'up_blocks_{i}']
    # The residual blocks of one level; the level before it ends with `up`.
    resnet = layers.ResnetBlock2D(config, features, 1e-6)
    blocks = [
      bind(resnet, params[f'resnets_{j}'])
      for j in range(config.layers_per_block + 1)
    ]
    if i == last:
      steps = (*up, *blocks, *make_head(config, decoder))
      reach = len(up) + 2 * len(blocks) + 1
      return [*parts, Part(steps, 1 + len(up), reach, 2 * len(blocks) + 1)]
    for block in blocks:
      parts.append(Part((*up, block), 1 + len(up), len(up) + 2, 2))
      up = ()
    up = (bind(layers.Upsample2D(config), params['upsamplers_0']),)


def make_head(
  config: vae.VAEConfig, decoder: Params
) -> tuple[Callable, Callable, Callable]:
  """Makes the decoder's last layers, which turn features into an image."""
  norm = layers.group_norm(config, 1e-6, None)
  conv = layers.conv(config, config.in_channels, None)
  return (
    bind(norm, decoder['conv_norm_out']),
    nn.silu,
    bind(conv, decoder['conv_out']),
  )


def apply_in_tiles(
  part: Part, x: Pixels, tile: int
) -> Float[Array, 'b height width features']:
  """Returns part.apply(x), in tiles where the output is larger than one."""
  _, h, w, _ = x.shape
  if max(h, w) * part.scale <= tile:
    return part.apply(x)
  tiles = make_tiles((h, w), tile // part.scale, -(-part.reach // part.scale))
  # Norm by norm, since a norm's input depends on the norms before it.
  statistics = []
  for _ in range(part.norms):
    statistics.append(gather_statistics(part, x, tiles, statistics))
  return assemble(part, x, tiles, statistics)


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Positions and sizes of all tiles, (height, width) in input px of a part.

  Attributes:
    read_size: with margins, all inside the image.
    write_size: without margins.
    reads: [n, 2], top left corners of what a tile reads.
    cores: [n, 2], of the pixels that only this tile measures.
    writes: [n, 2], of what a tile writes: the last tiles overlap others.
  """

  read_size: tuple[int, int]
  write_size: tuple[int, int]
  reads: np.ndarray
  cores: np.ndarray
  writes: np.ndarray


def make_tiles(size: tuple[int, int], side: int, margin: int) -> Tiles:
  """Covers (height, width) with tiles of one size."""
  # An image smaller than a tile has one tile of its own size.
  write_size = np.minimum(side, size)
  read_size = np.minimum(write_size + 2 * margin, size)
  starts = [range(0, length, step) for length, step in zip(size, write_size)]
  cores = np.stack(np.meshgrid(*starts, indexing='ij'), -1).reshape(-1, 2)
  return Tiles(
    read_size=tuple(read_size.tolist()),
    write_size=tuple(write_size.tolist()),
    reads=np.clip(cores - margin, 0, size - read_size),
    cores=cores,
    writes=np.minimum(cores, size - write_size),
  )


def crop(x: Pixels, corner: Any, size: Any) -> Float[Array, 'b _ _ c']:
  """Cuts (height, width) at a top left corner, which may be traced."""
  return jax.lax.dynamic_slice(
    x, (0, *corner, 0), (x.shape[0], *size, x.shape[-1])
  )


def gather_statistics(
  part: Part, x: Pixels, tiles: Tiles, statistics: list
) -> tuple[group_statistics.GroupStatistics, group_statistics.GroupStatistics]:
  """Returns (mean, variance) of the first norm without `statistics`."""

  def measure_tile(corners):
    read, core = corners
    # Of the tile's pixels only those of its core count.
    ranges = [
      (read[axis] - core[axis]) * part.scale
      + jnp.arange(tiles.read_size[axis] * part.scale)
      for axis in (0, 1)
    ]
    rows, columns = (
      (0 <= r) & (r < length * part.scale)
      for r, length in zip(ranges, tiles.write_size)
    )
    inside = rows[:, None] & columns
    tile = crop(x, read, tiles.read_size)
    _, measured = apply_with(statistics, part, tile, inside)
    return measured

  return group_statistics.merge(
    *jax.lax.map(measure_tile, (tiles.reads, tiles.cores))
  )


def assemble(
  part: Part, x: Pixels, tiles: Tiles, statistics: list
) -> Float[Array, 'b height width features']:
  """Returns the part's output, written tile by tile."""
  size = tuple(part.scale * length for length in tiles.write_size)

  def write_tile(i, output):
    read, write = jnp.asarray(tiles.reads)[i], jnp.asarray(tiles.writes)[i]
    y, _ = apply_with(statistics, part, crop(x, read, tiles.read_size))
    y = crop(y, part.scale * (write - read), size)
    return jax.lax.dynamic_update_slice(output, y, (0, *part.scale * write, 0))

  output = jax.eval_shape(part.apply, x)
  # Filled with a value that is known only now: XLA would allocate arrays of
  # zeros for all parts at the start, and hold them.
  filler = statistics[-1][0][0, 0].astype(output.dtype)
  output = jnp.full(output.shape, filler)
  return jax.lax.fori_loop(0, len(tiles.reads), write_tile, output)


def apply_with(
  statistics: Iterable[
    tuple[group_statistics.GroupStatistics, group_statistics.GroupStatistics]
  ],
  part: Part,
  x: Pixels,
  inside: Bool[Array, 'height width'] | None = None,
) -> tuple[
  Float[Array, 'b height width features'],
  group_statistics.TileStatistics | None,
]:
  """Applies a part with the statistics of its norms passed in.

  Args:
    statistics: (mean, variance) of the first norms, in order.
    part: to apply.
    x: a tile.
    inside: at the norms' resolution, where to measure the next norm.

  Returns:
    (y, measured). With statistics of all norms, y is the output and measured is
    None. Otherwise y is undefined, and measured is of the first norm without.
  """
  remaining, measured = iter(statistics), []

  def intercept(call, args, kwargs, context):
    norm = context.module
    if not isinstance(norm, nn.GroupNorm):
      return call(*args, **kwargs)
    norm_statistics = next(remaining, None)
    if norm_statistics is not None:
      return group_statistics.normalize(norm, *args, *norm_statistics)
    if not measured:
      measured.append(group_statistics.measure(*args, norm.num_groups, inside))
    return args[0]  # the compiler drops all that follows, since y is not used

  with nn.intercept_methods(intercept):
    y = part.apply(x)
  return y, measured[0] if measured else None
