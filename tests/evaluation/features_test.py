"""Features of images from files and arrays, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import images as image_data
from sdxl_jax.distributed import device_mesh
from sdxl_jax.evaluation import features, image_folder, preprocessing
from sdxl_jax.models import clip_image
from tests.support import random_images, tiny_clip

SIZES = [(64, 48), (56, 56), (90, 120), (30, 70), (70, 70), (56, 80), (61, 59)]


@pytest.fixture(scope='module')
def loaded():
  params = tiny_clip.PAIR.init(jax.random.key(0))
  return features.LoadedCLIP('tiny', tiny_clip.PAIR, params)


@pytest.fixture(scope='module')
def extractor(loaded):
  return features.make_clip(loaded, preprocessing.clip_crop)


def one_by_one(extractor, images):
  net = clip_image.CLIPImage(tiny_clip.PAIR.image)
  rows = []
  for image in images:
    pixels = preprocessing.clip_crop(Image.fromarray(image), 56) / 255
    pixels = (pixels - clip_image.MEAN) / clip_image.STD
    params = {'params': extractor.params['image']}
    rows.append(net.apply(params, jnp.float32(pixels)[None])[0])
  rows = np.stack(rows)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize('devices, batch_size', [(1, 3), (4, 1), (4, 4)])
def test_the_same_on_any_devices(extractor, devices, batch_size, close):
  images = random_images.make(SIZES)
  mesh = device_mesh.make_mesh(devices=jax.devices()[:devices])
  found = features.compute(extractor, images, mesh, batch_size)
  assert found.shape == (7, 32) and found.dtype == np.float32
  close(found, one_by_one(extractor, images), 1e-5)
  # Rows differ: none took another's place.
  assert len(np.unique(found.round(4), axis=0)) == 7


def test_the_rows_are_split_among_the_devices(extractor, monkeypatch):
  seen = []
  place = features.batch_padding.Rows.place

  def record(self, array):
    placed = place(self, array)
    seen.append({s.device: s.data.shape[0] for s in placed.addressable_shards})
    return placed

  monkeypatch.setattr(features.batch_padding.Rows, 'place', record)
  features.compute(extractor, random_images.make(SIZES), batch_size=1)
  assert seen == [dict.fromkeys(jax.devices(), 1)] * 2


def test_files_arrays_and_images(extractor, tmp_path):
  paths = random_images.write(tmp_path, SIZES)
  arrays = random_images.make(SIZES)
  assert image_folder.list_images(tmp_path) == paths
  found = features.compute(extractor, paths)
  np.testing.assert_array_equal(found, features.compute(extractor, arrays))
  opened = [Image.fromarray(a).convert('RGBA') for a in arrays]
  np.testing.assert_array_equal(found, features.compute(extractor, opened))


def test_several_nets_open_an_image_once(extractor, loaded, monkeypatch):
  opened = []
  open_rgb = image_folder.open_rgb
  monkeypatch.setattr(
    image_folder, 'open_rgb', lambda x: opened.append(0) or open_rgb(x)
  )
  other = features.make_clip(loaded, preprocessing.cmmd_crop)
  images = random_images.make(SIZES)
  found = features.compute_all({'a': extractor, 'b': other}, images)
  assert len(opened) == 7 and list(found) == ['a', 'b']
  np.testing.assert_array_equal(found['b'], features.compute(other, images))
  assert not np.allclose(found['a'], found['b'])


def test_what_is_no_image(extractor, tmp_path):
  (tmp_path / 'broken.png').write_bytes(b'\x89PNG nothing')
  with pytest.raises(image_data.UnreadableImage, match='broken.png'):
    features.compute(extractor, image_folder.list_images(tmp_path))
  with pytest.raises(ValueError, match=r'float64 \[8, 8, 3\]: pass uint8'):
    features.compute(extractor, [np.zeros((8, 8, 3))])
  with pytest.raises(ValueError, match='no images to compute'):
    features.compute(extractor, [])


def test_broken_weights(loaded, tmp_path):
  params = jax.tree.map(lambda x: x * np.nan, loaded.params)
  broken = features.make_clip(
    loaded._replace(params=params), preprocessing.clip_crop
  )
  paths = random_images.write(tmp_path, SIZES[:2])
  with pytest.raises(ValueError, match='2 images are not finite.*000.png'):
    features.compute(broken, paths)


def test_folders(tmp_path):
  with pytest.raises(FileNotFoundError, match='none: no such folder'):
    image_folder.list_images(tmp_path / 'none')
  (tmp_path / 'prompts.txt').write_text('a fox')
  with pytest.raises(ValueError, match='no images among its 1 files'):
    image_folder.list_images(tmp_path)
  random_images.write(tmp_path / 'b', SIZES[:1])
  random_images.write(tmp_path / 'a', SIZES[:1])
  found = image_folder.list_images(tmp_path)
  assert found == [tmp_path / 'a' / '000.png', tmp_path / 'b' / '000.png']
  (tmp_path / 'c.png').symlink_to(tmp_path / 'gone.png')
  with pytest.raises(ValueError, match='c.png and 0 others cannot be read'):
    image_folder.list_images(tmp_path)


def test_images_of_16_bits_are_scaled(tmp_path):
  grey = Image.fromarray(np.full((4, 4), 257 * 100, np.uint16))
  grey.save(tmp_path / 'grey.png')
  for image in (grey, tmp_path / 'grey.png'):
    assert image_folder.open_rgb(image).getpixel((0, 0)) == (100, 100, 100)
