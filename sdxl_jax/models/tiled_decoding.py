"""The autoencoder's decode in tiles, for pictures too large to decode whole.

What comes out is the whole decode's picture, up to the rounding of sums:

* Attention is at the size of the latents, and computed there over all of them.
* A tile has a margin as wide as its convolutions reach, which is thrown away;
  at the border of the picture it sees the same zeros as the whole.
* GroupNorms divide by statistics of the whole picture. They are gathered from
  all tiles one norm after another, since each needs those before it, and what
  leads up to a norm is computed again for it.

The decoder is cut into parts, and only what goes from part to part is kept: a
part is one residual block, or the whole last level, whose arrays are the
largest. So nothing of the picture's size is kept but the picture. At 2048 px in
float32, SDXL's takes 2.1 GiB and not 14, and about three times the work.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.models import latent_scaling, layers, vae


def decode(config, params, x, tile=256):
  """Latents [b, h, w, 4] > image [b, 8 h, 8 w, 3] float32, as VAE.decode.

  Args:
    config: vae.VAEConfig; or vae.PatchConfig, which is decoded whole, as that
      takes no memory but the picture's.
    params: of the autoencoder.
    x: latents as the UNet sees them.
    tile: side in px at every resolution, without margins; even. Resolutions at
      which the picture is no larger are computed whole.
  """
  if tile < 2 or tile % 2:
    raise ValueError(f'tile is {tile} px; it must be even and at least 2')
  if isinstance(config, vae.PatchConfig):
    return vae.PatchVAE(config).apply({}, x, method='decode')
  x = decode_to_mid(config, params, latent_scaling.unscale(config, x))
  for part in make_parts(config, params['decoder']):
    x = apply_in_tiles(part, x, tile)
  return x.astype(jnp.float32)


def decode_to_mid(config, params, z):
  """All that is at the size of the latents and sees them whole."""
  decoder, features = params['decoder'], config.block_out_channels[-1]
  project = layers.conv(config, config.latent_channels, None, 1, padding=0)
  x = bind(project, params['post_quant_conv'])(z)
  x = bind(layers.conv(config, features, None), decoder['conv_in'])(x)
  return bind(vae.MidBlock(config), decoder['mid_block'])(x)


def bind(module, params):
  return lambda x: module.apply({'params': params}, x)


@dataclasses.dataclass(frozen=True)
class Part:
  """A stretch of the decoder, after at most one doubling of the size."""

  steps: tuple[Callable, ...]
  scale: int  # px that come out of one
  reach: int  # px around one that comes out, at its resolution, that it sees
  norms: int

  def apply(self, x):
    for step in self.steps:
      x = step(x)
    return x


def make_parts(config, decoder):
  """The Parts that follow the mid block; `decoder` is the params of it all."""
  parts, up = [], ()
  last = len(config.block_out_channels) - 1
  for i, features in enumerate(config.block_out_channels[::-1]):
    params = decoder[f'up_blocks_{i}']
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


def make_head(config, decoder):
  """Its last two layers, which make a picture of features."""
  norm = layers.group_norm(config, 1e-6, None)
  conv = layers.conv(config, config.in_channels, None)
  return (
    bind(norm, decoder['conv_norm_out']),
    nn.silu,
    bind(conv, decoder['conv_out']),
  )


def apply_in_tiles(part, x, tile):
  """part.apply(x), in tiles where what comes out is larger than one."""
  _, h, w, _ = x.shape
  if max(h, w) * part.scale <= tile:
    return part.apply(x)
  tiles = lay_out((h, w), tile // part.scale, -(-part.reach // part.scale))
  statistics = []
  for _ in range(part.norms):
    statistics.append(gather(part, x, tiles, statistics))
  return put_together(part, x, tiles, statistics)


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Where tiles lie, in px of what a part is given."""

  read: tuple[int, int]  # height and width with margins, all inside the picture
  kept: tuple[int, int]  # without
  begins: np.ndarray  # [n, 2], of what is read
  cores: np.ndarray  # [n, 2], of what a tile alone accounts for
  writes: np.ndarray  # [n, 2], of what is kept: the last ones overlap others


