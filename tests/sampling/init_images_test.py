"""Images to start from, in odd sizes and modes, and their masks."""

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.sampling import init_images

DEFAULT = 64, 64
NO_SIZE = None, None


def load(tmp_path, image, mask=None, size=NO_SIZE, threshold=0.5):
  image.save(tmp_path / 'image.png')
  path = None
  if mask is not None:
    path = tmp_path / 'mask.png'
    Image.fromarray(mask).save(path)
  files = init_images.Files(tmp_path / 'image.png', path, size, threshold)
  return init_images.load(files, DEFAULT)


@pytest.mark.parametrize('size', [(8, 7), (7, 8), (1, 1), (300, 3)])
def test_images_below_8_px_are_enlarged_on_request_alone(size, tmp_path):
  image = Image.new('RGB', size)
  message = f'image.png is {size[0]} x {size[1]} px .* pass --height and --wid'
  with pytest.raises(ValueError, match=message):
    load(tmp_path, image)
  assert load(tmp_path, image, size=(32, 64))['image'].shape == (32, 64, 3)
  assert load(tmp_path, Image.new('RGB', (8, 15)))['size'] == (8, 8)
  # One small side is enough to set.
  found = load(tmp_path, Image.new('RGB', (7, 9)), size=(None, 16))
  assert found['size'] == (8, 16)


def test_images_of_other_modes(tmp_path):
  """CMYK, 16 bits, and the first image of an animation."""
  grey = np.full((16, 16), 257 * 100, np.uint16)
  Image.new('CMYK', (16, 16), (0, 255, 255, 0)).save(tmp_path / 'a.jpg')
  Image.fromarray(grey).save(tmp_path / 'a.png')
  frames = [Image.new('RGB', (16, 16), colour) for colour in ('red', 'blue')]
  frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
  for name, colour in (
    ('a.jpg', (255, 0, 0)),
    ('a.png', (100, 100, 100)),
    ('a.gif', (255, 0, 0)),
  ):
    files = init_images.Files(tmp_path / name, None, NO_SIZE)
    found = init_images.load(files, DEFAULT)
    pixel = (found['image'][8, 8] + 1) * 127.5
    np.testing.assert_allclose(pixel, colour, atol=3)


def test_masks_that_repaint_nothing_or_everything(tmp_path):
  image, mask = Image.new('RGB', (64, 64)), np.zeros((64, 64), np.uint8)
  with pytest.raises(ValueError, match='nowhere white, .* is 0 of 255'):
    load(tmp_path, image, mask)
  # Class numbers in place of black and white, and a faint brush.
  mask[8] = 1
  with pytest.raises(ValueError, match='strongest pixel is 1 of 255'):
    load(tmp_path, image, mask)
  mask[8] = 100
  assert load(tmp_path, image, mask, threshold=0.3)['mask'].any()
  found = load(tmp_path, image, mask | 255)
  line = init_images.describe_mask('mask.png', found['mask'], 8, 0.5)
  assert line == 'mask.png repaints 100 % of the image'


def test_thin_lines_are_repainted_and_counted(tmp_path):
  """Also where the image is scaled down, to a size that hides them."""
  mask = np.zeros((256, 256), np.uint8)
  mask[133, 16:240] = 255
  image = Image.new('RGB', (256, 256))
  for size, share in ((NO_SIZE, 28 / 1024), ((64, 64), 8 / 64)):
    found = load(tmp_path, image, mask, size)
    line = init_images.describe_mask('m', found['mask'], 8, 0.5)
    assert line == f'm repaints {100 * share:.3g} % of the image'
