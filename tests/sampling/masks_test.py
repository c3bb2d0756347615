"""Masks as painting programs save them."""

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.sampling import masks

SIZE = 64, 96  # height, width
PHOTO = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
STROKES = np.zeros(SIZE, np.uint8)
STROKES[16:32, 16:48] = 255
ZERO, FULL = np.zeros_like(STROKES), np.full_like(STROKES, 255)
# A brush with soft edges: its middle is opaque.
SOFT = np.clip(1.5 * 255 * np.hanning(SIZE[0])[:, None] * np.ones(SIZE), 0, 255)
SOFT = SOFT.astype(np.uint8)
RED = np.dstack([FULL, ZERO, ZERO])


def rgba(colours, alpha):
  colours = np.broadcast_to(np.atleast_3d(colours), (*SIZE, 3))
  return Image.fromarray(np.dstack([colours, alpha]))


def palette(transparent=None):
  """Black strokes are index 1, on white, index 0."""
  image = Image.fromarray(STROKES // 255, 'P')
  image.putpalette([255, 255, 255, 0, 0, 0])
  if transparent is not None:
    image.info['transparency'] = transparent
  return image


# {name: (mask, what of it is repainted, 0 to 255)}.
SAVED = {
  'grey': (Image.fromarray(STROKES), STROKES),
  '1 bit': (Image.fromarray(STROKES).convert('1'), STROKES),
  '16 bit': (Image.fromarray(STROKES.astype(np.uint16) * 257), STROKES),
  'colour': (Image.fromarray(np.dstack([STROKES] * 3)), STROKES),
  'red on black': (Image.fromarray(RED * (STROKES[..., None] > 0)), STROKES),
  'soft blue on black': (Image.fromarray(np.dstack([ZERO, ZERO, SOFT])), SOFT),
  'soft grey': (Image.fromarray(SOFT), SOFT),
  'black on white': (Image.fromarray(255 - STROKES), 255 - STROKES),
  'palette': (palette(), 255 - STROKES),
  'palette, transparent ground': (palette(0), STROKES),
  'opaque, with an alpha channel': (rgba(STROKES, FULL), STROKES),
  'white on transparent black': (rgba(STROKES, STROKES), STROKES),
  'white on transparent white': (rgba(FULL, STROKES), STROKES),
  'white on transparent, grey': (
    Image.fromarray(np.dstack([STROKES] * 2), 'LA'),
    STROKES,
  ),
  'soft white on transparent': (rgba(FULL, SOFT), SOFT),
  'soft white, darkened by its alpha': (rgba(SOFT, SOFT), SOFT),
  'black on transparent': (rgba(ZERO, STROKES), STROKES),
  'black on transparent, grey': (
    Image.fromarray(np.dstack([ZERO, STROKES]), 'LA'),
    STROKES,
  ),
  'soft black on transparent': (rgba(ZERO, SOFT), SOFT),
  'half transparent white': (rgba(FULL, STROKES // 2), STROKES // 2),
  'red on transparent': (rgba(RED, STROKES), STROKES),
  'white and black, on transparent': (
    rgba(STROKES, np.where(np.arange(SIZE[1]) < 80, FULL, ZERO)),
    STROKES,
  ),
  'the image with a hole': (rgba(PHOTO, 255 - STROKES), STROKES),
  'the image with a soft hole': (rgba(PHOTO, 255 - SOFT), SOFT),
}


def read(tmp_path, mask, photo=PHOTO, suffix='png'):
  mask.save(path := tmp_path / f'mask.{suffix}')
  return masks.read(path, Image.fromarray(photo), 'photo.png')


@pytest.mark.parametrize('name', SAVED)
def test_what_is_repainted(name, tmp_path):
  mask, expected = SAVED[name]
  found = read(tmp_path, mask)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, np.float32(expected) / 255, atol=0.003)


def test_opaque_masks_are_read_as_diffusers_reads_them(tmp_path):
  """It converts all masks to grey."""
  for name in ('grey', '1 bit', 'colour', 'soft grey', 'palette'):
    mask, _ = SAVED[name]
    grey = np.asarray(mask.convert('L'), np.float32) / 255
    np.testing.assert_allclose(read(tmp_path, mask), grey, atol=1e-6)


def test_a_hole_in_the_image_saved_once_more(tmp_path):
  """WebP changes colours a little, and keeps the hole."""
  smooth = np.asarray(Image.fromarray(PHOTO[:8, :12]).resize(SIZE[::-1]))
  mask = rgba(smooth, 255 - STROKES)
  found = read(tmp_path, mask, smooth, 'webp')
  np.testing.assert_array_equal(found, STROKES / 255)


def test_strokes_on_an_image_of_their_colour(tmp_path):
  """Black strokes are strokes, although they are where the image is black."""
  found = read(tmp_path, rgba(ZERO, STROKES), np.zeros_like(PHOTO))
  np.testing.assert_array_equal(found, STROKES / 255)


@pytest.mark.parametrize(
  'mask, message',
  [
    (rgba(FULL, ZERO), 'mask.png is transparent everywhere: paint white'),
    (rgba(PHOTO[::-1], 255 - STROKES), 'save it without transparency, white'),
    (Image.fromarray(PHOTO), 'mask.png has several colours, so it does not'),
    (Image.fromarray(PHOTO | STROKES[..., None]), 'save it white where'),
    (Image.fromarray(RED | 255 - STROKES[..., None]), 'has several colours'),
    (Image.new('L', (95, 64)), '95 x 64 px and photo.png is 96 x 64 .* scale'),
    (Image.new('L', (64, 96)), '64 x 96 px .* orientation in the EXIF data'),
  ],
)
def test_masks_that_do_not_show_what_to_repaint(mask, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, mask)


def test_a_mask_is_turned_as_its_exif_data_say(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # by 90 degrees
  path = tmp_path / 'mask.png'
  Image.fromarray(np.rot90(STROKES)).save(path, exif=exif)
  found = masks.read(path, Image.fromarray(PHOTO), 'photo.png')
  np.testing.assert_array_equal(found, STROKES / 255)


@pytest.mark.parametrize('size', [(64, 96), (8, 8), (7, 5), (200, 97), (1, 1)])
def test_lines_of_one_pixel_stay_at_any_size(size):
  mask = np.zeros(SIZE, np.float32)
  mask[:, 50], mask[33] = 0.75, 1
  found = masks.resize(mask, size)
  assert found.shape == size and set(np.unique(found)) <= {0, 0.75, 1}
  assert (found.max(1) > 0).all() and (found == 1).all(1).any()
  if size == SIZE:
    np.testing.assert_array_equal(found, mask)
  # Each new pixel is the largest of those that it covers.
  h, w = size
  for i in range(0, h, 3):
    for j in range(0, w, 3):
      rows = slice(i * 64 // h, -(-(i + 1) * 64 // h))
      columns = slice(j * 96 // w, -(-(j + 1) * 96 // w))
      assert found[i, j] == mask[rows, columns].max()