def lay_out(size, side, margin):
  kept = np.minimum(side, size)
  read = np.minimum(kept + 2 * margin, size)
  starts = [range(0, length, step) for length, step in zip(size, kept)]
  cores = np.stack(np.meshgrid(*starts, indexing='ij'), -1).reshape(-1, 2)
  begins = np.clip(cores - margin, 0, size - read)
  writes = np.minimum(cores, size - kept)
  return Tiles(tuple(read), tuple(kept), begins, cores, writes)


def cut(x, begin, size):
  return jax.lax.dynamic_slice(
    x, (0, *begin, 0), (x.shape[0], *size, x.shape[-1])
  )


def gather(part, x, tiles, statistics):
  """(mean, variance) [b, groups] of the first norm that has none yet."""

  def one(place):
    begin, core = place
    ranges = [
      (begin[axis] - core[axis]) * part.scale
      + jnp.arange(tiles.read[axis] * part.scale)
      for axis in (0, 1)
    ]
    rows, columns = (
      (0 <= r) & (r < kept * part.scale) for r, kept in zip(ranges, tiles.kept)
    )
    inside = rows[:, None] & columns
    _, found = apply_with(statistics, part, cut(x, begin, tiles.read), inside)
    return found

  return merge(*jax.lax.map(one, (tiles.begins, tiles.cores)))


def put_together(part, x, tiles, statistics):
  """What the part makes of x once the statistics of all norms are known."""
  scaled = lambda size: tuple(part.scale * s for s in size)

  def one(i, whole):
    begin, write = jnp.asarray(tiles.begins)[i], jnp.asarray(tiles.writes)[i]
    y, _ = apply_with(statistics, part, cut(x, begin, tiles.read))
    y = cut(y, part.scale * (write - begin), scaled(tiles.kept))
    return jax.lax.dynamic_update_slice(whole, y, (0, *part.scale * write, 0))

  whole = jax.eval_shape(part.apply, x)
  # Filled with a value known only now: arrays of zeros for all parts would be
  # made at the start, and lie there.
  filler = statistics[-1][0][0, 0].astype(whole.dtype)
  whole = jnp.full(whole.shape, filler)
  return jax.lax.fori_loop(0, len(tiles.begins), one, whole)


def apply_with(statistics, part, x, inside=None):
  """part.apply(x), its norms given statistics, one after another.

  Args:
    statistics: list of (mean, variance), each [b, groups], of the first norms.
    part: Part.
    x: [b, h, w, c].
    inside: bool [h, w] at the norms' resolution, where to measure the next.

  Returns:
    (y, found). If there are statistics of all norms, y is what comes out. If
    not, it means nothing, and found is what `measure` finds before the first
    norm without.
  """
  left, found = iter(statistics), []

  def intercept(call, args, kwargs, context):
    norm = context.module
    if not isinstance(norm, nn.GroupNorm):
      return call(*args, **kwargs)
    given = next(left, None)
    if given is not None:
      return normalise(norm, *args, *given)
    if not found:
      found.extend(measure(*args, norm.num_groups, inside))
    return args[0]  # nobody asks for what follows, and it is not computed

  with nn.intercept_methods(intercept):
    y = part.apply(x)
  return y, tuple(found)


def normalise(norm, x, mean, variance):
  """As nn.GroupNorm does; mean and variance [b, groups]."""
  size = x.shape[-1] // norm.num_groups
  mean, variance = (
    s.repeat(size, axis=-1)[:, None, None] for s in (mean, variance)
  )
  gain = jax.lax.rsqrt(variance + norm.epsilon)
  gain *= norm.get_variable('params', 'scale')
  y = (x - mean) * gain + norm.get_variable('params', 'bias')
  return y.astype(norm.dtype)


def measure(x, groups, inside):
  """Count, mean and sum of squares about it of what is inside, per group."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, groups, c // groups).astype(jnp.float32)
  inside = inside[:, :, None, None]
  total = lambda x: jnp.where(inside, x, 0).sum((1, 2, 4))
  count = inside.sum(dtype=jnp.float32) * (c // groups)
  mean = total(x) / count
  return count, mean, total((x - mean[:, None, None, :, None]) ** 2)


def merge(count, mean, squares):
  """Mean and variance of all tiles from those of each, along the first axis.

  Chan, Golub, LeVeque 1979, equation 2.1: what the means differ by is added.
  """
  share = (count / count.sum())[:, None, None]
  whole = (share * mean).sum(0)
  variance = squares.sum(0) / count.sum() + (share * (mean - whole) ** 2).sum(0)
  return whole, variance
