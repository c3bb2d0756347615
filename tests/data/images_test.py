"""Tests decoding to RGB, orientation, errors, saving, text and grids."""

import io
import pathlib
import re
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import image_formats, images


def encode(image, **options):
  file = io.BytesIO()
  image.save(file, **{'format': 'PNG'} | options)
  return file.getvalue()


def decode(data, **settings):
  return np.asarray(images.decode(data, 'x', **settings))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'])
def test_every_mode_becomes_rgb(mode):
  grey = Image.new('L', (5, 3), 255)
  if mode == 'I;16':
    image = Image.fromarray(np.full((3, 5), 65535, np.uint16))
  else:
    image = grey.convert(mode)
  decoded = decode(encode(image))
  assert decoded.shape == (3, 5, 3) and decoded.dtype == np.uint8
  assert (decoded == 255).all()


def test_sixteen_bits_keep_their_grey():
  image = Image.fromarray(np.full((3, 5), 0x8080, np.uint16))
  assert (decode(encode(image)) == 0x80).all()


def test_transparency_lies_on_white():
  image = Image.new('RGBA', (2, 2), (200, 0, 0, 0))
  assert (decode(encode(image)) == 255).all()
  palette = Image.new('P', (2, 2), 0)
  palette.putpalette([9, 9, 9])
  assert (decode(encode(palette, transparency=0)) == 255).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(tmp_path, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / 'a.jpg'
  Image.new('RGB', (30, 20)).save(path, exif=exif)
  size = images.upright_size(io.BytesIO(path.read_bytes()))
  assert size == decode(path.read_bytes()).shape[:2]
  assert size == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.parametrize('cut', [0, 20, 600])
def test_broken_bytes_name_the_file(cut):
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
  data = encode(image)[:cut]
  with pytest.raises(images.UnreadableImage, match=r'a/b\.png: not a read'):
    images.decode(data, 'a/b.png')


def test_resize_is_antialiased_and_keeps_flat_colour():
  def resize(image, size):
    return np.asarray(images.resize(Image.fromarray(image), size))

  flat = np.full((50, 70, 3), (12, 200, 255), np.uint8)
  assert (resize(flat, (13, 90)) == flat[0, 0]).all()
  checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
  small = resize(np.stack([checks] * 3, -1), (16, 16))
  assert abs(small.astype(float) - 127.5).max() < 4


def test_float_and_back():
  levels = np.arange(256, dtype=np.uint8)
  image = images.to_float(levels)
  assert image.dtype == np.float32 and (image[0], image[-1]) == (-1, 1)
  np.testing.assert_array_equal(images.to_uint8(image), levels)
  assert images.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def noise(seed=0):
  return np.random.default_rng(seed).integers(0, 256, (32, 24, 3), np.uint8)


def test_save(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  for name, value in (('a', image), ('b', images.to_float(image))):
    path = tmp_path / 'new' / f'{name}.png'
    images.save(path, value)
    np.testing.assert_array_equal(decode(path.read_bytes()), image)


TEXT = {
  'parameters': 'a café\nSteps: 20, Seed: 7',
  'sdxl_jax': '{"prompt": "狐 🦊 – “zorro”", "empty": ""}',
  'Comment': '',
}


def test_text(tmp_path):
  path = tmp_path / 'a.png'
  images.save(path, noise(), TEXT)
  np.testing.assert_array_equal(decode(path.read_bytes()), noise())
  text = images.load_text(path)
  assert text == TEXT and all(type(s) is str for s in text.values())
  # Other programs look for Latin-1 in tEXt, and for the rest in iTXt.
  data = path.read_bytes()
  assert b'tEXtparameters\0a caf\xe9\n' in data
  assert b'iTXtsdxl_jax\0\0\0\0\0' + TEXT['sdxl_jax'].encode() in data
  images.save(path, noise())
  assert images.load_text(path) == {}


@pytest.mark.parametrize('key', ['', 'a' * 80, 'é', 'a\0b', 'a\nb', ' a'])
def test_keys_that_a_png_cannot_hold(tmp_path, key):
  with pytest.raises(ValueError, match=re.escape(f'hold text under {key!r}')):
    images.save(tmp_path / 'a.png', noise(), {key: 'x'})
  with pytest.raises(ValueError, match="NUL, which is in the text under 'k'"):
    images.save(tmp_path / 'a.png', noise(), {'k': 'a\0b'})
  assert not list(tmp_path.iterdir())
  images.save(tmp_path / 'a.png', noise(), {'a' * 79: 'x'})
  assert images.load_text(tmp_path / 'a.png') == {'a' * 79: 'x'}


def test_files_without_text(tmp_path):
  path = tmp_path / 'a.png'
  images.save(path, noise(), {'other': 'x'})
  path.write_bytes(path.read_bytes()[:200])
  with pytest.raises(images.UnreadableImage, match=r'a\.png: not a readable'):
    images.load_text(path)
  path.write_bytes(encode(Image.fromarray(noise()), format='JPEG'))
  with pytest.raises(ValueError, match=r'a\.png: a JPEG file; only PNG'):
    images.load_text(path)
  path.write_text('not an image')
  with pytest.raises(images.UnreadableImage, match=r'a\.png: not a readable'):
    images.load_text(path)
  with pytest.raises(FileNotFoundError, match=r'none\.png'):
    images.load_text(tmp_path / 'none.png')


WRITE = """
import resource, signal, sys
import numpy as np
from sdxl_jax.data import images
signal.signal(signal.SIGXFSZ, signal.{action})
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
images.save(sys.argv[1], np.random.default_rng(1).random((64, 64, 3)))
"""


@pytest.mark.parametrize('old', [True, False])
@pytest.mark.parametrize('action', ['SIG_DFL', 'SIG_IGN'])
def test_save_is_atomic(tmp_path, action, old):
  """A run that may write only 1,000 bytes is killed, or gets an error."""
  path = tmp_path / 'a.png'
  if old:
    images.save(path, noise())
  command = [sys.executable, '-c', WRITE.format(action=action), str(path)]
  root = pathlib.Path(__file__).parents[2]
  run = subprocess.run(command, cwd=root, capture_output=True, text=True)
  killed = action == 'SIG_DFL'
  assert run.returncode == (-signal.SIGXFSZ if killed else 1), run.stderr
  if not killed:
    assert run.stderr.strip().endswith(f": '{path}'")
  if old:
    np.testing.assert_array_equal(decode(path.read_bytes()), noise())
  left = [file for file in tmp_path.iterdir() if file != path or not old]
  assert not [file for file in left if file.suffix in image_formats.SUFFIXES]
  # Only a killed run leaves a file, under another name.
  assert [file.stat().st_size for file in left] == ([1000] if killed else [])


def test_nothing_but_the_image_is_left(tmp_path):
  """Even of the longest name; an open old file stays readable."""
  path, plain = tmp_path / ('n' * 251 + '.png'), tmp_path / 'plain'
  images.save(path, noise(1))
  with open(path, 'rb') as reader:
    images.save(path, noise(2))
    np.testing.assert_array_equal(decode(reader.read()), noise(1))
  assert list(tmp_path.iterdir()) == [path]
  np.testing.assert_array_equal(decode(path.read_bytes()), noise(2))
  plain.touch()
  assert path.stat().st_mode == plain.stat().st_mode


def test_links_and_devices_stay(tmp_path):
  link, device = tmp_path / 'link.png', tmp_path / 'null.png'
  link.symlink_to(tmp_path / 'there' / 'a.png')
  device.symlink_to('/dev/null')
  for path in (link, device):
    images.save(path, noise())
    assert path.is_symlink()
  written = (tmp_path / 'there' / 'a.png').read_bytes()
  np.testing.assert_array_equal(decode(written), noise())


@pytest.mark.parametrize('name', ['folder', 'file/a.png', 'n' * 256, 'full'])
def test_unwritable_names_the_path(tmp_path, name):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').touch()
  (tmp_path / 'full').symlink_to('/dev/full')
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(OSError) as caught:
    images.save(tmp_path / name, noise())
  assert str(caught.value).endswith(f": '{tmp_path / name}'")
  assert caught.value.errno and caught.value.filename == str(tmp_path / name)
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('orientation', [1, 6])
@pytest.mark.parametrize('at_least, factor', [(101, 1), (100, 2), (26, 4)])
def test_large_jpegs_are_decoded_smaller(at_least, factor, orientation):
  """Decodes to no less than needed, close to the resized original."""
  y, x = np.indices((200, 300))
  waves = 127 + 100 * np.sin(x / 9) * np.cos(y / 7)
  exif = Image.Exif()
  exif[0x0112] = orientation
  image = Image.fromarray(waves.astype(np.uint8)).convert('RGB')
  data = encode(image, format='JPEG', quality=95, exif=exif)
  size = (at_least, at_least * 3 // 2)
  size = size if orientation == 1 else size[::-1]
  full = images.decode(data, 'x')
  small = images.decode(data, 'x', at_least=size)
  assert small.size == tuple(side // factor for side in full.size)
  expected = images.resize(full, small.size[::-1])
  error = np.abs(np.asarray(small, float) - np.asarray(expected, float))
  assert error.mean() < 1.5


def test_first_frame_of_an_animation():
  frames = [Image.new('RGB', (6, 4), colour) for colour in ('red', 'blue')]
  for format in ('GIF', 'WEBP', 'PNG'):
    data = encode(
      frames[0],
      format=format,
      save_all=True,
      append_images=frames[1:],
      **({'lossless': True} if format == 'WEBP' else {}),
    )
    assert (decode(data) == (255, 0, 0)).all()


def test_cmyk():
  data = encode(Image.new('CMYK', (16, 16), (0, 255, 255, 0)), format='JPEG')
  red = decode(data, at_least=(4, 4)).reshape(-1, 3)
  assert (red[:, 0] > 200).all() and (red[:, 1:] < 60).all()


def test_background():
  image = Image.new('RGBA', (2, 2), (200, 0, 0, 0))
  assert (decode(encode(image), background='#102030') == (16, 32, 48)).all()


def test_another_size_than_the_index_has():
  data = encode(Image.new('RGB', (30, 20)))
  decode(data, size=(20, 30))
  with pytest.raises(images.UnreadableImage, match='index has'):
    decode(data, size=(30, 20))


def test_decompression_bomb():
  """Refuses a few bytes whose header has 900 million px."""
  header = b'IHDR' + struct.pack('>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0)
  data = encode(Image.new('RGB', (1, 1)))
  bomb = data[:12] + header + struct.pack('>I', zlib.crc32(header)) + data[33:]
  with pytest.raises(images.UnreadableImage, match='exceeds limit'):
    decode(bomb)
  with pytest.raises(images.UnreadableImage, match='exceeds limit'):
    images.upright_size(io.BytesIO(bomb))


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'the file is empty'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'run `git lfs pull`'),
    (b'\n<!DOCTYPE html><title>404</title>', 'an HTML page'),
    (b'\x89PNG\r\n\x1a\nabc', 'a.png: not a readable image'),
    (b'\x93NUMPY', 'Pillow knows no such format'),
    (b'RIFF\0\0\0\0WAVEfmt ', 'Pillow knows no such format'),
    (b'RIFF\0\0\0\0WEBPVP', 'its header is broken'),
  ],
)
def test_files_that_are_no_images(data, message):
  for read in (images.decode, images.decode_with_alpha):
    with pytest.raises(images.UnreadableImage, match=message) as caught:
      read(data, 'a.png')
    assert '0x' not in str(caught.value)
