"""Decoding to RGB, orientation, errors, saving and grids."""

import io

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import images


def encode(image, **options):
  file = io.BytesIO()
  image.save(file, **{'format': 'PNG'} | options)
  return file.getvalue()


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'])
def test_every_mode_becomes_rgb(mode):
  grey = Image.new('L', (5, 3), 255)
  if mode == 'I;16':
    image = Image.fromarray(np.full((3, 5), 65535, np.uint16))
  else:
    image = grey.convert(mode)
  decoded = images.decode(encode(image), 'x')
  assert decoded.shape == (3, 5, 3) and decoded.dtype == np.uint8
  assert (decoded == 255).all()


def test_sixteen_bits_keep_their_grey():
  image = Image.fromarray(np.full((3, 5), 0x8080, np.uint16))
  assert (images.decode(encode(image), 'x') == 0x80).all()


def test_transparency_lies_on_white():
  image = Image.new('RGBA', (2, 2), (200, 0, 0, 0))
  assert (images.decode(encode(image), 'x') == 255).all()
  palette = Image.new('P', (2, 2), 0)
  palette.putpalette([9, 9, 9])
  assert (images.decode(encode(palette, transparency=0), 'x') == 255).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(tmp_path, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / 'a.jpg'
  Image.new('RGB', (30, 20)).save(path, exif=exif)
  size = images.upright_size(path)
  assert size == images.decode(path.read_bytes(), path).shape[:2]
  assert size == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.parametrize('cut', [0, 20, 600])
def test_broken_bytes_name_the_file(cut):
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
  data = encode(image)[:cut]
  with pytest.raises(images.UnreadableImage, match=r'a/b\.png: not a read'):
    images.decode(data, 'a/b.png')


def test_resize_is_antialiased_and_keeps_flat_colour():
  flat = np.full((50, 70, 3), (12, 200, 255), np.uint8)
  assert (images.resize(flat, (13, 90)) == flat[0, 0]).all()
  checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
  small = images.resize(np.stack([checks] * 3, -1), (16, 16))
  assert abs(small.astype(float) - 127.5).max() < 4


def test_float_and_back():
  levels = np.arange(256, dtype=np.uint8)
  image = images.to_float(levels)
  assert image.dtype == np.float32 and (image[0], image[-1]) == (-1, 1)
  np.testing.assert_array_equal(images.to_uint8(image), levels)
  assert images.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_save(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  for name, value in (('a', image), ('b', images.to_float(image))):
    path = tmp_path / 'new' / f'{name}.png'
    images.save(path, value)
    np.testing.assert_array_equal(images.decode(path.read_bytes(), path), image)


def test_grid():
  pictures = [
    np.full((20, 30, 3), 10, np.uint8),
    np.full((30, 20, 3), -1.0, np.float32),
    np.full((8, 8, 3), 30, np.uint8),
  ]
  plain = images.grid(pictures, columns=2, zoom=2)
  assert plain.shape == (4 + 2 * 64, 4 + 2 * 64, 3)
  assert plain[4, 4, 0] == 10 and plain[4, 68, 0] == 0
  assert plain[68, 4, 0] == 30 and plain[100, 100, 0] == images.GREY
  captioned = images.grid(pictures, 2, ['a dog ' * 20, 'b', 'c'])
  assert (captioned[36:48] < 100).any()
