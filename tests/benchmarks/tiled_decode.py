"""The autoencoder's decode: whole, in our tiles, and in independent tiles.

  python -m tests.benchmarks.tiled_decode --weights DIR --image photo.jpg

DIR is a diffusers folder, or the workdir of a run of stage 0; without it, a
small net with random weights decodes random latents. Prints peak memory besides
arguments and picture, seconds, and how far from the whole decode each is, in
steps of 255; writes all pictures and their differences as one PNG.

--memory compiles SDXL's own decoder at several sizes instead, and runs nothing.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from sdxl_jax.checkpoints import loading
from sdxl_jax.data import images
from sdxl_jax.models import from_config, latent_scaling, tiled_decoding, vae
from sdxl_jax.weights.diffusers import folder_reader
from tests.support import folders, random_params

SMALL = vae.VAEConfig(
  block_out_channels=(32, 64, 64, 64), norm_num_groups=8, scaling_factor=1.0
)
CELL = 1024  # px of a picture in the PNG, at most
GIB = 2**30


def load(folder):
  """(config, params) of an autoencoder."""
  if folder is None:
    return SMALL, random_params.draw(fresh_params(SMALL))
  if (pathlib.Path(folder) / 'vae' / 'config.json').is_file():
    return folders.load_component(folder, 'vae')
  nets = from_config.make_model(loading.saved_config(folder))
  return nets.vae, loading.load_params(folder, nets, ['vae'])['vae']


def fresh_params(config):
  image = jnp.zeros((1, 64, 64, 3))
  return jax.jit(vae.VAE(config).init)(jax.random.key(0), image)['params']


def random_latents(side, channels):
  """Large forms and noise, flat on the left and busy on the right."""
  rng = np.random.default_rng(0)
  forms = rng.normal(size=(1, 8, 8, channels))
  x = jax.image.resize(forms, (1, side, side, channels), 'cubic')
  noise = rng.normal(size=x.shape) * np.linspace(0, 1, side)[:, None]
  return jnp.float32(x + noise)


def encode(config, params, path, side):
  """Latents of a picture, made square."""
  path = pathlib.Path(path)
  image = images.decode(path.read_bytes(), path.name)
  image = images.to_float(images.resize(image, (side, side)))[None]
  net = vae.VAE(config)
  moments = jax.jit(functools.partial(net.apply, method='encode'))(
    {'params': params}, image
  )
  return latent_scaling.scale(config, latent_scaling.split(moments)[0])


def whole(config, params, x):
  return vae.VAE(config).apply({'params': params}, x, method='decode')


def peak(f, *args):
  """(f compiled, bytes it takes besides arguments and results)."""
  compiled = jax.jit(f).lower(*args).compile()
  return compiled, compiled.memory_analysis().temp_size_in_bytes


def independent(decode, x, side, factor):
  """Tiles decoded alone, a quarter of them blended, as diffusers does it.

  AutoencoderKL.tiled_decode at 0.42.1.
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
  kept = step * factor
  return np.concatenate(
    [
      np.concatenate([tile[:kept, :kept] for tile in row], axis=1)
      for row in rows
    ]
  )


def blend(above, tile, extent):
  """The first rows of a tile, in place, with the last of the one above."""
  extent = min(extent, len(above), len(tile))
  share = np.arange(extent)[:, None, None] / extent
  tile[:extent] = above[-extent:] * (1 - share) + tile[:extent] * share


def compare(config, params, x, tile):
  """[(name, picture)] of the three, the whole one first; prints figures."""
  names = 'whole', f'tiles of {tile} px'
  functions = whole, functools.partial(tiled_decoding.decode, tile=tile)
  pictures = []
  for name, f in zip(names, functions):
    decode, memory = peak(functools.partial(f, config), params, x)
    started = time.monotonic()
    pictures.append((name, np.array(decode(params, x)[0])))
    report(pictures, memory, time.monotonic() - started)
  side = min(64, x.shape[1])
  decode = jax.jit(functools.partial(whole, config))
  started = time.monotonic()
  picture = independent(
    functools.partial(decode, params), x, side, config.downscale
  )
  pictures.append(
    (f'independent tiles of {side * config.downscale} px', picture)
  )
  _, memory = peak(functools.partial(whole, config), params, x[:, :side, :side])
  report(pictures, memory, time.monotonic() - started)
  return pictures


def report(pictures, memory, seconds):
  name, picture = pictures[-1]
  error = 127.5 * np.abs(picture - pictures[0][1])
  print(
    f'{name}: {memory / GIB:.2f} GiB, {seconds:.0f} s; differs by at most '
    f'{error.max():.3g} of 255, by {error.mean():.3g} in the mean',
    flush=True,
  )


def draw(pictures):
  """Above the pictures, below their differences, as bright as can be seen."""
  cells, captions = [p for _, p in pictures], [name for name, _ in pictures]
  for name, picture in pictures:
    error = np.abs(picture - cells[0])
    gain = min(2 / max(error.max(), 1e-30), 1e7)
    cells.append(error * gain - 1)
    captions.append(f'{name}: difference x {gain:.3g}')
  return images.grid([shrink(c) for c in cells], len(pictures), captions)


def shrink(picture):
  """Every second, third, ... pixel, so that it has at most CELL of a side."""
  factor = -(-len(picture) // CELL)
  return picture[::factor, ::factor]


def plan(sizes, tiles):
  """Peak memory of SDXL's decoder, compiled for this machine."""
  for dtype in ('float32', 'bfloat16'):
    config = vae.VAEConfig(dtype=dtype, param_dtype=dtype)
    params = folder_reader.abstract_params(config)
    for size in sizes:
      x = jax.ShapeDtypeStruct((1, size // 8, size // 8, 4), jnp.float32)
      found = {'whole': peak(functools.partial(whole, config), params, x)[1]}
      for tile in tiles:
        f = functools.partial(tiled_decoding.decode, config, tile=tile)
        found[f'tiles of {tile} px'] = peak(f, params, x)[1]
      cells = [f'{name} {v / GIB:.2f} GiB' for name, v in found.items()]
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
  images.save(args.output, draw(compare(config, params, x, args.tile)))
  print(f'wrote {args.output}')


if __name__ == '__main__':
  flags.DEFINE_string('weights', None, 'diffusers folder or workdir')
  flags.DEFINE_string('image', None, 'a picture to encode first')
  flags.DEFINE_integer('side', 2048, 'px')
  flags.DEFINE_integer('tile', 256, 'px')
  flags.DEFINE_string('output', 'tiled_decode.png', 'PNG to write')
  flags.DEFINE_bool('memory', False, 'of the full-size net; run nothing')
  flags.DEFINE_list('sizes', ['1024', '2048', '4096'], 'px, for --memory')
  app.run(main)
