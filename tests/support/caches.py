"""Caches of small folders, made by nets that need no compilation."""

import hashlib
import os

import numpy as np

from sdxl_jax import precompute
from sdxl_jax.data import cut_captions
from sdxl_jax.training import cache_encoder
from tests.support import datasets, tiny_config

BUCKETS = ((32, 48), (48, 32))
SIZES = ((40, 60), (60, 40), (36, 90), (32, 48), (80, 48), (50, 50), (48, 72))


class PlainEncoder:
  """Encodes by slices of pixels, and by hashes of captions.

  `nets` stands for the parameters; `made` counts what was encoded.
  """

  nets = 'first'
  made = 0

  def __init__(self, setup, batch_size):
    del batch_size
    c = setup.config
    self.context = (77, c.unet.context_dim)
    self.pooled = c.text_encoder_2.projection_dim
    self.cut_captions = cut_captions.CutCaptions()

  def identity(self):
    return {'text_encoder': self.nets}

  def moments(self, crops):
    for crop in crops:
      type(self).made += 1
      h, w, _ = crop.shape
      pixels = crop.reshape(h // 4, 4, w // 4, 4, 3).transpose(0, 2, 1, 3, 4)
      values = np.concatenate([pixels.reshape(h // 4, w // 4, -1)] * 2, -1)
      yield values.astype(np.float32)

  def text(self, captions):
    for caption in captions:
      seed = list(hashlib.sha256(caption.encode()).digest())
      rng = np.random.default_rng(seed)
      yield rng.random(self.context), rng.random(self.pooled)


def config_of(folder):
  """The config of a folder of images, whose autoencoder is the identity."""
  config = tiny_config.get_config()
  config.data.source = 'folder'
  config.data.folder.path = str(folder)
  config.data.index_workers = 0
  config.data.buckets = BUCKETS
  return config


def make(monkeypatch, config, output, nets='first', **options):
  """Runs `precompute` with the PlainEncoder.

  Returns:
    The lines reported, and the number of crops that were encoded.
  """
  encoder = type('Encoder', (PlainEncoder,), {'nets': nets})
  monkeypatch.setattr(cache_encoder, 'Encoder', encoder)
  lines = []
  defaults = dict(shard_size=4, dtype='float16')
  precompute.precompute(config, output, **defaults | options, say=lines.append)
  return lines, encoder.made


def contents(folder):
  """Returns {name: bytes} of the files in a folder."""
  return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def write(folder, i, text=None, number=None):
  """Writes record i of a folder, its caption beside it."""
  folder.mkdir(exist_ok=True)
  size, name = SIZES[i % len(SIZES)], f'{i:04d}'
  image = datasets.ramp(*size, number=i % 20 if number is None else number)
  (folder / f'{name}.png').write_bytes(datasets.encode(image))
  (folder / f'{name}.txt').write_text(text or f'picture {i}')


def remove(folder, i):
  for suffix in ('png', 'txt'):
    (folder / f'{i:04d}.{suffix}').unlink()


def edit_all(images):
  """20 kept, 2 changed, 2 removed, 3 added, if there were 24."""
  write(images, 0, 'another caption')
  write(images, 10, number=19)
  remove(images, 5)
  for i in (24, 25):
    write(images, i)
  os.rename(images / '0002.png', images / '00022.png')
  os.rename(images / '0002.txt', images / '00022.txt')


def make_first(tmp_path, monkeypatch):
  """Makes a cache of 24 images.

  Returns its folder, that of the images, and a function that makes a cache.
  """
  images = tmp_path / 'images'
  for i in range(24):
    write(images, i)

  def make_again(folder, images=images, **options):
    return make(monkeypatch, config_of(images), folder, **options)

  make_again(tmp_path / 'cache')
  return tmp_path / 'cache', images, make_again
