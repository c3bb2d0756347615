"""Tests what is found in a folder: links, suffixes, odd names and files."""

import os

import pytest
from PIL import Image

from sdxl_jax.data import images
from sdxl_jax.data.sources import folder_records
from tests.support import image_folders


@pytest.fixture
def captioned(tmp_path):
  return image_folders.write_four(tmp_path)


def test_links(captioned, tmp_path_factory):
  away = tmp_path_factory.mktemp('away')
  for i in range(20):
    image_folders.write_captioned(away / f'sub/{i}.png', 'away')
  (captioned / 'more').symlink_to(away)
  (captioned / 'deep/loop').symlink_to(captioned)
  (captioned / 'self').symlink_to('self')
  (captioned / 'broken.png').symlink_to('nowhere.png')
  (captioned / 'e.png').symlink_to(away / 'sub/0.png')
  (captioned / 'e.txt').symlink_to(away / 'sub/0.txt')
  chosen = image_folders.usable(captioned)
  assert len(chosen) == 25
  assert image_folders.counts_of(chosen) == {
    'it is a link that leads nowhere or back': 3
  }
  left_out = '\n'.join(chosen.left_out())
  assert 'loop: it is a link that leads nowhere or back (to a fold' in left_out
  # The dataset may itself be reached by a link.
  link = tmp_path_factory.mktemp('link') / 'images'
  link.symlink_to(captioned)
  assert len(image_folders.usable(link)) == 25


def test_all_suffixes(tmp_path):
  names = ('a.BMP', 'b.tiff', 'd.jfif', 'e.TIF', 'f.jp2', 'g.ppm', 'h.webp')
  if '.avif' in Image.registered_extensions():  # from Pillow 11.3 on
    names += ('c.avif',)
  for name in names:
    image_folders.write_captioned(tmp_path / name, name)
  for name in ('x.heic', 'y.svg', 'noise', 'z.pdf'):
    (tmp_path / name).write_bytes(b'%')
  (tmp_path / 'a.npz').write_bytes(b'')
  chosen = image_folders.usable(tmp_path)
  assert image_folders.captions_of(chosen) == {name: name for name in names}
  assert image_folders.counts_of(chosen) == {
    'its suffix is not that of an image': 4
  }
  assert chosen.account().beside == {
    'caption files of them': len(names),
    '.npz files of images, which are not read': 1,
  }
  for example in image_folders.all_of(chosen):
    decoded = images.decode(example['image'], example['name'])
    assert decoded.size[::-1] == example['original_size'] == (20, 30)


def test_caption_suffixes(tmp_path):
  image_folders.write_captioned(tmp_path / 'a.png', 'a', '.caption')
  image_folders.write_captioned(tmp_path / 'b.png', 'b', '.TXT')
  image_folders.write_captioned(tmp_path / 'c.png', 'c')
  (tmp_path / 'c.caption').write_text('not read')
  chosen = image_folders.usable(tmp_path)
  assert image_folders.captions_of(chosen) == {
    'a.png': 'a',
    'b.png': 'b',
    'c.png': 'c',
  }
  assert list(chosen.left_out()) == [
    f'{tmp_path}/c.caption: an earlier record has its name (c.txt is read)'
  ]


def test_odd_files(tmp_path):
  """Names that are no text, empty files, pipes, vanished files."""
  image_folders.write_captioned(tmp_path / 'good.png', 'good')
  odd = os.fsencode(tmp_path) + b'/b\xff\n.png'
  with open(odd, 'wb') as file:
    file.write((tmp_path / 'good.png').read_bytes())
  with open(odd.replace(b'.png', b'.txt'), 'w') as file:
    file.write('odd')
  image_folders.write_captioned(tmp_path / 'float.tiff', 'float')
  Image.new('F', (8, 8)).save(tmp_path / 'float.tiff')
  (tmp_path / 'empty.png').touch()
  (tmp_path / 'empty.txt').write_text('empty')
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / '.DS_Store').touch()
  (tmp_path / '.cache').mkdir()
  chosen = image_folders.usable(tmp_path)
  names = image_folders.captions_of(chosen)
  assert names == {'good.png': 'good', 'b\\udcff\\n.png': 'odd'}
  assert ''.join(names).encode()
  assert image_folders.counts_of(chosen) == {
    'its header cannot be read': 2,
    'its suffix is not that of an image': 1,
  }
  left_out = '\n'.join(chosen.left_out())
  assert 'empty.png: its header cannot be read (the file is empty' in left_out
  assert 'its pixels are floats' in left_out
  hidden = 'hidden files and folders, which are not read'
  assert chosen.account().beside[hidden] == 2


def test_a_file_that_vanishes_while_it_is_listed(captioned, monkeypatch):
  find = folder_records.find

  def find_and_remove(*args):
    found = find(*args)
    (captioned / 'd.jpeg').unlink()
    return found

  monkeypatch.setattr(folder_records, 'find', find_and_remove)
  chosen = image_folders.usable(captioned)
  assert len(chosen) == 3
  assert image_folders.counts_of(chosen) == {'its header cannot be read': 1}
