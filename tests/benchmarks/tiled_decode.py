"""Compares decoding at once, in our tiles, and in independent tiles.

  python -m tests.benchmarks.tiled_decode --weights DIR --image photo.jpg

DIR is a diffusers folder, or the workdir of a run of stage 0; without it, a
small net with random weights decodes random latents. Prints peak memory without
arguments and results, seconds, and the difference from decoding at once, in
steps of 255; writes all images and their differences to one PNG.

--memory compiles SDXL's own decoder at several sizes instead, and runs nothing.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from sdxl_jax.checkpoints import loading, source_configs
from sdxl_jax.data import figures, images
from sdxl_jax.models import from_config, latent_scaling, tiled_decoding, vae
from sdxl_jax.weights.diffusers import folder_reader
from tests.support import folders, random_params

SMALL = vae.VAEConfig(
  block_out_channels=(32, 64, 64, 64), norm_num_groups=8, scaling_factor=1.0
)
CELL = 1024  # px of an image in the PNG, at most
GIB = 2**30


def load(folder):
  """Returns (config, params) of an autoencoder."""
  if folder is None:
    return SMALL, random_params.draw(fresh_params(SMALL))
  if (pathlib.Path(folder) / 'vae' / 'config.json').is_file():
    return folders.load_component(folder, 'vae')
  nets = from_config.make_model(source_configs.saved_config(folder))
  return nets.vae, loading.load_params(folder, nets, ['vae'])['vae']


def fresh_params(config):
  image = jnp.zeros((1, 64, 64, 3))
  return jax.jit(vae.VAE(config).init)(jax.random.key(0), image)['params']


def random_latents(side, channels):
  """Returns large shapes and noise, which increases from left to right."""
  rng = np.random.default_rng(0)
  shapes = rng.normal(size=(1, 8, 8, channels))
  x = jax.image.resize(shapes, (1, side, side, channels), 'cubic')
  noise = rng.normal(size=x.shape) * np.linspace(0, 1, side)[:, None]
  return jnp.float32(x + noise)


def encode(config, params, path, side):
  """Returns the latents of an image file, resized to a square."""
  path = pathlib.Path(path)
  image = images.decode(path.read_bytes(), path.name)
  image = images.to_float(images.resize(image, (side, side)))[None]
  net = vae.VAE(config)
  moments = jax.jit(functools.partial(net.apply, method='encode'))(
    {'params': params}, image
  )
  return latent_scaling.scale(config, latent_scaling.split(moments)[0])


def decode_at_once(config, params, x):
  return vae.VAE(config).apply({'params': params}, x, method='decode')


def peak(f, *args):
  """Returns (compiled f, its bytes without arguments and results)."""
  compiled = jax.jit(f).lower(*args).compile()
  return compiled, compiled.memory_analysis().temp_size_in_bytes


def independent(decode, x, side, factor):
  """Decodes tiles independently and blends a quarter of each.

  The algorithm of AutoencoderKL.tiled_decode in diffusers 0.42.1.
  """
  step, extent = side * 3 // 4, side * factor // 4
  rows = []
  for i in range(0, x.shape[1], step):
    rows.append([])
    for j in range(0, x.shape[2], step):
      tile = np.array(decode(x[:, i : i + side, j : j + side])[0])
      if i:
        blend(rows[-2][len(rows[-1])], tile, extent)
      if j:
        blend(rows[-1][-1].swapaxes(0, 1), tile.swapaxes(0, 1), extent)
      rows[-1].append(tile)
  own = step * factor  # px of a tile that the next one does not cover
  return np.concatenate(
    [np.concatenate([tile[:own, :own] for tile in row], axis=1) for row in rows]
  )


def blend(above, tile, extent):
  """Blends the first rows of a tile, in place, with the last ones above."""
  extent = min(extent, len(above), len(tile))
  share = np.arange(extent)[:, None, None] / extent
  tile[:extent] = above[-extent:] * (1 - share) + tile[:extent] * share


def compare(config, params, x, tile):
  """Decodes in three ways and prints figures.

  Returns:
    [(name, image)], the one decoded at once first.
  """
  decoders = {
    'at once': decode_at_once,
    f'tiles of {tile} px': functools.partial(tiled_decoding.decode, tile=tile),
  }
  results = []
  for name, f in decoders.items():
    decode, memory = peak(functools.partial(f, config), params, x)
    started = time.monotonic()
    results.append((name, np.array(decode(params, x)[0])))
    report(results, memory, time.monotonic() - started)
  # The reference decodes all tiles with one program.
  side = min(64, x.shape[1])
  decode = jax.jit(functools.partial(decode_at_once, config))
  started = time.monotonic()
  image = independent(
    functools.partial(decode, params), x, side, config.downscale
  )
  results.append((f'independent tiles of {side * config.downscale} px', image))
  _, memory = peak(
    functools.partial(decode_at_once, config), params, x[:, :side, :side]
  )
  report(results, memory, time.monotonic() - started)
  return results


def report(results, memory, seconds):
  """Prints the figures of the last result."""
  name, image = results[-1]
  error = 127.5 * np.abs(image - results[0][1])
  print(
    f'{name}: {memory / GIB:.2f} GiB, {seconds:.0f} s; differs by at most '
    f'{error.max():.3g} of 255, by {error.mean():.3g} in the mean',
    flush=True,
  )


def make_grid(results):
  """Returns the images, and below them their amplified differences."""
  captions = [name for name, _ in results]
  cells = [image for _, image in results]
  for name, image in results:
    error = np.abs(image - cells[0])
    gain = min(2 / max(error.max(), 1e-30), 1e7)
    cells.append(error * gain - 1)
    captions.append(f'{name}: difference x {gain:.3g}')
  return figures.grid([shrink(c) for c in cells], len(results), captions)


def shrink(image):
  """Keeps every n-th pixel, so that a side has at most CELL."""
  factor = -(-len(image) // CELL)
  return image[::factor, ::factor]


def plan(sizes, tiles):
  """Prints the peak memory of SDXL's decoder, compiled for this machine."""
  for dtype in ('float32', 'bfloat16'):
    config = vae.VAEConfig(dtype=dtype, param_dtype=dtype)
    params = folder_reader.abstract_params(config)
    for size in sizes:
      x = jax.ShapeDtypeStruct((1, size // 8, size // 8, 4), jnp.float32)
      peaks = {
        'at once': peak(functools.partial(decode_at_once, config), params, x)[1]
      }
      for tile in tiles:
        f = functools.partial(tiled_decoding.decode, config, tile=tile)
        peaks[f'tiles of {tile} px'] = peak(f, params, x)[1]
      cells = [f'{name} {v / GIB:.2f} GiB' for name, v in peaks.items()]
      print(f'{size} px, {dtype}: ' + ', '.join(cells), flush=True)


def main(argv):
  del argv
  args = flags.FLAGS
  if args.memory:
    return plan([int(s) for s in args.sizes], (256, 512))
  config, params = load(args.weights)
  if args.image:
    x = encode(config, params, args.image, args.side)
  else:
    x = random_latents(args.side // config.downscale, config.latent_channels)
  images.save(args.output, make_grid(compare(config, params, x, args.tile)))
  print(f'wrote {args.output}')


if __name__ == '__main__':
  flags.DEFINE_string('weights', None, 'diffusers folder or workdir')
  flags.DEFINE_string('image', None, 'image to encode; default: random latents')
  flags.DEFINE_integer('side', 2048, 'px')
  flags.DEFINE_integer('tile', 256, 'px')
  flags.DEFINE_string('output', 'tiled_decode.png', 'PNG to write')
  flags.DEFINE_bool('memory', False, 'of the full-size decoder; run nothing')
  flags.DEFINE_list('sizes', ['1024', '2048', '4096'], 'px, for --memory')
  app.run(main)
