"""Tests the folder source: captions, accounts, changes, errors."""

import os
import shutil

import numpy as np
import pytest

from sdxl_jax.data import images
from sdxl_jax.data.sources import (
  folder,
  folder_index,
  indexed,
  record_filters,
)
from tests.support import datasets, image_folders


@pytest.fixture
def captioned(tmp_path):
  return image_folders.write_four(tmp_path)


def test_caption_files(captioned):
  (captioned / '.hidden.png').write_bytes(b'')
  source = folder.Folder(captioned, workers=0)
  assert len(source) == 4
  assert source.sizes.dtype == np.int32
  sizes = {
    s['caption']: s['original_size'] for s in image_folders.all_of(source)
  }
  assert sizes == {
    'caption of b': (30, 20),
    'caption of deep/er/a': (10, 40),
    'caption of deep/c': (25, 25),
    'caption of d': (33, 11),
  }
  for i, example in enumerate(image_folders.all_of(source)):
    assert example['original_size'] == tuple(source.sizes[i])
    decoded = images.decode(example['image'], example['name'])
    assert decoded.size[::-1] == example['original_size']


def test_no_folder(tmp_path):
  image_folders.fails(
    tmp_path / 'no', 'no such folder', error=FileNotFoundError
  )


def test_no_images(tmp_path):
  (tmp_path / 'movie.mp4').write_bytes(b'')
  image_folders.fails(
    tmp_path, 'no images among its 1 files (suffixes: 1 .mp4)'
  )


def test_image_without_caption(captioned):
  for i in range(9):
    image_folders.write_image(captioned / f'x{i}.png')
  chosen = image_folders.usable(captioned)
  assert len(chosen) == 4
  assert image_folders.counts_of(chosen) == {'it has no caption': 9}
  assert f'{captioned}/x0.png' in str(chosen.account())


def test_no_image_has_a_caption(tmp_path):
  for i in range(3):
    image_folders.write_image(tmp_path / f'{i}.png')
  (tmp_path / '1.txt').write_text(' \n')
  image_folders.fails(
    tmp_path, 'leave none of 3', '3  left out: it has no caption', '0.png'
  )
  image_folders.fails(
    tmp_path, 'into a .txt file', 'config.data.folder.captions=False'
  )
  assert len(image_folders.usable(tmp_path, captions=False)) == 3


def test_caption_without_image(captioned):
  (captioned / 'lonely.txt').write_text('a ghost')
  chosen = image_folders.usable(captioned)
  assert image_folders.counts_of(chosen) == {'it has no image': 1}
  assert list(chosen.left_out()) == [f'{captioned}/lonely.txt: it has no image']


def test_broken_headers_are_left_out(captioned):
  (captioned / 'bad.png').write_bytes(b'no image')
  (captioned / 'bad.txt').write_text('broken')
  source = folder.Folder(captioned, workers=0)
  chosen = record_filters.FilteredSource(source, record_filters.NONE)
  account = chosen.account()
  assert (account.seen, account.used) == (5, 4)
  assert [line.split(':')[0] for line in chosen.left_out()] == [
    str(captioned / 'bad.png')
  ]


def test_all_headers_broken(tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'no image')
  (tmp_path / 'bad.txt').write_text('broken')
  source = folder.Folder(tmp_path, workers=0)
  with pytest.raises(ValueError, match='leave none of 1'):
    record_filters.FilteredSource(source, record_filters.NONE)


def test_vanished_image(captioned):
  source = folder.Folder(captioned, workers=0)
  (captioned / 'b.JPG').unlink()
  with pytest.raises(images.UnreadableImage, match='b.JPG'):
    source[0]


def test_a_changed_image_is_measured_again(tmp_path):
  """Also if its file is as long as before."""
  path = tmp_path / '0.png'
  (tmp_path / '0.txt').write_text('an image')
  first, second = (
    datasets.example(0, size)['image'] for size in ((20, 30), (30, 20))
  )
  length = max(len(first), len(second))
  path.write_bytes(first.ljust(length, b' '))

  def sizes():
    return folder.Folder(tmp_path, workers=0).sizes.tolist()

  assert sizes() == sizes() == [[20, 30]]
  path.write_bytes(second.ljust(length, b' '))
  os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
  assert sizes() == [[30, 20]]


def test_encodings(tmp_path):
  texts = {
    'plain': b'a dog',
    'mark': 'a café'.encode('utf-8-sig'),
    'utf16': 'a dog'.encode('utf-16'),
    'utf32': 'a dog'.encode('utf-32'),
    'cp932': '犬'.encode('cp932'),
    'cp1252': b'one\ncaf\xe9',
    'no_mark': 'a dog'.encode('utf-16-le'),
  }
  for name, data in texts.items():
    image_folders.write_captioned(tmp_path / f'{name}.png', data)
  chosen = image_folders.usable(tmp_path)
  known = {
    'mark.png': 'a café',
    'plain.png': 'a dog',
    'utf16.png': 'a dog',
    'utf32.png': 'a dog',
  }
  assert image_folders.captions_of(chosen) == known
  assert image_folders.counts_of(chosen) == {
    'its caption is in another encoding': 3
  }
  left_out = '\n'.join(chosen.left_out())
  assert 'cp1252.txt: byte 7 (0xe9), in line 2, is not utf-8' in left_out
  assert 'no_mark.txt: line 1 has a NUL character' in left_out
  # The setting concerns files without a mark.
  chosen = image_folders.usable(tmp_path, encoding='cp932')
  assert image_folders.captions_of(chosen) == known | {'cp932.png': '犬'}
  with pytest.raises(ValueError, match="encoding is 'cp0'"):
    image_folders.usable(tmp_path, encoding='cp0')


def test_a_changed_caption_is_read_again(captioned):
  before = image_folders.usable(captioned)
  path = captioned / 'd.txt'
  path.write_text('caption of D\n')
  os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
  after = image_folders.usable(captioned)
  assert after[1]['caption'] == 'caption of D'
  assert (before.keys == after.keys).all()
  assert (before.stamps != after.stamps).tolist() == [False, True, False, False]


def test_stamps_stay_where_a_folder_moves(captioned, tmp_path_factory):
  before = image_folders.usable(captioned)
  moved = tmp_path_factory.mktemp('moved') / 'images'
  shutil.copytree(captioned, moved)
  after = image_folders.usable(moved)
  assert (before.keys == after.keys).all()
  assert (before.stamps == after.stamps).all()
  assert len(set(before.stamps.tolist())) == 4
  # A table in place of the files, and a score.
  rows = [
    {'file_name': 'b.JPG', 'text': 'caption of b'},
    {'file_name': 'd.jpeg', 'text': 'caption of d', 'aesthetic_score': 5},
  ]
  scored = image_folders.usable(image_folders.metadata(moved, *rows))
  b, d = (before.keys == scored.keys[0]), (before.keys == scored.keys[1])
  assert before.stamps[b] == scored.stamps[0]
  assert before.stamps[d] != scored.stamps[1]


def test_paths(captioned, monkeypatch):
  monkeypatch.setenv('HOME', str(captioned.parent))
  assert len(image_folders.usable(f'~/{captioned.name}')) == 4
  image_folders.fails('', 'config.data.folder.path is empty')
  image_folders.fails(
    captioned / 'd.txt', 'is a file', error=NotADirectoryError
  )


def test_extreme_aspects(tmp_path):
  """An image is left out if its resize for the nearest bucket is too large."""
  sizes = {'wide': (1, 6000), 'tall': (6000, 1), 'strip': (20, 600)}
  for name, size in sizes.items():
    image_folders.write_captioned(tmp_path / f'{name}.png', name, size=size)
  source = folder.Folder(tmp_path, workers=0)
  for table, expected in (
    (((1024, 1024),), {'strip'}),
    (((512, 2048), (1024, 1024), (2048, 512)), {'strip'}),
    (((16, 16),), {'wide', 'tall', 'strip'}),  # 16 x 96,000 px are few
  ):
    filters = record_filters.Filters(buckets=table)
    chosen = record_filters.FilteredSource(source, filters)
    assert set(image_folders.captions_of(chosen).values()) == expected
    assert chosen.account().used == len(expected)


def test_a_caption_file_that_cannot_be_read(tmp_path):
  item = {'path': 'a.png', 'caption_file': 'a.txt'}
  caption = folder_index.read_caption(item, tmp_path, '')
  assert caption.problem == indexed.NO_CAPTION
  assert caption.detail == 'a.txt: No such file or directory'
